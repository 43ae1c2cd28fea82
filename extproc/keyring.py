"""Registered client keys (docs/reference/pch.md §3, §4 step 4), read from a file that may change at any time.

The file is a JSON list of

    {"subject": "alice", "jwk": {…}, "not_before": "2026-01-01T00:00:00Z", "not_after": null, "status":
    "active"}

with a public JWK, RFC 3339 times in UTC or null, and the status `active` or `revoked`. A subject may
have several keys; a key is there once. A revoked key stays listed, so that a valid signature by it can
be told from an unknown one.

The two keys of a hybrid (PCH §3) name each other by their ids in a further member, `partner`. They are of one
subject, one classical and one ML-DSA, in a combination that PCH has; anything less refuses the file.

A member `class`, `high`, `normal` or `low`, says who goes on where not everyone can (docs/reference/breaker.md §8). It
is the subject's: all of its keys have the same.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import logging
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from extproc.errors import ServerFault
from extproc.file_watch import FileRefusedError, identity_of, read_file, unchanged
from extproc.priority import Priority
from extproc.subject import Subject, check_subject
from pch.algorithms import ALGORITHMS, HYBRIDS, KeyId, hybrid_name
from pch.errors import UnknownKey
from pch.keys import KeyFormatError, public_key_from_jwk, thumbprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from extproc.file_watch import FileIdentity
    from pch.algorithms import Algorithm, PublicKey

LOG: Final = logging.getLogger("signet.keyring")
MAX_ENTRIES: Final = 100_000
MAX_FILE_BYTES: Final = 64 << 20
OTHERS_WRITE: Final = 0o002
"""Whoever may write the keyring may register keys."""

_MEMBERS: Final = frozenset({"subject", "jwk", "not_before", "not_after", "status", "partner", "class"})
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z")


class KeyringError(ServerFault):
    """The keyring file is not usable; the message names the file and the entry, never a key."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One registered key.

    `not_before_ms`: the first valid millisecond. `not_after_ms`: the first invalid one. `partner`: the id of the key
    that it is half of a hybrid with; that key names this one. `priority`: the subject's class.
    """

    key_id: KeyId
    subject: Subject
    public_key: PublicKey
    not_before_ms: int | None
    not_after_ms: int | None
    revoked: bool
    partner: KeyId | None = None
    priority: Priority = Priority.NORMAL

    def check_dates(self, now_ms: int) -> None:
        """Check that the key is within its dates, PCH §4 step 4. Raises `UnknownKey`."""
        if self.not_before_ms is not None and now_ms < self.not_before_ms:
            raise UnknownKey("the key is not valid yet")
        if self.not_after_ms is not None and now_ms >= self.not_after_ms:
            raise UnknownKey("the key is not valid any more")


_DecodedKeys = dict[frozenset[tuple[str, object]], tuple["KeyId", "PublicKey"]]
"""Members of a JWK to its id and key. Checking an Ed25519 point takes 170 µs, finding it here 1 µs."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """An immutable set of registered keys; a changed file brings a new one."""

    entries: Mapping[str, KeyEntry] = field(default_factory=lambda: MappingProxyType({}))
    decoded: _DecodedKeys = field(default_factory=dict, repr=False)

    def lookup(self, key_id: str) -> KeyEntry:
        """Find a key by its id, revoked or not. Raises `UnknownKey`."""
        entry = self.entries.get(key_id)
        if entry is None:
            raise UnknownKey("no key is registered under this id")
        return entry

    def __len__(self) -> int:
        return len(self.entries)


def parse_keyring(
    content: bytes, *, known: Keyring | None = None, algorithms: Mapping[str, Algorithm] = ALGORITHMS
) -> Keyring:
    """Check the content of a keyring file and build the keyring.

    `known`: a keyring whose decoded keys may be used again, which makes reloading a large file quick. `algorithms`: the
    registry that loads keys. Raises `KeyringError` whose message lacks the file's name.
    """
    try:
        document = json.loads(content, object_pairs_hook=_object, parse_constant=_no_constant)
    except KeyringError:
        raise
    except (ValueError, RecursionError):
        # Not chained: the parser's error holds the whole document.
        raise KeyringError("is not JSON") from None
    if not isinstance(document, list):
        raise KeyringError("is not a JSON list")
    if len(document) > MAX_ENTRIES:
        raise KeyringError(f"has more than {MAX_ENTRIES} entries")
    entries: dict[str, KeyEntry] = {}
    known_keys = {} if known is None else known.decoded
    decoded: _DecodedKeys = {}
    for number, item in enumerate(document, 1):
        entry = _entry(number, item, _Decoder(known_keys, decoded, algorithms))
        if entry.key_id in entries:
            raise KeyringError(f"entry {number}: the key is there twice")
        entries[entry.key_id] = entry
    classes: dict[Subject, Priority] = {}
    for number, entry in enumerate(entries.values(), 1):
        if classes.setdefault(entry.subject, entry.priority) is not entry.priority:
            raise KeyringError(f"entry {number}: its class is another than that of its subject's earlier keys")
        if entry.partner is not None:
            _check_partner(number, entry, entries.get(entry.partner))
    return Keyring(MappingProxyType(entries), decoded)


def parse_time(text: object) -> int | None:
    """Read an RFC 3339 time in UTC (`2026-01-31T12:00:00Z`) or null, in milliseconds. Raises ValueError."""
    if text is None:
        return None
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        raise ValueError("must be an RFC 3339 time in UTC, such as 2026-01-31T12:00:00Z")
    when = dt.datetime.fromisoformat(text[:-1]).replace(tzinfo=dt.UTC)
    return round(when.timestamp() * 1000)


def read_keyring(path: Path) -> bytes:
    """Read the file. Raises `KeyringError`."""
    try:
        return read_file(path, max_bytes=MAX_FILE_BYTES, forbidden_mode=OTHERS_WRITE).content
    except FileRefusedError as error:
        raise KeyringError(str(error)) from error


class KeyringFile:
    """The keyring in force, swapped whole when the file changes. `current` may be read from any thread.

    A change that cannot be used keeps the keyring of before, and `problem` says why.
    """

    def __init__(self, path: Path, algorithms: Mapping[str, Algorithm] = ALGORITHMS) -> None:
        """Load `path`, its keys with the registry `algorithms`. Raises `KeyringError`."""
        self._path = path
        self._algorithms = algorithms
        self._problem: str | None = None
        self._seen: FileIdentity | None = identity_of(path)
        self._digest = b""
        self._current = Keyring()
        self._load()

    @property
    def current(self) -> Keyring:
        """Give the keyring in force."""
        return self._current

    @property
    def problem(self) -> str | None:
        """Say why the file as it is now is not in force; None when it is."""
        return self._problem

    async def watch(self, interval_s: float) -> None:
        """Look at the file every `interval_s` seconds, for ever; loading happens on another thread."""
        while True:
            await asyncio.sleep(interval_s)
            if not unchanged(self._seen, self._path):
                await asyncio.to_thread(self.reload)

    def reload(self) -> None:
        """Look at the file and take it in force if it changed and can be used. One caller at a time."""
        if unchanged(self._seen, self._path):
            return
        self._seen = identity_of(self._path)
        try:
            if self._load():
                LOG.info("keyring reloaded: %d keys", len(self._current))
            self._problem = None
        except KeyringError as error:
            if self._problem != str(error):
                LOG.error("keyring not reloaded, the old one stays in force: %s", error)
            self._problem = str(error)
        except Exception as error:
            # The watch must outlive whatever a file does; the last good keyring stays in force.
            LOG.exception("keyring not reloaded, the old one stays in force")
            self._problem = f"{self._path}: {type(error).__name__}"

    def _load(self) -> bool:
        content = read_keyring(self._path)
        digest = hashlib.sha256(content).digest()
        if digest == self._digest:
            return False
        try:
            self._current = parse_keyring(content, known=self._current, algorithms=self._algorithms)
        except KeyringError as error:
            raise KeyringError(f"{self._path}: {error}") from error
        self._digest = digest
        return True


def _entry(number: int, item: object, decoder: _Decoder) -> KeyEntry:
    if not isinstance(item, dict) or not item.keys() <= _MEMBERS:
        raise KeyringError(f"entry {number}: has unknown members, or is no object")
    if not item.keys() >= {"subject", "jwk", "status"}:
        raise KeyringError(f"entry {number}: needs subject, jwk and status")
    jwk = item["jwk"]
    try:
        subject = check_subject(item["subject"]) if isinstance(item["subject"], str) else None
        not_before_ms, not_after_ms = parse_time(item.get("not_before")), parse_time(item.get("not_after"))
    except ValueError as error:
        raise KeyringError(f"entry {number}: {error}") from error
    if subject is None:
        raise KeyringError(f"entry {number}: subject must be text")
    if not_before_ms is not None and not_after_ms is not None and not_before_ms >= not_after_ms:
        raise KeyringError(f"entry {number}: not_before must be earlier than not_after")
    if item["status"] not in {"active", "revoked"}:
        raise KeyringError(f"entry {number}: status must be active or revoked")
    if not isinstance(jwk, dict):
        raise KeyringError(f"entry {number}: jwk must be an object")
    partner = item.get("partner")
    if partner is not None and not isinstance(partner, str):
        raise KeyringError(f"entry {number}: partner must be a key id")
    if item.get("class", Priority.NORMAL) not in list(Priority):
        raise KeyringError(f"entry {number}: class must be high, normal or low")
    priority = Priority(item.get("class", Priority.NORMAL))
    key_id, public_key = decoder.key(number, jwk)
    revoked = item["status"] == "revoked"
    half_of = None if partner is None else KeyId(partner)
    return KeyEntry(key_id, subject, public_key, not_before_ms, not_after_ms, revoked, half_of, priority)


def _check_partner(number: int, entry: KeyEntry, partner: KeyEntry | None) -> None:
    """Check that two entries are one hybrid of one subject, PCH §3."""
    if partner is None:
        raise KeyringError(f"entry {number}: its partner is not registered")
    if partner.partner != entry.key_id:
        raise KeyringError(f"entry {number}: its partner does not name it as partner")
    if partner.subject != entry.subject:
        raise KeyringError(f"entry {number}: its partner is of another subject")
    halves = sorted((entry, partner), key=lambda half: half.public_key.algorithm.post_quantum)
    if hybrid_name(*(half.public_key.algorithm.name for half in halves)) not in HYBRIDS:
        raise KeyringError(f"entry {number}: the two keys are no hybrid, which are " + ", ".join(sorted(HYBRIDS)))


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Reads JWKs with the registry `algorithms`, or finds them in `known`; notes them in `decoded`."""

    known: _DecodedKeys
    decoded: _DecodedKeys
    algorithms: Mapping[str, Algorithm]

    def key(self, number: int, jwk: Mapping[str, Any]) -> tuple[KeyId, PublicKey]:
        members: frozenset[tuple[str, object]] | None
        try:
            members = frozenset(jwk.items())
            found = self.known.get(members)
        except TypeError:
            # A member is a list, such as key_ops: rare, and read anew each time.
            members = found = None
        try:
            key = found or (thumbprint(jwk), public_key_from_jwk(jwk, self.algorithms))
        except KeyFormatError as error:
            raise KeyringError(f"entry {number}: {error}") from error
        if members is not None:
            self.decoded[members] = key
        return key


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise KeyringError("has an object with the same member twice")
    return members


def _no_constant(name: str) -> object:
    raise KeyringError(f"holds {name}, which is not JSON")
