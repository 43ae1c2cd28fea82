"""Sealing keys that the key service unwraps: at start, at a rotation, and never while a request waits.

A thread of its own asks the service. What it has unwrapped stays in memory alone, so that a worker goes on serving
while the service is away, for as long as the epochs that it knows are the ones that count. It tells so (`degraded`),
and finds the service again by itself.
"""

from __future__ import annotations

import base64
import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from extproc.file_watch import identity_of, unchanged
from extproc.sealing_keys import KEY_BYTES, RELOAD_INTERVAL_MS, SealingKey, SealingKeyError
from extproc.wrapped_keys import create_wrapped, read_wrapped
from kms.errors import BadRequest, Conflict, KmsError, NotFound
from kms.messages import GetKeyRequest, UnwrapRequest
from pch.errors import DependencyFault, StaleChallenge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from extproc.file_watch import FileIdentity
    from extproc.wrapped_keys import WrappedEpoch
    from kms.client import KmsClient

LOG: Final = logging.getLogger("signet.sealing")
ASK_EVERY_S: Final = 2.0
"""How often the service is asked whether it is there, when nothing else is asked of it."""
START_WAIT_S: Final = 5.0
"""How long a worker's start waits for its first key; without one it starts all the same, and refuses."""
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 2.0
_NEVER_UNWRAPS: Final = (BadRequest, Conflict, NotFound)
"""What the service answers about one envelope, or one version of its key: fenced, gone, or not what it wrapped."""


class SealingKeysAway(DependencyFault):
    """No sealing key could be unwrapped since this worker started."""


@dataclass(frozen=True, slots=True)
class _Unwrapped:
    current: SealingKey
    keys: dict[int, tuple[SealingKey, WrappedEpoch]]


