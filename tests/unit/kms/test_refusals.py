from __future__ import annotations

from collections import Counter

import pytest

from kms import refusals
from kms.audit_event import AuditEntry, AuditEvent
from kms.audit_record import encode_event, parse_record
from kms.errors import Backpressure, KmsError, NoCapability, StoreUnavailable
from kms.refusals import KINDS_A_RECORD, MAX_KINDS, OUTSIDE_PERIOD_S, REFUSALS_PER_S, SUMMARY_PERIOD_S, Refusals
from tests.support.kms_core import HandClock, ListedAudit


class Stage:
    def __init__(self) -> None:
        self.hand, self.audit = HandClock(), ListedAudit()
        self.refusals = Refusals(self.audit, self.hand.clock)

    async def refuse(self, op: str = "sign", error: KmsError | None = None) -> None:
        await self.refusals.record(
            op, error or NoCapability("no"), None, tenant="core", kid="", payload_b3="", op_id=""
        )


async def test_refusals_beyond_the_rate_are_counts_and_none_is_lost() -> None:
    stage = Stage()
    for _ in range(REFUSALS_PER_S + 7):
        await stage.refuse()
    await stage.refuse("verify")
    assert len(stage.audit.events) == REFUSALS_PER_S
    await stage.refusals.flush()
    assert stage.audit.of("refusals") == []
    stage.hand.now_s += 1.0
    await stage.refuse()
    for _ in range(2):
        await stage.refusals.flush()
    assert stage.audit.events[-1].detail == {"sign:unauth": "7", "verify:unauth": "1"}
    assert stage.audit.events[-2].op == "sign"
    await stage.refusals.flush(now=True)
    assert len(stage.audit.of("refusals")) == 1


async def test_a_refusal_for_want_of_room_waits_for_no_disk() -> None:
    stage = Stage()
    await stage.refuse(error=Backpressure("full"))
    assert stage.audit.events == []
    await stage.refusals.flush(now=True)
    assert stage.audit.events[0].detail == {"sign:backpressure": "1"}


@pytest.mark.parametrize("error", [StoreUnavailable("disk"), Backpressure("full")])
async def test_what_cannot_be_written_is_counted_until_it_can(error: KmsError) -> None:
    stage = Stage()
    stage.audit.error = error
    await stage.refuse()
    stage.hand.now_s += 2
    await stage.refuse()
    await stage.refusals.flush(now=True)
    stage.audit.error, stage.audit.fault = None, "integrity"
    await stage.refuse()
    await stage.refusals.flush(now=True)
    assert stage.audit.events == []
    stage.audit.fault = None
    await stage.refusals.flush(now=True)
    (summary,) = stage.audit.events
    assert summary.detail == {"sign:unauth": "3"}


async def test_what_was_refused_before_it_was_an_operation_is_a_count_every_ten_seconds() -> None:
    stage = Stage()
    for _ in range(1000):
        stage.refusals.count_outside("sign", "unauth")
    stage.hand.now_s += OUTSIDE_PERIOD_S - 0.5
    await stage.refusals.flush()
    assert stage.audit.events == []
    stage.hand.now_s += 0.5
    await stage.refusals.flush()
    assert [event.detail for event in stage.audit.events] == [{"sign:unauth": "1000"}]
    stage.refusals.count_outside("other", "not_found")
    await stage.refuse(error=Backpressure("full"))
    stage.hand.now_s += SUMMARY_PERIOD_S
    await stage.refusals.flush()
    assert stage.audit.events[1].detail == {"other:not_found": "1", "sign:backpressure": "1"}


async def test_no_count_is_cut_off_where_there_are_many_kinds() -> None:
    stage = Stage()
    for number in range(MAX_KINDS + 3):
        stage.refusals.count_outside("sign", f"reason{number:03}")
    await stage.refusals.flush(now=True)
    counts: Counter[str] = Counter()
    for event in stage.audit.events:
        record = parse_record(encode_event(event, 0, "", 0))
        assert record.detail == event.detail, "a record keeps all of it"
        counts.update({kind: int(count) for kind, count in record.detail.items()})
    assert (len(counts), counts.total(), counts["other"]) == (MAX_KINDS + 1, MAX_KINDS + 3, 3)


async def test_what_the_log_takes_of_many_records_is_not_written_twice() -> None:
    stage = Stage()
    for number in range(KINDS_A_RECORD + 1):
        stage.refusals.count_outside("sign", f"reason{number:03}")
    append, taken = stage.audit.append, 0

    async def takes_one(event: AuditEvent) -> AuditEntry:
        nonlocal taken
        taken += 1
        if taken == 2:
            raise StoreUnavailable("disk")
        return await append(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.audit, "append", takes_one)
        await stage.refusals.flush(now=True)
        await stage.refusals.flush()
        assert taken == 2, "tried again a second later"
        stage.hand.now_s += SUMMARY_PERIOD_S
        await stage.refusals.flush()
    kinds = [kind for event in stage.audit.events for kind in event.detail]
    assert len(kinds) == len(set(kinds)) == KINDS_A_RECORD + 1


async def test_kinds_of_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_KINDS", 2)
    stage = Stage()
    stage.audit.fault = "integrity"
    for reason in ("a", "b", "c", "d", "a"):
        await stage.refuse(error=NoCapability("no", reason=reason))
    stage.audit.fault = None
    await stage.refusals.flush(now=True)
    assert stage.audit.events[0].detail == {"sign:a": "2", "sign:b": "1", "other": "2"}
