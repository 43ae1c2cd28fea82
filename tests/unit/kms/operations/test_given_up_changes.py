"""Changes whose caller goes away: whole and audited, or not begun; no private half is left without a name."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from kms import key_store
from kms.errors import Backpressure, Internal, StoreUnavailable, Timeout
from kms.key_change import KeyChange
from kms.key_record import KeyRecord
from kms.kid import parse_kid
from kms.messages import ChangeKeyStateRequest, CreateKeyRequest, DeriveRequest, Message, RotateKeyRequest
from kms.operations import change, key_state
from kms.primitive import Primitive
from kms.providers.file import open_file_provider
from tests.support.kms_core import Bench, running_core
from tests.support.kms_providers import StagedProvider

OP_ID = "8f9a2c34-0000-4000-8000-00000000000b"
ONE_THREAD = {"worker_threads": 1, "backend": "inmem"}


def create_request(**more: Any) -> CreateKeyRequest:
    return CreateKeyRequest(**{"tenant": "core", "purpose": "app", "alg": "hybrid", **more})


async def request_of(op: str, bench: Bench) -> Message:
    if op == "create_key":
        return create_request(op_id=OP_ID)
    if op == "rotate":
        return RotateKeyRequest(kid=await bench.create("hybrid"), op_id=OP_ID)
    if op == "derive":
        return DeriveRequest(kid=await bench.create("hkdf"), context="a", alg="hybrid", op_id=OP_ID)
    return ChangeKeyStateRequest(kid=await bench.create("hybrid"), op_id=OP_ID)


async def begun(bench: Bench, provider: StagedProvider, op: str, request: Message) -> asyncio.Task[Any]:
    """Call, and come back once the provider is at work on it, where it is held."""
    provider.hold = threading.Event()
    provider.began.clear()
    task = asyncio.create_task(bench.call(op, request))
    assert await asyncio.to_thread(provider.began.wait, 5)
    return task


async def give_up(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def parts_named(bench: Bench) -> int:
    return sum(len(version.parts) for record in bench.store.keys for version in record.versions)


CHANGES = ["create_key", "rotate", "derive"]


@pytest.mark.parametrize("op", CHANGES)
async def test_a_change_that_has_begun_is_made_and_audited_though_its_caller_went_away(op: str) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        request = await request_of(op, bench)
        epoch = bench.store.epoch
        await give_up(await begun(bench, provider, op, request))
        assert bench.core.dispatcher.under_way == 1
        assert await bench.core.dispatcher.drain(0.01) == 1
        assert provider.hold is not None
        provider.hold.set()
        assert await bench.core.dispatcher.drain(5) == 0
        assert (bench.store.epoch, provider.keys_held) == (epoch + 1, parts_named(bench))
        (event,) = [each for each in bench.audit.of(op) if each.op_id == OP_ID]
        assert (event.result, event.detail["epoch"]) == ("ok", str(epoch + 1))
        assert bench.store.unaudited() == []
        assert len(bench.core.services.locks) == 0


@pytest.mark.parametrize("op", CHANGES)
async def test_a_change_that_has_not_begun_ends_with_its_caller(op: str) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, service=ONE_THREAD) as bench:
        request = await request_of(op, bench)
        epoch, held = bench.store.epoch, provider.keys_held
        first = await begun(bench, provider, "create_key", create_request(purpose="other"))
        waiting = asyncio.create_task(bench.call(op, request))
        while not bench.core.services.pool.waiting:
            await asyncio.sleep(0)
        await give_up(waiting)
        while bench.core.dispatcher.under_way > 1:
            await asyncio.sleep(0)
        assert provider.hold is not None
        provider.hold.set()
        await first
        assert (bench.store.epoch, provider.keys_held) == (epoch + 1, held + 2)
        assert [each for each in bench.audit.of(op) if each.op_id == OP_ID] == []


async def test_a_change_past_its_deadline_is_answered_504_and_the_repeated_request_has_its_answer() -> None:
    provider, op = StagedProvider(), "create_key"
    async with running_core(provider=provider, deadlines={"sign_ms": 1000}) as bench:
        request = await request_of(op, bench)
        epoch = bench.store.epoch
        task = await begun(bench, provider, op, request)
        with pytest.raises(Timeout):
            await task
        assert bench.metric("io_timeouts_total", op={"create_key": "create"}.get(op, op)) == 1
        again = asyncio.create_task(bench.call(op, request))
        await asyncio.sleep(0)
        assert provider.hold is not None
        provider.hold.set()
        answer = await again
        assert bench.store.keys.find(parse_kid(answer.kid).name).newest_kid == parse_kid(answer.kid)
        assert (bench.store.epoch, provider.keys_held) == (epoch + 1, parts_named(bench))
        assert [each.result for each in bench.audit.of(op) if each.op_id == OP_ID] == ["Timeout", "ok", "ok"]


async def test_how_a_change_fails_whose_caller_went_away_is_audited() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        provider.fails_at = Primitive.ML_DSA_65
        await give_up(await begun(bench, provider, "create_key", create_request(op_id=OP_ID)))
        assert provider.hold is not None
        provider.hold.set()
        assert await bench.core.dispatcher.drain(5) == 0
        (event,) = bench.audit.of("create_key")
        assert (event.result, event.op_id, provider.keys_held) == ("StoreUnavailable", OP_ID, 0)


async def test_a_change_that_goes_on_keeps_its_place() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, queues={"sign": 1}, limits={"tenant_share_min": 0.0}) as bench:
        await give_up(await begun(bench, provider, "create_key", create_request()))
        with pytest.raises(Backpressure):
            await bench.create()
        assert provider.hold is not None
        provider.hold.set()
        assert await asyncio.wait_for(bench.core.dispatcher._idle.wait(), 5)
        await bench.create()


async def test_the_watch_does_not_audit_a_change_that_is_under_way() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        request = await request_of("destroy", bench)
        task = await begun(bench, provider, "destroy", request)
        for _ in range(3):
            await bench.core.dispatcher.settle()
        assert bench.audit.of("destroy") == []
        assert provider.hold is not None
        provider.hold.set()
        await task
        assert ["settled" in each.detail for each in bench.audit.of("destroy")] == [False]


async def test_a_destruction_given_up_after_its_commit_is_carried_out(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery staple")
    passphrase.chmod(0o600)
    provider = open_file_provider(tmp_path / "keys", passphrase)
    try:
        async with running_core(provider=provider, directory=tmp_path / "state") as bench:
            kid = await bench.create("hybrid")
            task = asyncio.create_task(bench.call("destroy", ChangeKeyStateRequest(kid=kid)))
            while next(iter(bench.store.keys)).state == "enabled":
                await asyncio.sleep(0)
            await give_up(task)
            assert await bench.core.dispatcher.drain(5) == 0
            assert list((tmp_path / "keys").glob("*.key")) == []
            (event,) = bench.audit.of("destroy")
            assert (event.result, "settled" in event.detail) == ("ok", False)
    finally:
        provider.close()


async def test_an_erasure_that_hangs_does_not_keep_its_change_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_state, "ERASE_TIMEOUT_S", 0.02)
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        task = await begun(bench, provider, "destroy", await request_of("destroy", bench))
        assert (await task).state == "destroyed"
        assert [each.result for each in bench.audit.of("destroy")] == ["ok"]
        assert provider.hold is not None
        provider.hold.set()


async def test_a_child_whose_second_half_fails_leaves_no_first_one() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        request = await request_of("derive", bench)
        provider.fails_at = Primitive.ML_DSA_65
        with pytest.raises(StoreUnavailable):
            await bench.call("derive", request)
        assert provider.keys_held == 1


async def test_one_record_without_a_form_fails_alone_and_leaves_no_private_half(tmp_path: Path) -> None:
    """The messages let no such hint through; a fault that makes one costs no other tenant its change."""
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:

        async def one(number: int) -> str:
            bad = number % 4 == 0
            try:
                await bench.create(tenant="bad" if bad else "core", policy_hints={"n": 2**64} if bad else None)
            except Internal:
                return "Internal"
            return "ok"

        outcomes = await asyncio.gather(*(one(number) for number in range(32)))
        assert outcomes == ["Internal", "ok", "ok", "ok"] * 8
        assert (bench.store.epoch, provider.keys_held) == (24, parts_named(bench))


async def test_a_failed_transaction_leaves_no_private_half_and_a_slow_one_may(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: KeyRecord) -> bytes:
        raise StoreUnavailable("rolled back", reason=key_store.NOT_COMMITTED)

    async def slow(_: KeyChange) -> None:
        raise Timeout("it may have been made")

    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        with monkeypatch.context() as patched:
            patched.setattr(key_store, "encode_record", fail)
            with pytest.raises(StoreUnavailable):
                await bench.create("hybrid")
        assert provider.keys_held == 0
        monkeypatch.setattr(bench.store, "commit", slow)
        with pytest.raises(Timeout):
            await bench.create("hybrid")
        assert provider.keys_held == 2


async def test_an_erasure_that_fails_hides_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "ERASE_TIMEOUT_S", 0.02)

    def away(_: object) -> None:
        raise StoreUnavailable("the token is away")

    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        provider.destroy = away  # type: ignore[method-assign,assignment]
        with pytest.raises(Internal):
            await bench.create(policy_hints={"n": 2**64})
        assert provider.keys_held == 1
