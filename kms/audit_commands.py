"""`python -m kms restore` and `python -m kms audit verify`: the audit log in an operator's hands (RUNBOOK.md §7)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kms.config_values import ConfigError

if TYPE_CHECKING:
    import argparse

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this module's commands to `python -m kms`."""
    text = "accept an audit log or key store that is not as it was left; the service must be stopped"
    restoring = subparsers.add_parser("restore", help=text, description=text)
    restoring.add_argument("--config", metavar="PATH", help="the service's configuration")
    restoring.add_argument(
        "--accept-rollback", action="store_true", help="do it: what is missing was looked at and cannot be had back"
    )
    restoring.set_defaults(run=_restore)
    auditing = subparsers.add_parser("audit", help="verify the audit log")
    auditing.add_argument("verb", choices=("verify",))
    auditing.add_argument("--config", metavar="PATH", help="the service's configuration, for audit.dir")
    auditing.add_argument("--dir", type=Path, default=None, help="the log's folder, in the place of audit.dir")
    auditing.set_defaults(run=_verify)


def _restore(args: argparse.Namespace) -> int:
    from kms.audit_files import AuditDamaged
    from kms.audit_restore import restore
    from kms.clock import SYSTEM_CLOCK
    from kms.config import load_config
    from kms.errors import KmsError
    from kms.key_store import KeyStore
    from kms.providers.open_provider import open_providers
    from kms.telemetry import Telemetry

    if not args.accept_rollback:
        sys.stderr.write("restore: say --accept-rollback; `python -m kms audit verify` tells what is there\n")
        return EXIT_FAILED
    config = load_config({} if args.config is None else {"config": args.config}, os.environ).config
    if config.audit.dir is None or config.service.amnesia:
        raise ConfigError("audit.dir: under amnesia there is nothing to restore")
    providers = open_providers(config, Telemetry(), SYSTEM_CLOCK)
    try:
        store = KeyStore(config.service.state_dir, SYSTEM_CLOCK)
        try:
            told = restore(config.audit.dir, providers.authority, state=store, counter=providers.rollback_counter)
        finally:
            store.close()
    except AuditDamaged as damage:
        sys.stderr.write(f"restore: {damage}\n")
        return EXIT_FAILED
    except KmsError as error:
        sys.stderr.write(f"restore: {error.reason}: {error.message}\n")
        return EXIT_FAILED
    finally:
        providers.close()
    sys.stdout.write("".join(f"{name}: {text}\n" for name, text in told.items()))
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    from kms.audit_check import verify_everything
    from kms.audit_files import AuditDamaged, AuditFiles
    from kms.config import load_config
    from kms.errors import KmsError

    folder = args.dir
    if folder is None:
        folder = load_config({} if args.config is None else {"config": args.config}, os.environ).config.audit.dir
    if folder is None:
        raise ConfigError("audit.dir: is not set, and no --dir was given")
    files = AuditFiles(folder)
    try:
        identity = files.read_identity()
        if identity is None:
            raise AuditDamaged("identity", "there is no audit log here")
        count = verify_everything(files, identity)
    except AuditDamaged as damage:
        sys.stderr.write(f"damaged: {damage.reason}: {damage}\n")
        return EXIT_FAILED
    except KmsError as error:
        sys.stderr.write(f"audit: {error.reason}: {error.message}\n")
        return EXIT_FAILED
    sys.stdout.write(f"whole: {count} records, epoch {identity.epoch}, log {identity.log_id}\n")
    sys.stdout.write(f"public key {identity.public_key.hex()}\n")
    return EXIT_OK
