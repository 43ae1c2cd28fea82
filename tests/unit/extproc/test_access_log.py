"""The access log service on a real gRPC server and UNIX socket: what was read is kept, what is odd is refused."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse

from extproc import access_log
from extproc.access_log import ENTRIES_PER_TURN, LAST_MESSAGE_S, SERVICE, AccessLog
from extproc.server import FilterServer
from receipts.receipt import OutcomeReceipt, parse_receipt
from receipts.receipt_id import ReceiptId
from tests.support.outcome_parts import WAIT_S, OutcomeParts
from tests.support.outcomes import RECEIPT_ID, entry_of, message_of

METHOD = f"/{SERVICE}/StreamAccessLogs"

Call = grpc.aio.StreamUnaryCall[StreamAccessLogsMessage, StreamAccessLogsResponse]


class NoChecks:
    """These tests ask for no decision."""

    async def check(self, _check: object, _context: object) -> object:
        raise AssertionError("no Check was sent")


class Bench(OutcomeParts):
    """A filter server whose recorder is real, and an Envoy's side of the socket."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.service = AccessLog(self.recorder, self.telemetry)
        self.socket = folder / "signet-0.sock"
        self.server = FilterServer(
            NoChecks(),  # type: ignore[arg-type]
            self.socket,
            max_body_bytes=1024,
            socket_mode=0o600,
            outcomes=self.service,
        )
        self.stopped = False

    async def __aenter__(self) -> Bench:
        await super().__aenter__()
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"unix:{self.socket}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        if not self.stopped:
            await self.server.stop(0)
        await super().__aexit__()

    def stream(self) -> Call:
        return self.channel.stream_unary(
            METHOD,
            request_serializer=StreamAccessLogsMessage.SerializeToString,
            response_deserializer=StreamAccessLogsResponse.FromString,
        )(timeout=WAIT_S)

    async def decided(self, count: int) -> list[ReceiptId]:
        return list(await asyncio.gather(*(self.decide() for _ in range(count))))

    async def received(self, count: int) -> None:
        await self.until(lambda: self.count("received") == count)
        await self.settled()

    def told(self) -> list[str]:
        """Give the decisions that have an outcome, in the order of the log."""
        found = (parse_receipt(each.raw) for each in self.store.read(0, 10_000))
        return [each.refers_to for each in found if isinstance(each, OutcomeReceipt)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="signet-") as name:
        async with Bench(Path(name)) as made:
            yield made


async def test_entries_of_a_stream_become_outcomes_while_it_stays_open(bench: Bench) -> None:
    decisions = await bench.decided(5)
    call = bench.stream()
    await call.write(message_of([entry_of(decisions[0], status=500)]))
    await bench.received(1)
    assert bench.told() == decisions[:1]
    await call.write(message_of([entry_of(each) for each in decisions[1:]], log_name=None))
    await bench.received(5)
    assert bench.told() == decisions
    assert not call.done()
    await call.done_writing()
    assert await call == StreamAccessLogsResponse()


@pytest.mark.parametrize("count", [ENTRIES_PER_TURN - 1, ENTRIES_PER_TURN, 3 * ENTRIES_PER_TURN + 1])
async def test_stream_that_breaks_right_after_a_message_loses_nothing_of_it(bench: Bench, count: int) -> None:
    decisions = await bench.decided(count)
    call = bench.stream()
    await call.write(message_of([entry_of(each) for each in decisions]))
    await bench.until(lambda: bench.count("received") > 0)
    call.cancel()
    await bench.received(count)
    assert bench.told() == decisions


async def test_handler_cancelled_between_entries_takes_the_rest(bench: Bench) -> None:
    decisions = await bench.decided(4 * ENTRIES_PER_TURN)
    taking = asyncio.create_task(bench.service._take_all(message_of([entry_of(each) for each in decisions])))
    await asyncio.sleep(0)
    assert bench.count("received") == ENTRIES_PER_TURN, "others go first now and then"
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await bench.received(len(decisions))
    assert bench.told() == decisions


async def test_entries_sent_again_on_another_stream_are_one_outcome_each(bench: Bench) -> None:
    decisions = await bench.decided(3)
    message = message_of([entry_of(each) for each in decisions])
    for _ in range(2):
        call = bench.stream()
        await call.write(message)
        await call.done_writing()
        await call
    await bench.received(6)
    assert bench.told() == decisions
    assert (bench.count("written"), bench.count("duplicate")) == (3, 3)


