from __future__ import annotations

import pytest

from kms import refusals
from kms.errors import Backpressure, KmsError, NoCapability, StoreUnavailable
from kms.refusals import REFUSALS_PER_S, Refusals
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


async def test_kinds_of_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_KINDS", 2)
    stage = Stage()
    stage.audit.fault = "integrity"
    for reason in ("a", "b", "c", "d", "a"):
        await stage.refuse(error=NoCapability("no", reason=reason))
    stage.audit.fault = None
    await stage.refusals.flush(now=True)
    assert stage.audit.events[0].detail == {"sign:a": "2", "sign:b": "1", "other": "2"}
