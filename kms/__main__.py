"""`python -m kms`: serve, check, openapi, and the commands of capabilities and of the audit log."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from kms.command_error import CommandError
from kms.config_keys import KEYS
from kms.config_values import ConfigError
from kms.private_file import PrivateFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2
# They load no more than they need: the service starts in two seconds on a busy machine too.
_SERVING: Final = frozenset({"serve", "service", "check"})


def add_config_flags(command: argparse.ArgumentParser) -> None:
    """Add `--config` and the flag of every key that has one (CONFIG.md §6)."""
    command.add_argument("--config", metavar="PATH", help="TOML or JSON file; Config.toml here when there is one")
    for key in KEYS:
        if not key.flag:
            continue
        if key.switch:
            command.add_argument(f"--{key.flag}", action="store_const", const="true", help=f"{key.path} = true")
        else:
            command.add_argument(f"--{key.flag}", metavar="VALUE", help=key.path)


def config_flags(args: argparse.Namespace) -> Mapping[str, str]:
    """Gather the flags that were given, by name."""
    names = ["config", *(key.flag for key in KEYS if key.flag)]
    found = {name: getattr(args, name.replace("-", "_"), None) for name in names}
    return {name: text for name, text in found.items() if text is not None}


def _serve(args: argparse.Namespace) -> int:
    from kms.clock import SYSTEM_CLOCK
    from kms.config import load_config
    from kms.logs import LogWriter
    from kms.supervisor import Supervisor

    flags = config_flags(args)
    loaded = load_config(flags, os.environ)
    section = loaded.config.observability
    log = LogWriter(sys.stderr, SYSTEM_CLOCK.wall_ms, section.log_level, section.log_format)
    try:
        return Supervisor(loaded, flags, os.environ, log).run()
    finally:
        log.close()


def _service(args: argparse.Namespace) -> int:
    import gc
    from concurrent.futures import ThreadPoolExecutor

    gc.disable()  # Nothing that is loaded now is ever garbage: the service lets the collector go when it serves.
    from kms.clock import SYSTEM_CLOCK
    from kms.config import load_config
    from kms.config_snapshot import read_snapshot
    from kms.listeners import adopt, bind_all
    from kms.process_hardening import harden_process, raise_descriptor_limit
    from kms.providers.open_provider import open_providers
    from kms.telemetry import Telemetry
    from kms.tls_floor import set_grpc_floor

    set_grpc_floor()
    flags, config_fd = config_flags(args), args.config_fd
    loaded = load_config(flags, os.environ) if config_fd is None else read_snapshot(config_fd, flags, os.environ)
    raise_descriptor_limit()
    listeners = bind_all(loaded.config) if args.listeners is None else adopt(args.listeners)
    hardening, telemetry = harden_process(), Telemetry()
    with ThreadPoolExecutor(1, "kms-open") as threads:
        # What a passphrase costs is half of the start, and needs no interpreter: the other half is imported meanwhile.
        providers = threads.submit(open_providers, loaded.config, telemetry, SYSTEM_CLOCK)
        from kms.server import run_service
    start = (hardening, telemetry, providers)
    return run_service(loaded, flags, os.environ, listeners, args.lifeline_fd, args.restarts, *start)


def _check(args: argparse.Namespace) -> int:
    from kms.config import config_digest, load_config

    loaded = load_config(config_flags(args), os.environ)
    if args.open:
        from kms.config_proof import prove_openable
        from kms.process_hardening import harden_process

        harden_process()
        prove_openable(loaded.config)
    for line in (*loaded.notes, *loaded.warnings):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"valid, digest {config_digest(loaded.config)}\n")
    return EXIT_OK


def _openapi(_args: argparse.Namespace) -> int:
    from kms.openapi import openapi_json

    sys.stdout.write(openapi_json().decode() + "\n")
    return EXIT_OK


def _parser(wanted: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kms", description="The key service.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, text in (
        ("serve", _serve, "run the service: a supervisor and its serving process"),
        ("service", _service, "run the serving process alone (serve starts it)"),
        ("check", _check, "validate the configuration and exit"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_config_flags(command)
        command.set_defaults(run=run)
        if name == "check":
            what = "open what it names too: TLS files, root keys, revocations, policy"
            command.add_argument("--open", action="store_true", help=what)
        if name == "service":
            command.add_argument("--listeners", default=None, help="descriptors that were handed down")
            command.add_argument("--lifeline-fd", type=int, default=None, help="becomes readable when serve is gone")
            command.add_argument("--config-fd", type=int, default=None, help="a configuration that was handed down")
            command.add_argument("--restarts", type=int, default=0, help="how often the process was started again")
    if wanted not in _SERVING:
        from kms import audit_commands, mint

        mint.register(commands)
        audit_commands.register(commands)
    openapi = commands.add_parser("openapi", help="print the OpenAPI document", description="print it as JSON")
    openapi.set_defaults(run=_openapi)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 (failed) or 2 (unusable input)."""
    from kms.errors import KmsError

    arguments = sys.argv[1:] if argv is None else argv
    args = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        return int(args.run(args))
    except ConfigError as error:
        sys.stderr.write(f"configuration: {error}\n")
        return EXIT_UNUSABLE
    except (CommandError, PrivateFileError) as error:
        sys.stderr.write(f"{args.command}: {error}\n")
        return EXIT_FAILED
    except KmsError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
