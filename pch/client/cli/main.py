"""Parse the command line and turn what went wrong into an exit code."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pch.client.cli import explain, inspect, keygen, public, request, sign
from pch.client.cli.terminal import EXIT_NETWORK, EXIT_REFUSED, EXIT_USAGE, UsageError, out_json
from pch.client.errors import ClientError, InvalidRequest, NetworkError

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXIT_CODES = """exit codes:
  0  done; for `request`, the answer's status is 2xx
  1  refused: another status, or a challenge or answer that cannot be used
  2  usage or input: wrong arguments, an unreadable file or key
  3  network: not reached, not trusted, or no answer in time
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with every verb."""
    parser = argparse.ArgumentParser(
        prog="pch",
        description="Signed, channel-bound HTTP requests (PCH/1).",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in (keygen, public, request, sign, inspect, explain):
        verb.register(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code; argparse exits with 2 by itself."""
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.func(arguments)
    except (UsageError, InvalidRequest) as error:
        return _fail(error, EXIT_USAGE, as_json=arguments.json)
    except NetworkError as error:
        return _fail(error, EXIT_NETWORK, as_json=arguments.json)
    except ClientError as error:
        return _fail(error, EXIT_REFUSED, as_json=arguments.json)
    return code


def _fail(error: Exception, code: int, *, as_json: bool) -> int:
    if as_json:
        out_json({"error": type(error).__name__, "message": str(error)})
    sys.stderr.write(f"pch: {error}\n")
    return code