async def test_streams_are_independent(bench: Bench) -> None:
    decisions = await bench.decided(2)
    good, bad = bench.stream(), bench.stream()
    await good.write(message_of([entry_of(decisions[0])]))
    await bench.received(1)
    await bad.write(message_of(log_name="other"))
    with pytest.raises(grpc.aio.AioRpcError):
        await bad
    await good.write(message_of([entry_of(decisions[1])], log_name=None))
    await bench.received(2)
    assert bench.told() == decisions


@pytest.mark.parametrize("log_name", [None, "", "other", "signet_outcomes ", "SIGNET_OUTCOMES"])
async def test_stream_of_another_log_is_refused_and_none_of_it_taken(bench: Bench, log_name: str | None) -> None:
    (decision,) = await bench.decided(1)
    call = bench.stream()
    await call.write(message_of([entry_of(decision)], log_name))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert bench.count("received") == 0
    assert bench.registry.get_sample_value("signet_outcome_streams_refused_total") == 1


async def test_number_of_streams_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "MAX_STREAMS", 1)
    first = bench.stream()
    await first.write(message_of([entry_of(RECEIPT_ID)]))
    await bench.received(1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await bench.stream()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await first.done_writing()
    await first
    second = bench.stream()
    await second.write(message_of([entry_of(RECEIPT_ID)]))
    await bench.received(2)


async def test_stream_without_a_message_ends_quietly(bench: Bench) -> None:
    call = bench.stream()
    await call.done_writing()
    assert await call == StreamAccessLogsResponse()
    assert bench.registry.get_sample_value("signet_outcome_streams_refused_total") == 0


async def test_bytes_that_are_no_message_end_that_stream_alone(bench: Bench) -> None:
    call = bench.channel.stream_unary(METHOD)(timeout=WAIT_S)
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    (decision,) = await bench.decided(1)
    good = bench.stream()
    await good.write(message_of([entry_of(decision)]))
    await bench.received(1)
    assert bench.told() == [decision]


async def test_every_entry_is_accounted_for(bench: Bench) -> None:
    (decision,) = await bench.decided(1)
    refused, early, odd = entry_of(), entry_of(), entry_of("no-id")
    refused.common_properties.ClearField("metadata")
    early.common_properties.intermediate_log_entry = True
    call = bench.stream()
    await call.write(message_of([refused, entry_of(decision), odd, early, entry_of(RECEIPT_ID), entry_of(decision)]))
    await bench.received(6)
    causes = ("undecided", "intermediate", "malformed", "unknown_decision")
    assert [bench.count("unmatched", cause=cause) for cause in causes] == [1, 1, 1, 1]
    assert (bench.count("written"), bench.count("duplicate")) == (1, 1)


async def test_drain_waits_for_one_more_message_and_no_longer(bench: Bench) -> None:
    decisions = await bench.decided(2)
    call, quiet = bench.stream(), bench.stream()
    await call.write(message_of([entry_of(decisions[0])]))
    await quiet.write(message_of())
    await bench.received(1)
    started_s = time.monotonic()
    stopping = asyncio.create_task(bench.server.stop(WAIT_S))
    bench.stopped = True
    await call.write(message_of([entry_of(decisions[1])], log_name=None))
    assert await call == await quiet == StreamAccessLogsResponse()
    await asyncio.wait_for(stopping, WAIT_S)
    assert time.monotonic() - started_s < LAST_MESSAGE_S + WAIT_S / 2, "not the whole grace"
    await bench.received(2)
    assert bench.told() == decisions


async def test_finishing_twice_changes_nothing(bench: Bench) -> None:
    call = bench.stream()
    await call.write(message_of([entry_of(RECEIPT_ID)]))
    await bench.received(1)
    bench.service.finish()
    bench.service.finish()
    assert await call == StreamAccessLogsResponse()


async def test_stream_that_begins_while_the_worker_drains_is_closed_soon(bench: Bench) -> None:
    bench.service.finish()
    (decision,) = await bench.decided(1)
    call = bench.stream()
    await call.write(message_of([entry_of(decision)]))
    assert await call == StreamAccessLogsResponse()
    assert await bench.stream() == StreamAccessLogsResponse(), "also without a message"
    await bench.received(1)
    assert bench.told() == [decision]
