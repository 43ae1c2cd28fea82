"""A key store that was put back remembers an older head; the audit log tells which one was signed last."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from kms.audit_log import AuditSettings, ChainedAuditLog
from kms.audit_open import open_audit_log
from kms.audit_record import AuditRecord, encode_event, parse_record
from kms.audit_restore import restore
from kms.audit_tlog import AuditedHeads
from kms.errors import Conflict
from kms.key_record import KeyRecord, KeyState, LastHead
from kms.key_store import KeyStore
from kms.messages import CheckpointRequest
from kms.providers.inmem import InMemoryProvider
from kms.telemetry import Telemetry
from receipts.merkle_prove import prove_consistency
from tests.support import merkle_reference as reference
from tests.support.kms_audit import event
from tests.support.kms_core import Bench, HandClock, ListedAudit, running_core
from tests.support.kms_records import name_of, record_of
from tests.support.log_parts import ORIGIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TRUE = [reference.leaf(number) for number in range(32)]
FORGED = [*TRUE[:1], *(reference.leaf(number + 1000) for number in range(31))]


class Service:
    """A real core over a real key store and audit log, in one folder; the provider outlives both."""

    def __init__(self, folder: Path) -> None:
        self.state, self.audit, self.copies = folder / "state", folder / "audit", folder / "copies"
        self.provider, self.hand = InMemoryProvider(), HandClock()
        self._integrity: str | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bench]:
        with contextlib.closing(KeyStore(self.state, self.hand.clock)) as store:
            log = open_audit_log(
                self.audit,
                self.provider,
                telemetry=Telemetry(),
                state=store,
                settings=AuditSettings(append_s=10),
                clock=self.hand.clock,
            )
        self._integrity = log.integrity()
        try:
            audit = cast("ListedAudit", log)
            async with running_core(provider=self.provider, directory=self.state, log=audit, hand=self.hand) as bench:
                if isinstance(log, ChainedAuditLog):
                    await bench.core.dispatcher.settle(at_start=True)
                yield bench
        finally:
            log.close()

    def integrity(self) -> str | None:
        """Say what the last start found."""
        return self._integrity

    def copy(self, name: str) -> None:
        shutil.copytree(self.state, self.copies / name / "state")
        shutil.copytree(self.audit, self.copies / name / "audit")

    def put_back(self, name: str, *what: str) -> None:
        for each in what:
            shutil.rmtree(self.state.with_name(each))
            shutil.copytree(self.copies / name / each, self.state.with_name(each))

    def accept(self) -> dict[str, str]:
        with contextlib.closing(KeyStore(self.state, self.hand.clock)) as store:
            return restore(self.audit, self.provider, state=store, clock=self.hand.clock)

    def ops(self) -> list[str]:
        return [json.loads(line)["op"] for line in (self.audit / "00000000.records").read_bytes().splitlines()]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def request(kid: str, old: int, new: int, leaves: list[bytes] = TRUE) -> CheckpointRequest:
    proof = [each.hex() for each in prove_consistency(reference.LeafNodes(leaves), old, new)]
    root = reference.mth(leaves[:new]).hex()
    return CheckpointRequest(kid=kid, origin=ORIGIN, old_size=old, new_size=new, root=root, consistency=proof)


async def signed_to(service: Service, *, heads: tuple[int, ...], kid: str = "") -> str:
    async with service.running() as bench:
        kid = kid or await bench.create("hybrid", purpose="tlog")
        for old, new in itertools.pairwise(heads):
            await bench.call("checkpoint", request(kid, old, new))
    return kid


async def test_after_a_key_store_was_put_back_a_tlog_key_goes_on_from_the_newest_head(service: Service) -> None:
    kid = await signed_to(service, heads=(0, 1))
    service.copy("early")
    service.hand.now_s += 100
    await signed_to(service, heads=(1, 2, 7), kid=kid)
    service.put_back("early", "state")
    async with service.running():
        assert service.integrity() == "key_store_rolled_back"
    told = service.accept()
    assert (told["fault"], told["tlog_restored"]) == ("key_store_rolled_back", "1")
    service.hand.now_s -= 100
    async with service.running() as bench:
        assert service.integrity() is None
        for size in (2, 7, 9):
            with pytest.raises(Conflict) as caught:
                await bench.call("checkpoint", request(kid, 1, size, FORGED))
            assert (caught.value.reason, caught.value.hint) == ("stale_size", "signed_size=7")
        record = next(iter(bench.store.keys))
        assert record.last_head == LastHead(ORIGIN, 7, reference.mth(TRUE[:7]), 1_700_001_100)
        assert (await bench.call("checkpoint", request(kid, 7, 20))).note
    assert "tlog_restored" in service.ops()
    async with service.running():
        assert service.integrity() is None


async def test_where_the_records_are_not_those_that_were_signed_a_key_that_is_behind_is_disabled(
    service: Service,
) -> None:
    kid = await signed_to(service, heads=(0, 1))
    service.copy("early")
    await signed_to(service, heads=(1, 2, 7), kid=kid)
    service.put_back("early", "state")
    path = service.audit / "00000000.records"
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:-1]))
    told = service.accept()
    assert (told["fault"], told["tlog_disabled"]) == ("truncated", "1")
    async with service.running() as bench:
        assert service.integrity() is None
        with pytest.raises(Conflict) as caught:
            await bench.call("checkpoint", request(kid, 1, 7, FORGED))
        assert caught.value.reason == "key_disabled"
    assert "tlog_disabled" in service.ops()


async def test_a_crash_while_it_is_accepted_lets_nothing_be_signed_until_it_is_accepted_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    kid = await signed_to(service, heads=(0, 1))
    service.copy("early")
    await signed_to(service, heads=(1, 2), kid=kid)
    for step in ("kms.key_store.KeyStore.apply_now", "kms.audit_restore.encode_event", "kms.audit_restore.sign_now"):
        service.copy(step)
        service.put_back("early", "state")
        with monkeypatch.context() as patch:
            patch.setattr(step, crash)
            with pytest.raises(KeyboardInterrupt):
                service.accept()
        async with service.running():
            assert service.integrity() == "head"
        service.accept()
        async with service.running() as bench:
            assert service.integrity() is None
            with pytest.raises(Conflict):
                await bench.call("checkpoint", request(kid, 1, 2, FORGED))
        service.put_back(step, "state", "audit")


def crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


async def test_a_key_store_that_is_whole_keeps_its_heads_when_the_log_is_accepted(service: Service) -> None:
    kid = await signed_to(service, heads=(0, 1))
    service.copy("early")
    await signed_to(service, heads=(1, 3, 7), kid=kid)
    service.put_back("early", "audit")
    told = service.accept()
    assert told["fault"] == "audit_rolled_back"
    assert not {"tlog_restored", "tlog_disabled"} & told.keys()
    async with service.running() as bench:
        assert (await bench.call("checkpoint", request(kid, 7, 20))).note


def test_only_a_store_that_is_not_started_is_changed_at_once(tmp_path: Path) -> None:
    with contextlib.closing(KeyStore(tmp_path, HandClock().clock)) as store:
        store.start()
        with pytest.raises(RuntimeError):
            store.apply_now([])


# Which change a key needs

NAME = replace(name_of(1), purpose="tlog", alg="hybrid")
HEAD = LastHead(ORIGIN, 7, b"7" * 32, 50)


def audited(**changes: Any) -> AuditRecord:
    detail = {"origin": ORIGIN, "size": "7", "root": (b"7" * 32).hex()}
    record = parse_record(encode_event(event("checkpoint", **{**detail, **changes.pop("detail", {})}), 0, "", 60_999))
    return msgspec.structs.replace(record, **{"kid": str(NAME.version(1)), **changes})


def key(head: LastHead | None, **changes: Any) -> KeyRecord:
    return replace(record_of(NAME), last_head=head, **changes)


def changes_of(record: KeyRecord, *records: AuditRecord, believed: bool = True) -> list[tuple[str, KeyRecord]]:
    heads = AuditedHeads()
    for each in records:
        heads.add(each)
    made = heads.changes([record], believed=believed)
    assert all(each.former is record for each in made)
    return [(each.verb, each.record) for each in made]


@pytest.mark.parametrize(
    ("head", "believed", "verb"),
    [
        (None, True, "tlog_restored"),
        (LastHead(ORIGIN, 0, b"0" * 32, 9), True, "tlog_restored"),
        (LastHead(ORIGIN, 6, b"6" * 32, 9), True, "tlog_restored"),
        (LastHead(ORIGIN, 6, b"6" * 32, 90), True, "tlog_restored"),
        (LastHead(ORIGIN, 6, b"6" * 32, 9), False, "tlog_disabled"),
        (None, False, "tlog_disabled"),
        (HEAD, True, ""),
        (HEAD, False, ""),
        (LastHead(ORIGIN, 8, b"8" * 32, 9), False, ""),
        (LastHead(ORIGIN, 7, b"x" * 32, 9), True, "tlog_disabled"),
        (LastHead("other.example/log", 6, b"6" * 32, 9), True, "tlog_disabled"),
        (LastHead("other.example/log", 8, b"6" * 32, 9), True, "tlog_disabled"),
    ],
)
def test_a_key_behind_goes_forward_and_one_that_contradicts_is_disabled(
    head: LastHead | None, believed: bool, verb: str
) -> None:
    found = changes_of(key(head), audited(), believed=believed)
    if verb == "tlog_restored":
        time_s = max(60, 0 if head is None else head.time_s)
        assert found == [(verb, key(replace(HEAD, time_s=time_s)))]
    elif verb:
        assert found == [(verb, key(head, state=KeyState.DISABLED))]
    else:
        assert found == []


def test_the_newest_of_its_heads_counts_and_other_records_do_not() -> None:
    old = LastHead(ORIGIN, 1, b"1" * 32, 9)
    smaller = audited(detail={"size": "5", "root": (b"5" * 32).hex()})
    assert changes_of(key(old), audited(), smaller) == changes_of(key(old), smaller, audited())
    assert changes_of(key(old, state=KeyState.DESTROYED), audited()) == []
    assert changes_of(key(LastHead("x", 1, b"1" * 32, 9), state=KeyState.DISABLED), audited()) == []
    for other in (
        audited(op="sign"),
        audited(result="unavailable"),
        audited(kid="nothing"),
        audited(kid=str(name_of(1).version(1))),
        audited(detail={"size": "-1"}),
        audited(detail={"size": "x"}),
        audited(detail={"root": "77"}),
        audited(detail={"root": "x"}),
        msgspec.structs.replace(audited(), detail={"epoch": "1", "settled": "true"}),
    ):
        assert changes_of(key(old), other) == [], other
