"""Whether the workers are ready, as their status files and sockets tell."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Final

from receipts.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from extproc.config import FilterConfig
    from receipts.store import ReceiptStore

STATUS_STALE_AFTER_MS: Final = 5000
"""A worker renews its status file every second; one this old does not count."""
CONNECT_TIMEOUT_S: Final = 0.5
MAX_STATUS_BYTES: Final = 64 << 10


def not_ready_because(config: FilterConfig, now_ms: int) -> dict[str, str]:
    """List why the filter is not ready, by part; empty when it is."""
    reasons: dict[str, str] = {}
    for index in range(config.filter.workers):
        socket_path = config.filter.socket_dir / f"signet-{index}.sock"
        if not _accepts(socket_path):
            reasons[f"worker.{index}"] = "does not accept connections"
            continue
        for part, problem in _reported(socket_path.with_suffix(".status.json"), now_ms).items():
            reasons[f"worker.{index}.{part}"] = problem
    return reasons


def degraded_because(config: FilterConfig) -> dict[str, str]:
    """List what serves for now without something it needs, by part; `not_ready_because` judges stale reports."""
    found: dict[str, str] = {}
    for index in range(config.filter.workers):
        degraded = _status(config.filter.socket_dir / f"signet-{index}.status.json").get("degraded")
        for part, text in degraded.items() if isinstance(degraded, dict) else ():
            found[f"worker.{index}.{part}"] = str(text)
    return found


def store_problem(store: ReceiptStore) -> str | None:
    """Say why the receipt store could not take a receipt now; None when it could. Blocks: call it from a thread."""
    try:
        store.check()
    except StoreError as error:
        return error.code
    return None


def _accepts(socket_path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(socket_path))
        except OSError:
            return False
    return True


def _status(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_STATUS_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _reported(status_path: Path, now_ms: int) -> dict[str, str]:
    try:
        if status_path.stat().st_size > MAX_STATUS_BYTES:
            return {"status": "is too large"}
        status = json.loads(status_path.read_bytes())
        age_ms = now_ms - int(status["time_ms"])
        problems = {str(part): str(text) for part, text in dict(status["problems"]).items()}
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        return {"status": "cannot be read"}
    # Also one from the future: the clock was set back since.
    if abs(age_ms) > STATUS_STALE_AFTER_MS:
        return {"status": f"is {age_ms} ms old"}
    return problems
