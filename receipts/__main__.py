"""`python -m receipts`: integrate, pack, verify, rotate, fsck, prune, backup, restore."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from receipts import backup, cli_log, cli_pack, prune, verify
from receipts.cli_places import PlacesError
from receipts.errors import StoreError
from receipts.pack_errors import PackError

EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m receipts", description="The receipt log.")
    commands = parser.add_subparsers(dest="command", required=True)
    cli_log.register(commands)
    cli_pack.register(commands)
    prune.register(commands)
    backup.register(commands)
    commands.add_parser("verify", help="verify a pack offline; see `verify --help`", add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 (failed, or invalid) or 2 (unusable input)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["verify"]:
        # The same program as the one in every pack, with its own options.
        return verify.main(argv[1:])
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (PlacesError, PackError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNUSABLE
    except StoreError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
