"""The admin process as the one owner of log integration: a thread that takes stored receipts into the log.

It starts again after whatever may pass: another process that still holds the log, a full disk, a store out of reach.
It stops for good when what is stored contradicts what was signed; readiness then says so.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from typing import TYPE_CHECKING, Final

from receipts.canonical_json import canonical
from receipts.checkpoint_jwks import verifier_jwks
from receipts.checkpoint_keys import KeyFileError
from receipts.cli_places import POLICY_NAME, VERIFIER_KEYS_NAME, open_signer
from receipts.errors import StoreCorrupt, StoreError
from receipts.log import LogSettings, LogWriter
from receipts.log_errors import LogBusy
from receipts.log_notes import LogNotes
from receipts.open_store import open_store
from receipts.receipt_id import WriterId
from receipts.rotation import rotate_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from extproc.log_section import LogSection
    from receipts.rotation import RotatingSigner
    from receipts.signed_note import VerifierKey
    from receipts.sth import SignedTreeHead
    from receipts.store import ReceiptStore

LOG: Final = logging.getLogger("extproc.log")
RETRY_AFTER_S: Final = 1.0
LOOK_AT_KEYS_EVERY_S: Final = 60.0
DAY_S: Final = 86_400
CATCH_UP_POLL_S: Final = 0.02
STOP_S: Final = 5.0


class LogIntegrator:
    """Integrates the store at `store_url` into the log that `section` names, on a thread of its own.

    `policy` gives the policy bundle in force, which is kept in the log's folder for packs made on the command line.
    `signer` opens what signs the heads; by default the key file in the log's folder, made where there is none.
    """

    def __init__(
        self,
        section: LogSection,
        store_url: str,
        policy: Callable[[], bytes],
        signer: Callable[[], RotatingSigner] | None = None,
    ) -> None:
        self._section, self._store_url, self._policy = section, store_url, policy
        self._open_signer = signer or (lambda: open_signer(section.dir, section.origin, create=True))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-integrator", daemon=True)
        self._writer: LogWriter | None = None
        self._problem: str | None = None

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, at a point where nothing is half-done."""
        self._stop.set()
        self._thread.join(STOP_S)

    @property
    def problem(self) -> str | None:
        """Why nothing is integrated at the moment; None when it is. Any thread may read it."""
        writer = self._writer
        return self._problem or (None if writer is None else writer.problem)

    @property
    def head(self) -> SignedTreeHead | None:
        """The newest signed head, None while nothing is integrated. Any thread may read it."""
        writer = self._writer
        return None if writer is None else writer.head

    def catch_up(self, seq: int, wait_s: float) -> bool:
        """Wait until a signed head has the receipt `seq`, at most `wait_s`; return whether one has."""
        deadline_s = time.monotonic() + wait_s
        while time.monotonic() < deadline_s and not self._stop.is_set():
            head = self.head
            if head is not None and head.size >= seq:
                return True
            time.sleep(CATCH_UP_POLL_S)
        return False

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._integrate()
            except StoreCorrupt as error:
                # Not tried again: whatever is signed now might cover up what happened.
                self._problem = error.code
                LOG.critical("the log stopped: %s: %s", error.code, error)
                return
            except (StoreError, KeyFileError, OSError) as error:
                self._set_problem(error.code if isinstance(error, StoreError) else "key_file", error)
                self._stop.wait(RETRY_AFTER_S)

    def _integrate(self) -> None:
        """Open everything and integrate until told to stop. Raises StoreError, KeyFileError, OSError."""
        section = self._section
        store = open_store(self._store_url)
        try:
            signer = self._open_signer()
            settings = LogSettings(section.max_batch_receipts, section.max_batch_age_ms, section.poll_interval_ms)
            writer = LogWriter(store, section.dir, signer, origin=section.origin, settings=settings)
            try:
                self._writer = writer
                self._work(writer, store, signer)
            finally:
                self._writer = None
                writer.close()
        finally:
            store.close()

    def _work(self, writer: LogWriter, store: ReceiptStore, signer: RotatingSigner) -> None:
        look_at_keys_s = 0.0
        published: tuple[VerifierKey, ...] = ()
        policy = b""
        while not self._stop.is_set():
            try:
                # Before a head that they sign is seen: workers hold clients' checkpoints against them (PCH §7).
                published = self._publish_keys(signer, published)
                policy = self._keep_policy(policy)
                pause_s = 0.0 if writer.step() else self._section.poll_interval_ms / 1000
                self._problem = None
                if time.monotonic() >= look_at_keys_s:
                    look_at_keys_s = time.monotonic() + LOOK_AT_KEYS_EVERY_S
                    self._rotate_if_due(store, signer)
            except (StoreCorrupt, LogBusy):
                raise
            except StoreError as error:
                self._set_problem(error.code, error)
                pause_s = RETRY_AFTER_S
            if pause_s:
                self._stop.wait(pause_s)

    def _rotate_if_due(self, store: ReceiptStore, signer: RotatingSigner) -> None:
        if not signer.rotation_due(self._section.max_key_age_days * DAY_S):
            return
        index = rotate_keys(
            store,
            LogNotes(self._section.dir),
            signer,
            writer=WriterId(str(uuid.uuid4())),
            now_ms=time.time_ns() // 1_000_000,
            random_bytes=os.urandom,
        )
        LOG.info("the log's keys were rotated: entry %d names the new ones", index)

    def _publish_keys(self, signer: RotatingSigner, published: tuple[VerifierKey, ...]) -> tuple[VerifierKey, ...]:
        """Keep the log's public keys beside it, as a JWK set, and give them; `published` are there already."""
        keys = signer.verifier_keys()
        if keys != published:
            _keep(self._section.dir / VERIFIER_KEYS_NAME, canonical(verifier_jwks(keys)))
        return keys

    def _keep_policy(self, kept: bytes) -> bytes:
        """Keep the policy bundle in force beside the log, and give it; `kept` is there already."""
        policy = self._policy()
        if policy != kept:
            _keep(self._section.dir / POLICY_NAME, policy)
        return policy

    def _set_problem(self, code: str, error: Exception) -> None:
        if self._problem != code:
            LOG.warning("the log waits: %s: %s", code, error)
        self._problem = code


def _keep(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(data)
    unfinished.replace(path)