class KmsSealingKeys:
    """Sealing keys in the file at `path`, wrapped under the key `key`. Any thread may ask; one thread of its own works.

    `clock_ms`: milliseconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        client: KmsClient,
        key: str,
        clock_ms: Callable[[], int],
        max_age_s: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._client, self._key, self._clock_ms = path, client, key, clock_ms
        self._max_age_ms, self._monotonic_s = max_age_s * 1000, monotonic_s
        # Both are replaced whole by the thread; whoever reads them sees one or the other.
        self._keys: _Unwrapped | None = None
        self._trouble: tuple[str, str] | None = None
        self._seen: FileIdentity | None = None
        self._unasked_s = 0.0
        self._woken_s = float("-inf")
        self._left_out: frozenset[int] = frozenset()
        self._stop, self._wake, self._first = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="sealing-keys", daemon=True)

    def start(self, wait_s: float = START_WAIT_S) -> None:
        """Start asking, and wait at most `wait_s` for the first key."""
        self._thread.start()
        self._first.wait(wait_s)

    def close(self) -> None:
        """Stop asking; the keys stay until the process ends."""
        self._stop.set()
        self._wake.set()

    @property
    def problem(self) -> str | None:
        """Say why nothing can be sealed or opened, or why the file is not in force; None when all is well."""
        trouble = self._trouble
        if self._keys is None:
            return "no key is unwrapped yet" if trouble is None else trouble[1]
        return trouble[1] if trouble is not None and trouble[0] == "file" else None

    @property
    def degraded(self) -> str | None:
        """Say that the key service is away while its keys here still serve; None when it is there."""
        trouble = self._trouble
        return trouble[1] if trouble is not None and trouble[0] == "service" and self._keys is not None else None

    def current(self) -> SealingKey:
        """Give the key that seals now. Raises `SealingKeysAway`."""
        if self._keys is None:
            raise SealingKeysAway("no sealing key could be unwrapped yet")
        return self._keys.current

    def by_epoch(self, epoch: int) -> SealingKey:
        """Give the key of `epoch`. Raises `StaleChallenge` when unknown or retired longer than max-age."""
        if self._keys is None:
            raise SealingKeysAway("no sealing key could be unwrapped yet")
        found = self._keys.keys.get(epoch)
        if found is None:
            # Another worker may have seen a rotation before us: the client comes again with a new challenge.
            self._wake.set()
            raise StaleChallenge("the sealing key of this epoch is not known")
        key, of_file = found
        if not of_file.opens_at(self._clock_ms(), self._max_age_ms):
            raise StaleChallenge("the sealing key of this epoch is retired")
        return key

    def reload(self) -> None:
        """Have the thread look at the file now."""
        self._wake.set()

    def _work(self) -> None:
        retry_s = FIRST_RETRY_S
        while not self._stop.is_set():
            try:
                self._look()
            except KmsError as error:
                self._tell("service", f"the key service: {error.reason}")
            except SealingKeyError as error:
                self._tell("file", str(error))
            else:
                self._tell(None, "")
                self._first.set()
                retry_s = FIRST_RETRY_S
                self._pause(RELOAD_INTERVAL_MS / 1000)
                continue
            # Not every worker at the same moment.
            self._stop.wait(retry_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            self._unasked_s = ASK_EVERY_S
            retry_s = min(retry_s * 2, LONGEST_RETRY_S)

    def _pause(self, seconds: float) -> None:
        """Wait for the next look. Waking brings it forward, but no sooner than `seconds` after the last time it did.

        A request wakes it before anything of it is verified: whoever floods us costs the service nothing.
        """
        began_s = self._monotonic_s()
        deaf_s = min(seconds, max(0.0, self._woken_s + seconds - began_s))
        self._stop.wait(deaf_s)
        if self._wake.wait(seconds - deaf_s):
            self._woken_s = self._monotonic_s()
        self._wake.clear()
        self._unasked_s += self._monotonic_s() - began_s

    def _tell(self, kind: str | None, text: str) -> None:
        trouble = None if kind is None else (kind, text)
        if trouble != self._trouble:
            LOG.log(logging.INFO if trouble is None else logging.WARNING, "sealing keys: %s", text or "all is well")
        self._trouble = trouble

    def _look(self) -> None:
        """Take the file in force if it changed; ask the service for something now and then. Raises KmsError."""
        if not self._path.exists():
            create_wrapped(self._path, self._client, self._key, self._clock_ms())
        if self._keys is None or not unchanged(self._seen, self._path):
            seen = identity_of(self._path)
            self._keys = self._unwrap(read_wrapped(self._path))
            self._seen = seen
        if self._unasked_s >= ASK_EVERY_S:
            self._client.get_key(GetKeyRequest(kid=self._key))
            self._unasked_s = 0.0

    def _unwrap(self, epochs: list[WrappedEpoch]) -> _Unwrapped:
        known = {} if self._keys is None else self._keys.keys
        keys: dict[int, tuple[SealingKey, WrappedEpoch]] = {}
        current, left_out = epochs[-1], set()
        # The current one first: no retired one keeps it from being used.
        for each in (current, *epochs[:-1]):
            before = known.get(each.epoch)
            if before is not None and before[1].wrapped_b64 == each.wrapped_b64:
                keys[each.epoch] = (before[0], each)
            elif each.opens_at(self._clock_ms(), self._max_age_ms):
                try:
                    keys[each.epoch] = (self._unwrap_one(each), each)
                except _NEVER_UNWRAPS as error:
                    if each is current:
                        raise
                    left_out.add(each.epoch)
                    if each.epoch not in self._left_out:
                        LOG.warning("sealing keys: epoch %d, retired, opens nothing: %s", each.epoch, error.reason)
                    self._left_out |= {each.epoch}
        self._left_out = frozenset(left_out)
        return _Unwrapped(keys[current.epoch][0], keys)

    def _unwrap_one(self, epoch: WrappedEpoch) -> SealingKey:
        answer = self._client.unwrap(UnwrapRequest(kid=epoch.kid, wrapped_b64=epoch.wrapped_b64))
        self._unasked_s = 0.0
        key = base64.b64decode(answer.plaintext_key_b64)
        if len(key) != KEY_BYTES:
            raise SealingKeyError(f"{self._path}: an unwrapped key is not {KEY_BYTES} bytes")
        return SealingKey(epoch.epoch, key)
