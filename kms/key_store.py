"""Key metadata: durable, swapped whole, counted (I-5, I-6, I-14). Private halves are with the providers.

A change, the op_id's answer and the note that its audit event is still to be written go into one transaction. The event
follows; then the note is dropped with the next transaction. So whatever the moment of a crash, at start each note
that is left is audited (`Dispatcher.settle`), and nothing durable is ever without its event.

Ownership: the commit thread alone uses the connection and writes the index, the answers, the digest and the epoch;
other threads read them. `_audited` is the event loop's until the commit thread takes the set as a whole.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from kms.errors import Backpressure, Conflict, Internal, KmsError, StoreUnavailable, Timeout
from kms.key_change import AppliedChange, KeyChange
from kms.key_index import KeyIndex, held_parts
from kms.key_record import decode_record, encode_record
from kms.op_answers import OpAnswer, OpAnswers, OpKey
from kms.state_digest import StateDigest
from kms.state_file import open_state, unavailable
from receipts.errors import StoreClosed, StoreOverloaded, StoreTimeout
from receipts.group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kms.clock import Clock
    from kms.key_record import KeyRecord
    from kms.kid import KeyName

MAX_PENDING_CHANGES: Final = 1024
MAX_BATCH_CHANGES: Final = 64
COMMIT_TIMEOUT_S: Final = 2.0
DRAIN_S: Final = 3.0
NOT_COMMITTED: Final = "key_store"
"""The reason when a transaction was rolled back: nothing of it was made."""


class KeyStore:
    """The keys of one service. `directory` None keeps them in memory (amnesia)."""

    def __init__(self, directory: Path | None, clock: Clock) -> None:
        """Open and check. Raises StoreUnavailable when the file cannot be used or contradicts itself."""
        self._clock = clock
        self.keys = KeyIndex()
        self._answers: OpAnswers[bytes] = OpAnswers()
        self._unaudited: dict[int, AppliedChange] = {}
        self._audited: set[int] = set()
        self._forgotten: list[OpKey] = []
        self._digest = StateDigest()
        self._file = open_state(directory)
        try:
            with unavailable():
                self._load()
        except BaseException:
            self._file.close()
            raise
        self._commits: GroupCommit[KeyChange, AppliedChange] = GroupCommit(
            self._apply,
            name="kms-key-store",
            max_batch_items=MAX_BATCH_CHANGES,
            max_pending_items=MAX_PENDING_CHANGES,
            on_close=self._file.close,
        )
        self._started = False

    def start(self) -> None:
        """Start the commit thread; once."""
        self._commits.start()
        self._started = True

    def close(self) -> None:
        """Commit what is queued, let go of the file. A second call does nothing."""
        if self._started:
            self._commits.close(DRAIN_S)
        else:
            self._file.close()

    @property
    def epoch(self) -> int:
        """Count the changes ever made; it never sinks."""
        return self._state[0]

    def state_digest(self) -> str:
        """Hash every record at the present epoch (hex): what the audit log anchors."""
        return self._state[1]

    def find_answer(self, op: OpKey, request_digest: bytes) -> OpAnswer[bytes] | None:
        """Give the answer to an op_id. Raises Conflict when it was used for another request."""
        return self._answers.find(op, request_digest, self._clock.wall_ms())

    def unaudited(self) -> list[AppliedChange]:
        """List the changes whose audit event is not known to be on disk, oldest first."""
        return [change for epoch, change in sorted(self._unaudited.items()) if epoch not in self._audited]

    def unaudited_of(self, op: OpKey) -> AppliedChange | None:
        """Give the change of an op_id whose audit event is not known to be on disk."""
        wanted = (op.tenant, op.op, op.op_id)
        return next((each for each in self.unaudited() if (each.tenant, each.verb, each.op_id) == wanted), None)

    def mark_audited(self, epoch: int) -> None:
        """Note that a change's event is on disk. The note is made durable with the next change."""
        self._audited.add(epoch)

    async def commit(self, change: KeyChange) -> AppliedChange:
        """Make a change durable.

        Raises Conflict when the key changed since `change.former` was read, or its op_id was used; StoreUnavailable,
        Backpressure, Timeout (it may have been made).
        """
        try:
            return await self._commits.submit(change, COMMIT_TIMEOUT_S)
        except StoreOverloaded as error:
            raise Backpressure("too many key changes wait") from error
        except StoreTimeout as error:
            raise Timeout("the key store did not answer in time") from error
        except StoreClosed as error:
            raise StoreUnavailable("the key store is closed", reason="key_store_closed") from error

    def apply_now(self, changes: Sequence[KeyChange]) -> list[AppliedChange]:
        """Make changes durable in one transaction, before the store is started: for an operator's restore.

        Raises StoreUnavailable, and what `commit` raises when one cannot be made; the others then are.
        """
        if self._started:
            raise RuntimeError("the store's thread makes its changes")
        applied = []
        for outcome in self._apply(changes):
            if isinstance(outcome, Exception):
                raise outcome
            applied.append(outcome)
        return applied

    def _load(self) -> None:
        connection = self._file.connection
        rows: dict[str, bytes] = dict(connection.execute("SELECT name, record FROM keys"))
        for name, data in rows.items():
            try:
                record = decode_record(data)
            except ValueError as error:
                raise StoreUnavailable("the key store contradicts itself", reason="key_store_corrupt") from error
            if str(record.name) != name:
                raise StoreUnavailable("the key store contradicts itself", reason="key_store_corrupt")
            self.keys.put(record)
        self._digest.load(rows)
        (epoch,) = connection.execute("SELECT epoch FROM state").fetchone()
        self._state = (int(epoch), self._digest.hex(epoch))
        for tenant, op, op_id, digest, answer, created_ms in connection.execute(
            "SELECT tenant, op, op_id, request_digest, answer, created_ms FROM ops ORDER BY created_ms, epoch"
        ):
            self._forgotten += self._answers.put(OpKey(tenant, op, op_id), OpAnswer(digest, answer, created_ms))
        for number, raw in connection.execute("SELECT epoch, change FROM unaudited"):
            self._unaudited[number] = msgspec.msgpack.decode(raw, type=AppliedChange)

    def _apply(self, changes: Sequence[KeyChange]) -> list[AppliedChange | Exception]:
        """Commit a batch in one transaction; on the commit thread."""
        audited = set(self._audited)
        batch = _Batch(self.epoch)
        with unavailable():
            connection = self._file.connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                # First: an answer that was let go may be one of an op_id that this batch uses again.
                self._forget()
                outcomes = [self._write(change, batch) for change in changes]
                self._tidy(audited, batch.epoch)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                for name in batch.records:
                    self._reset_digest(name)
                raise
        self._take_over(batch, audited)
        return outcomes

    def _write(self, change: KeyChange, batch: _Batch) -> AppliedChange | Exception:
        name, record = change.record.name, change.record
        try:
            if batch.records.get(name, self.keys.get(name)) is not change.former:
                raise Conflict("the key was changed by another request meanwhile", reason="rotate_race")
            if change.op is not None and (
                change.op in batch.answers or self.find_answer(change.op, change.request_digest)
            ):
                raise Conflict("a request with this op_id was being served", reason="op_id_race")
            added = len(record.versions) - (0 if change.former is None else len(change.former.versions))
            self.keys.check_room(name.tenant, versions=batch.added_versions + added)
            place, added_parts = (name.tenant, record.provider), self._check_parts(change, batch)
            # Here, where a record that has no form refuses its own change and not the batch.
            data = encode_record(record)
        except KmsError as error:
            return error
        except (OverflowError, TypeError, ValueError, msgspec.MsgspecError) as error:
            refused = Internal("the key's record cannot be written")
            refused.__cause__ = error
            return refused
        connection, now_ms = self._file.connection, self._clock.wall_ms()
        former_digest = self._state[1] if not batch.applied else batch.applied[-1].digest
        batch.epoch += 1
        batch.added_versions += added
        batch.added_parts[place] += added_parts
        batch.records[name] = record
        self._digest.put(str(name), data)
        applied = AppliedChange(
            batch.epoch,
            self._digest.hex(batch.epoch),
            former_digest,
            change.verb,
            name.tenant,
            change.kid,
            name.alg,
            change.op.op_id if change.op is not None else "",
            change.actor,
            change.corr_id,
        )
        batch.applied.append(applied)
        connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (str(name), data))
        connection.execute("INSERT INTO unaudited VALUES (?, ?)", (batch.epoch, msgspec.msgpack.encode(applied)))
        if change.op is not None:
            op = change.op
            batch.answers[op] = OpAnswer(change.request_digest, change.answer, now_ms)
            connection.execute(
                "INSERT OR REPLACE INTO ops VALUES (?, ?, ?, ?, ?, ?, ?)",
                (op.tenant, op.op, op.op_id, change.request_digest, change.answer, batch.epoch, now_ms),
            )
        return applied

    def _check_parts(self, change: KeyChange, batch: _Batch) -> int:
        """Give how many parts a change adds. Raises StoreUnavailable when the tenant may not have them."""
        record, most = change.record, change.tenant_parts_max
        added = held_parts(record) - (0 if change.former is None else held_parts(change.former))
        if most is not None and added > 0:
            tenant, provider = record.name.tenant, record.provider
            self.keys.check_parts(tenant, provider, parts=batch.added_parts[tenant, provider] + added, most=most)
        return added

    def _tidy(self, audited: set[int], epoch: int) -> None:
        """Write the epoch; drop the notes whose events are on disk."""
        connection = self._file.connection
        if epoch != self.epoch:
            connection.execute("UPDATE state SET epoch = ?", (epoch,))
        connection.executemany("DELETE FROM unaudited WHERE epoch = ?", [(each,) for each in audited])

    def _forget(self) -> None:
        """Drop the answers that were let go."""
        gone = [(op.tenant, op.op, op.op_id) for op in self._forgotten]
        self._file.connection.executemany("DELETE FROM ops WHERE tenant = ? AND op = ? AND op_id = ?", gone)

    def _take_over(self, batch: _Batch, audited: set[int]) -> None:
        """Show readers what has become durable."""
        for change in batch.applied:
            self._unaudited[change.epoch] = change
        for epoch in audited:
            self._unaudited.pop(epoch, None)
            self._audited.discard(epoch)
        for record in batch.records.values():
            self.keys.put(record)
        gone = [each for op, answer in batch.answers.items() for each in self._answers.put(op, answer)]
        # One that fell out and was put again in this same batch is there.
        self._forgotten = [op for op in gone if op not in self._answers]
        if batch.applied:
            self._state = (batch.epoch, batch.applied[-1].digest)

    def _reset_digest(self, name: KeyName) -> None:
        record = self.keys.get(name)
        if record is None:
            self._digest.drop(str(name))
        else:
            self._digest.put(str(name), encode_record(record))


class _Batch:
    """What one transaction will have changed."""

    __slots__ = ("added_parts", "added_versions", "answers", "applied", "epoch", "records")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.added_versions = 0
        self.added_parts: Counter[tuple[str, str]] = Counter()
        self.records: dict[KeyName, KeyRecord] = {}
        self.answers: dict[OpKey, OpAnswer[bytes]] = {}
        self.applied: list[AppliedChange] = []
