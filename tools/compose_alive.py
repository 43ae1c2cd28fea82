#!/usr/bin/env python3
"""The health checks of compose.yaml: exit with 0 when a part answers.

    python tools/compose_alive.py app | kms | extproc | extproc-admin

SIGNET_COMPOSE_DIR names another folder than /var/lib/signet.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.stack_config import FILTER_WORKERS, Ports, StackFiles
from tools.stack_probe import accepts, get, listens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FOLDER_VARIABLE: Final = "SIGNET_COMPOSE_DIR"
FOLDER: Final = Path("/var/lib/signet")
EXIT_ALIVE: Final = 0
EXIT_NOT_ALIVE: Final = 1
EXIT_UNUSABLE: Final = 2


def folder() -> Path:
    """Give the folder that the containers share."""
    return Path(os.environ.get(FOLDER_VARIABLE, FOLDER))


def checks(ports: Ports, files: StackFiles) -> Mapping[str, Callable[[], bool]]:
    """Give the question of each part that has one."""
    return {
        "app": lambda: listens(ports.app),
        "kms": lambda: get(ports.kms_metrics, "/readyz") is not None,
        "extproc": lambda: all(accepts(files.socket(worker)) for worker in range(FILTER_WORKERS)),
        "extproc-admin": lambda: get(ports.admin, "/readyz") is not None,
    }


def main(argv: list[str] | None = None) -> int:
    """Ask one part. Returns 0 when it answers, 1 when not, 2 when there is no such part."""
    arguments = sys.argv[1:] if argv is None else argv
    known = checks(Ports(), StackFiles(folder()))
    if len(arguments) != 1 or arguments[0] not in known:
        sys.stderr.write(__doc__ or "")
        return EXIT_UNUSABLE
    return EXIT_ALIVE if known[arguments[0]]() else EXIT_NOT_ALIVE


if __name__ == "__main__":
    sys.exit(main())
