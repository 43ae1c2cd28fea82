"""Where the store, the log and its keys are, as the command line, the environment and the filter's TOML file say."""

from __future__ import annotations

import contextlib
import json
import os
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from receipts.checkpoint_jwks import verifier_keys_of
from receipts.checkpoint_keys import FileCheckpointSigner, KeyFileError, create_key_file
from receipts.errors import StoreUrlError
from receipts.log_notes import LogNotes
from receipts.log_reader import LogReader
from receipts.lookup_sqlite import SqliteLookup
from receipts.open_store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from receipts.lookup import ReceiptLookup
    from receipts.signed_note import VerifierKey
    from receipts.store import ReceiptStore
    from receipts.store_postgres import PostgresReceiptStore

DEFAULT_STORE_URL: Final = "sqlite:receipts.sqlite3"
DEFAULT_LOG_DIR: Final = "log"
DEFAULT_ORIGIN: Final = "signet.local/receipts"
KEYS_NAME: Final = "checkpoint-keys.json"
VERIFIER_KEYS_NAME: Final = "verifier-keys.jwks.json"
"""In the log's folder: its public keys as a JWK set, which the admin process keeps there."""
POLICY_NAME: Final = "policy-bundle"
"""In the log's folder: the policy in force, which the admin process keeps there."""
MAX_CONFIG_BYTES: Final = 1 << 20


class PlacesError(ValueError):
    """The options, the environment or the TOML file do not say where things are."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything of one log is."""

    store_url: str
    log_dir: Path
    origin: str

    @property
    def key_path(self) -> Path:
        """The file of the log's signing keys."""
        return self.log_dir / KEYS_NAME

    def store(self, *, create: bool = False) -> ReceiptStore:
        """Open the receipt store; with `create`, make a SQLite file where there is none.

        Raises StoreError, PlacesError: a command in the wrong folder finds nothing, and does not begin an empty log.
        """
        scheme, _, path = self.store_url.partition(":")
        if not create and scheme == "sqlite" and path and not Path(path).exists():
            raise PlacesError(f"there is no receipt store at {path}: say where it is (--config, --store)")
        try:
            return open_store(self.store_url)
        except StoreUrlError as error:
            raise PlacesError(str(error)) from error

    def lookup(self, store: ReceiptStore) -> ReceiptLookup:
        """Make the look-ups that fit the store."""
        return lookup_for(self.store_url, store)

    def reader(self) -> LogReader:
        """Open the log for reading. Raises PlacesError when there is none, StoreError."""
        if not self.log_dir.is_dir():
            raise PlacesError("there is no log here yet: run `python -m receipts integrate` first")
        return LogReader(self.log_dir)

    def notes(self) -> LogNotes:
        """Give what the log remembers beside its heads."""
        return LogNotes(self.log_dir)

    @property
    def keys_elsewhere(self) -> bool:
        """Whether the log's signing keys are not in a file of its own but with a key service."""
        return not self.key_path.exists() and (self.log_dir / VERIFIER_KEYS_NAME).exists()

    def verifier_keys(self) -> tuple[VerifierKey, ...]:
        """Give the public keys of the log. Raises PlacesError, LogUnavailable.

        Where a key service has the private ones, they are those that the admin process published beside the log.
        """
        if not self.keys_elsewhere:
            return self.signer().verifier_keys()
        try:
            with (self.log_dir / VERIFIER_KEYS_NAME).open("rb") as file:
                return verifier_keys_of(json.loads(file.read(MAX_CONFIG_BYTES)), self.origin)
        except (OSError, ValueError, AttributeError) as error:
            raise PlacesError(f"{VERIFIER_KEYS_NAME}: is no JWK set of the log's keys") from error

    def signer(self, *, create: bool = False) -> FileCheckpointSigner:
        """Open the key file; with `create`, make it where there is none. Raises PlacesError, LogUnavailable."""
        try:
            return open_signer(self.log_dir, self.origin, create=create)
        except KeyFileError as error:
            raise PlacesError(f"{KEYS_NAME}: {error}") from error


def lookup_for(store_url: str, store: ReceiptStore) -> ReceiptLookup:
    """Make the look-ups for `store`, which was opened at `store_url`."""
    if store_url.startswith("sqlite:"):
        return SqliteLookup(store_url.removeprefix("sqlite:"))
    # Late, so that psycopg is only loaded where it is used.
    from receipts.lookup_postgres import PostgresLookup

    return PostgresLookup(cast("PostgresReceiptStore", store))


def open_signer(log_dir: Path, origin: str, *, create: bool) -> FileCheckpointSigner:
    """Open the key file in the log's folder; with `create`, make it where there is none.

    Raises KeyFileError, also when the file is that of another origin; LogUnavailable.
    """
    path = log_dir / KEYS_NAME
    if create and not path.exists():
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # Another process was faster.
            create_key_file(path, origin, now_s(), os.urandom)
    signer = FileCheckpointSigner(path, now_s)
    if create and signer.origin != origin:
        raise KeyFileError(f"the keys are those of the log {signer.origin}")
    return signer


def now_s() -> int:
    """Return the time, POSIX seconds."""
    return int(time.time())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where things are."""
    parser.add_argument("--config", type=Path, help="the filter's TOML file: [receipts] url, [log] dir and origin")
    parser.add_argument("--store", help=f"the receipt store (SIGNET_RECEIPTS_URL; default {DEFAULT_STORE_URL})")
    parser.add_argument("--log", type=Path, help=f"the log's folder (SIGNET_LOG_DIR; default {DEFAULT_LOG_DIR})")
    parser.add_argument("--origin", help=f"the log's name (SIGNET_LOG_ORIGIN; default {DEFAULT_ORIGIN})")


def read_places(args: argparse.Namespace, environ: Mapping[str, str]) -> Places:
    """Settle where things are: options before the environment before the TOML file. Raises PlacesError."""
    base = Path()
    receipts: dict[str, Any] = {}
    log: dict[str, Any] = {}
    if args.config is not None:
        document = _read_toml(args.config)
        base = args.config.absolute().parent
        receipts, log = _table(document, "receipts"), _table(document, "log")
    url = args.store or environ.get("SIGNET_RECEIPTS_URL")
    if url is None:
        url = _text(receipts, "url", DEFAULT_STORE_URL)
        if url.startswith("sqlite:"):
            url = f"sqlite:{base / url.removeprefix('sqlite:')}"
    folder = args.log or environ.get("SIGNET_LOG_DIR") or base / _text(log, "dir", DEFAULT_LOG_DIR)
    origin = args.origin or environ.get("SIGNET_LOG_ORIGIN") or _text(log, "origin", DEFAULT_ORIGIN)
    return Places(url, Path(folder), origin)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise PlacesError(f"{path}: is larger than {MAX_CONFIG_BYTES} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise PlacesError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise PlacesError(f"{path}: is not TOML") from error


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise PlacesError(f"[{name}] is not a table")
    return table


def _text(table: dict[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or not value:
        raise PlacesError(f"{key} is not text")
    return value
