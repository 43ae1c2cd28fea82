"""`python -m extproc`: serve, admin, check, clients, rotate-sealing-key."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from extproc import logs

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2


def _serve(args: argparse.Namespace) -> int:
    from extproc.supervisor import Supervisor

    log_options = ("--log-level", args.log_level, "--log-format", args.log_format)
    return Supervisor(args.config, os.environ, log_options).run()


def _worker(args: argparse.Namespace) -> int:
    from extproc.worker import run_worker

    return run_worker(args.config, args.index, args.lifeline_fd, args.accepted)


def _admin(args: argparse.Namespace) -> int:
    from extproc.admin import run_admin

    return run_admin(args.config)


def _rotate(args: argparse.Namespace) -> int:
    from extproc.config import load_config
    from extproc.custody import rotate_sealing_key
    from extproc.worker import now_ms

    config = load_config(args.config, os.environ)
    epoch = rotate_sealing_key(config, now_ms)
    sys.stdout.write(f"sealing with epoch {epoch}; the former one opens challenges for {config.filter.max_age_s} s\n")
    return EXIT_OK


def _check(args: argparse.Namespace) -> int:
    from extproc.config import load_config
    from extproc.rules import rules_of

    config = load_config(args.config, os.environ)
    # Also what it names: a policy that no worker could use is no valid configuration.
    rules_of(config)
    sys.stdout.write(f"valid: {len(config.routes)} routes, digest {config.digest}\n")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    from extproc import clients

    parser = argparse.ArgumentParser(prog="python -m extproc", description="The Signet filter service.")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument(
        "--log-format", choices=logs.FORMATS, help="of the lines on standard error; by default text on a terminal"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, text in (
        ("serve", _serve, "run the filter workers"),
        ("admin", _admin, "run the admin HTTP server"),
        ("check", _check, "validate the configuration and exit"),
        ("rotate-sealing-key", _rotate, "seal challenges with a fresh key; running workers take it up"),
        ("worker", _worker, "run one worker in the foreground (serve starts these)"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, required=True, help="the filter's TOML file")
        command.set_defaults(run=run)
        if name == "worker":
            command.add_argument("--index", type=int, required=True)
            command.add_argument("--lifeline-fd", type=int, default=None)
            command.add_argument(
                "--accepted", type=Path, default=None, help="start from this copy of the configuration"
            )
    clients.register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 (failed) or 2 (unusable input)."""
    from extproc.config import ConfigError
    from extproc.errors import ServerFault
    from receipts.errors import StoreError

    args = _parser().parse_args(argv)
    args.log_format = logs.log_to(sys.stderr, args.log_level, args.log_format)
    try:
        status = args.run(args)
    except ConfigError as error:
        sys.stderr.write(f"configuration: {error}\n")
        return EXIT_UNUSABLE
    except ServerFault as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    except StoreError as error:
        sys.stderr.write(f"receipts: {error.code}: {error}\n")
        return EXIT_FAILED
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
