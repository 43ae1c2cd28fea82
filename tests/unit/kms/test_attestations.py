"""Evidence: fresh, bounded, and a gate that does not hang (I-12)."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from kms import attestations
from kms.attestations import FRESH_S, RETRY_S, Attestations, AttestRequirement
from kms.errors import AttestationMissing, StoreUnavailable
from kms.providers.provider import Attestation, KeyHandle
from kms.telemetry import Telemetry
from kms.work_pool import WorkPool
from tests.support.kms_core import HandClock
from tests.support.kms_providers import StagedProvider


class Stage:
    def __init__(self, requirement: AttestRequirement = "if-available", deadline_s: float = 3.0) -> None:
        self.hand, self.telemetry, self.pool = HandClock(), Telemetry(), WorkPool(1)
        self.provider = StagedProvider(class_="tpm")
        self.attestations = Attestations(
            requirement, self.pool, self.telemetry, self.hand.clock, os.urandom, deadline_s=deadline_s
        )

    async def gate(self, handle: str = "h") -> Attestation | None:
        return await self.attestations.gate("core", self.provider, KeyHandle(handle))

    @property
    def asked(self) -> int:
        return self.provider.calls.count("attest")

    def operations(self, result: str) -> float:
        labels = {"op": "attest", "alg": "none", "result": result}
        return self.telemetry.registry.get_sample_value("kms_ops_total", labels) or 0.0

    def count(self, result: str) -> float:
        labels = {"backend": "staged", "result": result}
        return self.telemetry.registry.get_sample_value("kms_attest_total", labels) or 0.0


async def test_evidence_stands_for_a_session_and_is_then_taken_anew() -> None:
    stage = Stage()
    for _ in range(3):
        assert await stage.gate() == Attestation("tpm", b"evidence")
    assert stage.asked == 1
    await stage.gate("another key")
    assert stage.asked == 2
    stage.hand.now_s += FRESH_S + 1
    await stage.gate()
    assert stage.asked == 3
    assert stage.count("ok") == 3
    assert stage.operations("ok") == 3


async def test_a_failure_is_not_asked_for_again_at_once_and_required_stays_required() -> None:
    stage = Stage("required")

    def away() -> Attestation:
        raise StoreUnavailable("away")

    stage.provider.evidence = away
    for _ in range(3):
        with pytest.raises(AttestationMissing):
            await stage.gate()
    assert (stage.asked, stage.count("err"), stage.operations("err")) == (1, 1, 1)
    stage.provider.evidence = lambda: Attestation("tpm", b"again")
    stage.hand.now_s += RETRY_S + 1
    assert await stage.gate() == Attestation("tpm", b"again")


async def test_a_provider_that_hangs_ends_at_the_deadline() -> None:
    stage = Stage("required", deadline_s=0.02)
    release = threading.Event()

    def hang() -> None:
        release.wait(5)

    stage.provider.evidence = hang
    with pytest.raises(AttestationMissing):
        await stage.gate()
    assert stage.telemetry.registry.get_sample_value("io_timeouts_total", {"op": "attest"}) == 1
    release.set()
    stage.pool.close()


class Hanging:
    """Evidence that comes when a test lets it come."""

    def __init__(self, stage: Stage) -> None:
        self.release = threading.Event()
        stage.provider.evidence = self.give

    def give(self) -> Attestation:
        self.release.wait(5)
        return Attestation("tpm", b"late")


async def give_up_waiting(stage: Stage, handle: str = "h") -> None:
    """Ask as a signature does whose own deadline comes first."""
    task = asyncio.create_task(stage.gate(handle))
    while not stage.asked:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_look_up_that_its_signature_gave_up_goes_on_and_its_evidence_is_kept() -> None:
    stage = Stage("required")
    hanging = Hanging(stage)
    await give_up_waiting(stage)
    others = [asyncio.create_task(stage.gate()) for _ in range(3)]
    await asyncio.sleep(0)
    hanging.release.set()
    assert await asyncio.gather(*others) == [Attestation("tpm", b"late")] * 3
    assert await stage.gate() == Attestation("tpm", b"late")
    assert (stage.asked, stage.count("ok")) == (1, 1)


@pytest.mark.parametrize("requirement", ["if-available", "required"])
async def test_while_evidence_hangs_one_look_up_at_a_time_asks_and_nobody_else_waits(
    requirement: AttestRequirement,
) -> None:
    stage = Stage(requirement, deadline_s=0.02)
    stage.pool = stage.attestations._pool = WorkPool(4)
    hanging = Hanging(stage)

    async def without(handle: str) -> None:
        if requirement == "required":
            with pytest.raises(AttestationMissing):
                await stage.gate(handle)
        else:
            assert await stage.gate(handle) is None

    await without("a")
    for handle in ("a", "b", "c"):
        await asyncio.wait_for(without(handle), 1)
    assert stage.asked == 1
    # Due again: one look-up finds out, and only one that requires evidence waits for it.
    stage.hand.now_s += RETRY_S + 1
    stage.attestations._deadline_s = 5.0
    first = asyncio.create_task(without("a") if requirement == "if-available" else stage.gate("a"))
    while stage.asked < 2:
        await asyncio.sleep(0.001)
    for handle in ("b", "c"):
        await asyncio.wait_for(without(handle), 1)
    assert (stage.asked, first.done()) == (2, requirement == "if-available")
    hanging.release.set()
    await first
    while stage.attestations._looks:
        await asyncio.sleep(0.001)
    # It came: several look-ups at once again.
    assert await asyncio.gather(*(stage.gate(handle) for handle in "aby")) == [Attestation("tpm", b"late")] * 3
    stage.pool.close()


async def test_a_fault_in_a_look_up_that_nobody_waits_for_is_not_kept() -> None:
    stage = Stage()
    release = threading.Event()

    def broken() -> Attestation:
        release.wait(5)
        raise RuntimeError("broken")

    stage.provider.evidence = broken
    await give_up_waiting(stage)
    release.set()
    while stage.attestations._looks:
        await asyncio.sleep(0.001)
    with pytest.raises(RuntimeError):
        await stage.gate()
    assert stage.asked == 2


async def test_evidence_is_kept_for_a_bounded_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestations, "MAX_ENTRIES", 2)
    stage = Stage()
    for handle in ("a", "b", "c", "a"):
        await stage.gate(handle)
    assert stage.asked == 4
    assert len(stage.attestations._entries) == 2


async def test_never_means_that_nobody_is_asked() -> None:
    stage = Stage("never")
    assert await stage.gate() is None
    assert stage.asked == 0
