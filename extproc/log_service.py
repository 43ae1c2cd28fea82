"""The log inside the admin process: its integrator, and what the proof API answers from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
from typing import TYPE_CHECKING, Final

from extproc.custody import open_log_signer
from extproc.log_api import LogApi
from extproc.log_integrator import LogIntegrator
from extproc.policy_bundle import PolicyInForce, request_algorithms
from receipts.checkpoint_keys import KeyFileError
from receipts.cli_places import lookup_for
from receipts.log_errors import EntryUnknown, LogUnavailable
from receipts.log_notes import LogNotes
from receipts.log_reader import LogReader
from receipts.pack import PackSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from extproc.config import FilterConfig
    from receipts.signed_note import VerifierKey
    from receipts.sth import SignedTreeHead
    from receipts.store import ReceiptStore

CATCH_UP_S: Final = 5.0
"""How long a pack waits for the log to have what is stored; then it has what the log has."""


class LogService:
    """Everything about the log of `config`; `store` is for reading."""

    def __init__(self, config: FilterConfig, store: ReceiptStore, now_ms: Callable[[], int]) -> None:
        self._config, self._store = config, store
        self._policy = PolicyInForce(config, os.environ)
        signer = functools.partial(open_log_signer, config, create=True)
        self._integrator = LogIntegrator(config.log, config.receipts.url, self._policy.bundle, signer)
        self._lock = threading.Lock()
        self._opened: PackSource | None = None  # Owned by `_lock`.
        self.api = LogApi(self.source, lambda: now_ms() // 1000, self._catch_up)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Integrate while the server serves."""
        self._integrator.start()
        try:
            yield
        finally:
            self._integrator.stop()

    @property
    def problem(self) -> str | None:
        """Why nothing is integrated at the moment; None when it is, or when only the key service is waited for."""
        return None if self.degraded is not None else self._integrator.problem

    @property
    def degraded(self) -> str | None:
        """Say that heads wait for the key service, while receipts go on being stored; None when they do not."""
        waits = self._config.kms.signs_log and self._integrator.problem == LogUnavailable.code
        return "the key service: no head is signed" if waits else None

    @property
    def head(self) -> SignedTreeHead | None:
        """The newest signed head; None while nothing is integrated."""
        return self._integrator.head

    def source(self) -> PackSource:
        """Give what answers and packs are made from, with the keys and the policy of this moment.

        Raises EntryUnknown while there is no log, LogUnavailable.
        """
        config = self._config
        if not config.log.dir.is_dir():
            raise EntryUnknown("there is no log yet")
        keys, in_force = self._keys(), self._policy.config()
        policy, algorithms = self._policy.bundle(), request_algorithms(in_force)
        with self._lock:
            if self._opened is None:
                self._opened = PackSource(
                    store=self._store,
                    lookup=lookup_for(config.receipts.url, self._store),
                    reader=LogReader(config.log.dir),
                    notes=LogNotes(config.log.dir),
                    keys=keys,
                    policy=policy,
                    request_algorithms=algorithms,
                )
            return dataclasses.replace(self._opened, keys=keys, policy=policy, request_algorithms=algorithms)

    def _keys(self) -> tuple[VerifierKey, ...]:
        try:
            return open_log_signer(self._config, create=False).verifier_keys()
        except KeyFileError as error:
            raise LogUnavailable("the key file cannot be used") from error

    def _catch_up(self) -> None:
        newest = self._store.latest(1)
        if newest:
            self._integrator.catch_up(newest[0].seq, CATCH_UP_S)
