"""The Process service over a real socket, with real stores: only what a Check ordered goes on, and only whole."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from extproc import ext_proc
from extproc.body_answer import BODY_METADATA, REFUSED_DETAILS
from extproc.body_order import ORDER_HEADER, BodyOrder
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ReceiptId
from receipts.store import ReceiptStoreUnavailable, StoredReceipt
from receipts.writer import ReceiptWriter
from tests.support.body_parts import BODY, TARGET, BodyParts, Stream, reason_of, sha256_hex, streamed

CHUNK_BYTES = 16_384
NO_RECEIPT = ReceiptId("01a1fdcf-6e74-7552-9567-f88f62197977")


@pytest.fixture
async def parts() -> AsyncIterator[BodyParts]:
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        async with BodyParts(Path(folder)) as made:
            yield made


def chunks(body: bytes) -> list[bytes]:
    return [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]


async def send(stream: Stream, order: BodyOrder, body: bytes, *, end: str = "with", **options: Any) -> None:
    """Send a request as Envoy does. `end`: with the last chunk, after it, by trailers, or not at all."""
    await stream.headers(order, **options)
    pieces = chunks(body)
    for number, each in enumerate(pieces, 1):
        await stream.body(each, last=end == "with" and number == len(pieces))
    if end == "after":
        await stream.body(b"", last=True)
    if end == "trailers":
        await stream.trailers("x-signet-subject", "x-late")


def last_flags(answers: list[ProcessingResponse]) -> list[bool]:
    bodies = [each.request_body for each in answers if each.HasField("request_body")]
    return [each.response.body_mutation.streamed_response.end_of_stream for each in bodies]


# -- what passes


@pytest.mark.parametrize("end", ["with", "after"])
async def test_pending_body_goes_on_whole_and_its_verdict_is_a_receipt(parts: BodyParts, end: str) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await send(stream, order, BODY, end=end)
    answers = await stream.answers()
    assert streamed(answers) == BODY
    assert last_flags(answers)[-1]
    assert not any(last_flags(answers)[:-1])
    header = answers[0]
    assert list(header.request_headers.response.header_mutation.remove_headers) == [ORDER_HEADER]
    said = header.dynamic_metadata[BODY_METADATA]
    assert said["receipt"] == order.receipt_id
    assert said["content_length"] == str(len(BODY))
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert (verdict.decision, verdict.reason, verdict.status, verdict.route) == ("allow", "allowed", None, "uploads")
    assert (verdict.request.content, verdict.request.content_sha256) == ("verified", sha256_hex(BODY))
    assert verdict.request.path == "/uploads/a"
    assert parts.metric("signet_body_verdicts_total", route="uploads", reason="allowed") == 1
    assert parts.metric("signet_body_bytes_total") == len(BODY)
    assert parts.metric("signet_body_streams") == 0


async def test_trailers_end_a_body_and_go_no_further(parts: BodyParts) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await send(stream, order, BODY, end="trailers")
    answers = await stream.answers()
    assert streamed(answers) == BODY
    assert not any(last_flags(answers)), "the trailers end it"
    removed = answers[-1].request_trailers.header_mutation.remove_headers
    assert list(removed) == ["x-late", "x-signet-subject"]


async def test_verdict_is_durable_before_the_last_chunk_goes_on(parts: BodyParts) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await send(stream, order, BODY)
    while True:
        answer = await stream.answer()
        assert answer is not None
        if answer.request_body.response.body_mutation.streamed_response.end_of_stream:
            assert parts.verdicts_on(order.receipt_id)
            return


async def test_early_chunks_go_on_before_the_end_and_the_last_one_stays(parts: BodyParts) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await stream.headers(order)
    first, second, *_ = chunks(BODY)
    await stream.body(first)
    await stream.body(second)
    assert (await stream.answer()).HasField("request_headers")  # type: ignore[union-attr]
    answer = await stream.answer()
    assert answer is not None
    assert streamed([answer]) == first
    assert not parts.verdicts_on(order.receipt_id)


async def test_nothing_of_a_held_body_goes_on_before_its_end_not_even_the_header(parts: BodyParts) -> None:
    order = await parts.pending(target="/held/a")
    assert order.release == "whole"
    stream = parts.stream()
    await send(stream, order, BODY, end="none", target="/held/a")
    waiting = asyncio.create_task(stream.answers())
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    await stream.body(b"", last=True)
    header, body = await waiting
    assert header.HasField("request_headers")
    assert streamed([body]) == BODY


async def test_body_of_unknown_length_is_given_none(parts: BodyParts) -> None:
    order = dataclasses.replace(await parts.pending(), content_bytes=None)
    stream = parts.stream()
    await send(stream, order, BODY)
    answers = await stream.answers()
    assert "content_length" not in answers[0].dynamic_metadata[BODY_METADATA]
    assert streamed(answers) == BODY


async def test_envelope_is_stripped_and_the_length_is_that_of_the_content(parts: BodyParts) -> None:
    order = dataclasses.replace(await parts.pending(), envelope_bytes=20_000)
    stream = parts.stream()
    await send(stream, order, b"e" * 20_000 + BODY)
    answers = await stream.answers()
    assert streamed(answers) == BODY
    assert answers[0].dynamic_metadata[BODY_METADATA]["content_length"] == str(len(BODY))


# -- what does not: every row ends in a refusal, a deny verdict, and without the last byte


def changed(body: bytes, place: int) -> bytes:
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


ALTERED = {
    "first byte": changed(BODY, 0),
    "a byte between": changed(BODY, CHUNK_BYTES * 3),
    "last byte": changed(BODY, len(BODY) - 1),
    "truncated": BODY[:-1],
    "truncated by a chunk": BODY[:-CHUNK_BYTES],
    "extended": BODY + b"x",
    "empty": b"",
    "swapped chunks": BODY[CHUNK_BYTES : 2 * CHUNK_BYTES] + BODY[:CHUNK_BYTES] + BODY[2 * CHUNK_BYTES :],
}


@pytest.mark.parametrize("end", ["with", "after", "trailers"])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("name", ALTERED)
async def test_altered_body_is_refused_and_its_last_byte_goes_nowhere(
    parts: BodyParts, name: str, end: str, declared: bool
) -> None:
    order = await parts.pending()
    if not declared:
        order = dataclasses.replace(order, content_bytes=None)
    body = ALTERED[name]
    stream = parts.stream()
    await send(stream, order, body, end="after" if end == "with" and not body else end)
    *answers, refusal = await stream.answers()
    assert reason_of(refusal) == "bad_content_digest"
    assert refusal.immediate_response.status.code == 400
    assert refusal.immediate_response.details == REFUSED_DETAILS
    assert len(streamed(answers)) < len(body) or not body
    assert not any(last_flags(answers))
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert (verdict.decision, verdict.reason, verdict.status) == ("deny", "bad_content_digest", 400)
    assert verdict.request.content == "unchecked"


async def test_body_over_the_routes_limit_is_refused_as_soon_as_it_is(parts: BodyParts) -> None:
    order = dataclasses.replace(await parts.pending(), content_bytes=None, max_body_bytes=50_000)
    stream = parts.stream()
    await send(stream, order, BODY, end="none")
    *answers, refusal = await stream.answers()
    assert reason_of(refusal) == "body_too_large"
    assert refusal.immediate_response.status.code == 413
    assert len(streamed(answers)) <= 50_000
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert verdict.reason == "body_too_large"


async def test_body_that_was_cut_off_with_its_header_is_refused(parts: BodyParts) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await stream.headers(order)
    await stream.trailers()
    *_, refusal = await stream.answers()
    assert reason_of(refusal) == "bad_content_digest"


@pytest.mark.parametrize(
    ("fields", "method", "grpc_status", "body"),
    [
        ((("content-type", "application/grpc"),), "POST", 3, b"bad_content_digest"),
        ((("content-type", "application/grpc+proto"),), "POST", 3, b"bad_content_digest"),
        ((), "POST", 0, b'"reason": "bad_content_digest"'),
    ],
)
async def test_refusal_speaks_the_clients_language(
    parts: BodyParts, fields: tuple[tuple[str, str], ...], method: str, grpc_status: int, body: bytes
) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await send(stream, order, changed(BODY, 0), fields=fields, method=method)
    *_, refusal = await stream.answers()
    assert refusal.immediate_response.grpc_status.status == grpc_status
    assert body in refusal.immediate_response.body


# -- orders that do not hold


async def forged(parts: BodyParts, what: str) -> tuple[BodyOrder | None, dict[str, Any]]:
    order = await parts.pending()
    other = await parts.pending(BODY + b"other")
    whole = await parts.parts.answer(_whole_request(parts))
    assert whole.receipt_id is not None
    cases: dict[str, tuple[BodyOrder | None, dict[str, Any]]] = {
        "no metadata": (None, {}),
        "decision deny": (order, {"facts": {"decision": "deny"}}),
        "receipt unknown": (dataclasses.replace(order, receipt_id=NO_RECEIPT), {}),
        "receipt of another body": (dataclasses.replace(order, receipt_id=other.receipt_id), {}),
        "receipt of a decided body": (dataclasses.replace(order, receipt_id=whole.receipt_id), {}),
        "digest of another body": (dataclasses.replace(order, digests=other.digests), {}),
        "verified, says the order": (dataclasses.replace(order, pending=False), {}),
        "another path": (order, {"target": "/uploads/b?b=c"}),
        "another query": (order, {"target": "/uploads/a?b=d"}),
        "no query": (order, {"target": "/uploads/a"}),
        "another method": (order, {"method": "PUT"}),
    }
    return cases[what]


def _whole_request(parts: BodyParts) -> Any:
    from tests.support.filter_parts import edge_request, signed_message

    message = signed_message(parts.keys["alice"], parts.parts.challenge(), method="POST", target=TARGET, body=BODY)
    return edge_request(message, body=BODY, stream_id="9")


@pytest.mark.parametrize(
    "what",
    [
        "no metadata",
        "decision deny",
        "receipt unknown",
        "receipt of another body",
        "receipt of a decided body",
        "digest of another body",
        "verified, says the order",
        "another path",
        "another query",
        "no query",
        "another method",
    ],
)
async def test_request_that_no_check_let_on_does_not_pass(parts: BodyParts, what: str) -> None:
    order, options = await forged(parts, what)
    stream = parts.stream()
    await stream.headers(order, **options)
    (refusal,) = await stream.answers()
    assert reason_of(refusal) == "internal"
    assert refusal.immediate_response.status.code == 503
    headers = {each.header.key: each.header.raw_value for each in refusal.immediate_response.headers.set_headers}
    assert headers["retry-after"] == b"7"
    assert parts.metric("signet_body_orders_refused_total") == 1
    assert not any(parts.verdicts_on(each.receipt_id) for each in [order] if each is not None)


async def test_decision_lets_one_body_through_and_no_second(parts: BodyParts) -> None:
    order = await parts.pending()
    for number in range(2):
        stream = parts.stream()
        await send(stream, order, BODY)
        answers = await stream.answers()
        if number == 0:
            assert streamed(answers) == BODY
        else:
            assert reason_of(answers[-1]) == "internal"
            assert len(streamed(answers)) < len(BODY)
    assert len(parts.verdicts_on(order.receipt_id)) == 1


async def test_refused_body_cannot_be_tried_again(parts: BodyParts) -> None:
    order = await parts.pending()
    for body, reason in ((changed(BODY, 5), "bad_content_digest"), (BODY, "internal")):
        stream = parts.stream()
        await send(stream, order, body)
        assert reason_of((await stream.answers())[-1]) == reason
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert verdict.decision == "deny"


# -- an edge that uses the service otherwise


@pytest.mark.parametrize(
    "mode", [ProcessingMode.NONE, ProcessingMode.STREAMED, ProcessingMode.BUFFERED, ProcessingMode.BUFFERED_PARTIAL]
)
async def test_edge_that_sends_bodies_in_another_mode_is_refused(parts: BodyParts, mode: int) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await stream.headers(order, mode=mode)
    (refusal,) = await stream.answers()
    assert reason_of(refusal) == "internal"


async def test_edge_that_only_watches_is_refused(parts: BodyParts) -> None:
    stream = parts.stream()
    await stream.headers(await parts.pending(), observability_mode=True)
    assert reason_of((await stream.answers())[0]) == "internal"


async def test_edge_that_skips_the_header_is_refused(parts: BodyParts) -> None:
    stream = parts.stream()
    await stream.body(BODY, last=True)
    assert reason_of((await stream.answers())[0]) == "internal"


async def test_part_of_an_answer_among_the_request_is_refused(parts: BodyParts) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await stream.headers(order)
    await stream.call.write(ProcessingRequest(response_headers={}))
    *_, refusal = await stream.answers()
    assert reason_of(refusal) == "internal"
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert verdict.reason == "internal"


# -- ends: none is clean before the last answer


async def until_settled(parts: BodyParts, receipt_id: ReceiptId) -> None:
    for _ in range(500):
        if parts.verdicts_on(receipt_id):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no verdict")


@pytest.mark.parametrize("how", ["half close", "cancel"])
async def test_stream_that_ends_early_is_an_error_and_a_deny_verdict(parts: BodyParts, how: str) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await send(stream, order, BODY, end="none")
    await stream.answer()
    if how == "half close":
        await stream.call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.answers()
        assert caught.value.code() is grpc.StatusCode.CANCELLED
    else:
        stream.call.cancel()
    await until_settled(parts, order.receipt_id)
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert (verdict.decision, verdict.reason) == ("deny", "bad_content_digest")
    assert parts.metric("signet_body_streams") == 0


async def test_worker_that_stops_ends_its_streams_in_an_error(parts: BodyParts) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await send(stream, order, BODY, end="none")
    await stream.answer()
    await parts.server.stop(0)
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.answers()
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert verdict.decision == "deny", "written before the stores close"


async def test_failure_inside_is_an_error_and_never_a_clean_end(
    parts: BodyParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = await parts.pending()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("as told")

    monkeypatch.setattr(ext_proc, "chunk_answer", broken)
    stream = parts.stream()
    await send(stream, order, BODY, end="none")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.answers()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    await until_settled(parts, order.receipt_id)


async def test_body_that_stands_still_is_given_up(parts: BodyParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ext_proc, "IDLE_TIMEOUT_S", 0.05)
    stream = parts.stream()
    await stream.headers(await parts.pending())
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.answers()


async def test_a_body_too_many_is_refused_with_a_verdict(parts: BodyParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ext_proc, "MAX_STREAMS", 1)
    first = parts.stream()
    await send(first, await parts.pending(), BODY, end="none")
    begun = await first.answer()
    assert begun is not None
    order, second = await parts.pending(), parts.stream()
    await second.headers(order)
    (refusal,) = await second.answers()
    assert reason_of(refusal) == "internal"
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert (verdict.decision, verdict.reason) == ("deny", "internal")
    await first.body(b"", last=True)
    assert streamed([begun, *await first.answers()]) == BODY
    third = parts.stream()
    await send(third, await parts.pending(), BODY)
    assert streamed(await third.answers()) == BODY, "the room is given back"


async def test_no_more_refusals_than_allowed_are_on_their_way(
    parts: BodyParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext_proc, "MAX_STREAMS", 1)
    monkeypatch.setattr(ext_proc, "MAX_REFUSED_STREAMS", 1)
    first = parts.stream()
    await first.headers(await parts.pending())
    assert await first.answer()
    second = parts.stream()
    while parts.metric("signet_body_streams") != 2:
        await asyncio.sleep(0.01)
    third = parts.stream()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await third.answers()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    order = await parts.pending()
    await second.headers(order)
    assert reason_of((await second.answers())[0]) == "internal"
    assert parts.verdicts_on(order.receipt_id)


class SlowWriter:
    """A real writer that begins when told."""

    def __init__(self, writer: ReceiptWriter) -> None:
        self._writer = writer
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()

    async def append(self, draft: ReceiptDraft, timeout_s: float) -> StoredReceipt:
        self.entered.set()
        await self.go_on.wait()
        return await self._writer.append(draft, timeout_s)


async def no_stream_is_open(parts: BodyParts) -> None:
    async with asyncio.timeout(10):
        while parts.metric("signet_body_streams") != 0:
            await asyncio.sleep(0.01)


async def test_a_stream_that_goes_while_its_verdict_is_written_has_that_verdict(
    parts: BodyParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SlowWriter(parts.parts.writer)
    order = await parts.pending()
    monkeypatch.setattr(parts.verdicts, "_writer", writer)
    stream = parts.stream()
    await send(stream, order, BODY)
    await asyncio.wait_for(writer.entered.wait(), 10)
    stream.call.cancel()
    await no_stream_is_open(parts)
    assert not parts.verdicts_on(order.receipt_id)
    writer.go_on.set()
    await until_settled(parts, order.receipt_id)
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert (verdict.decision, verdict.reason) == ("allow", "allowed")
    assert parts.metric("signet_body_verdicts_total", route="uploads", reason="allowed") == 1


async def test_a_stream_that_goes_while_its_decision_is_looked_up_has_a_verdict(
    parts: BodyParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    order = await parts.pending()
    get = parts.parts.store.get

    def slow(receipt_id: ReceiptId) -> object:
        entered.set()
        go_on.wait(4)
        return get(receipt_id)

    monkeypatch.setattr(type(parts.parts.store), "get", lambda _self, receipt_id: slow(receipt_id))
    stream = parts.stream()
    await stream.headers(order)
    assert await asyncio.to_thread(entered.wait, 10)
    stream.call.cancel()
    await no_stream_is_open(parts)
    go_on.set()
    await until_settled(parts, order.receipt_id)
    (verdict,) = parts.verdicts_on(order.receipt_id)
    assert (verdict.decision, verdict.reason) == ("deny", "bad_content_digest")


async def test_held_bodies_share_a_bounded_room(parts: BodyParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ext_proc, "MAX_HELD_BYTES", len(BODY))
    first, second = parts.stream(), parts.stream()
    order = await parts.pending(target="/held/a")
    await send(first, order, BODY, end="none", target="/held/a")
    while parts.metric("signet_body_bytes_total") != len(BODY):
        await asyncio.sleep(0.01)
    await second.headers(await parts.pending(target="/held/a"), target="/held/a")
    (refusal,) = await second.answers()
    assert reason_of(refusal) == "internal"
    await first.body(b"", last=True)
    assert streamed(await first.answers()) == BODY
    third = parts.stream()
    await send(third, await parts.pending(target="/held/a"), BODY, target="/held/a")
    assert streamed(await third.answers()) == BODY, "the room is given back"


@pytest.mark.parametrize(
    ("bound", "value", "target"),
    [
        ("MAX_HELD_BYTES_PER_SUBJECT", len(BODY), "/held/a"),
        ("MAX_STREAMS_PER_SUBJECT", 1, "/held/a"),
        ("MAX_STREAMS_PER_SUBJECT", 1, TARGET),
    ],
)
async def test_one_subject_leaves_room_for_another(
    parts: BodyParts, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, target: str
) -> None:
    monkeypatch.setattr(ext_proc, bound, value)
    first, second, other, third = (parts.stream() for _ in range(4))
    await send(first, await parts.pending(target=target), BODY, end="none", target=target)
    while parts.metric("signet_body_bytes_total") != len(BODY):
        await asyncio.sleep(0.01)
    await second.headers(await parts.pending(target=target), target=target)
    (refusal,) = await second.answers()
    assert reason_of(refusal) == "internal"
    await send(other, await parts.pending(target=target, key="bob"), BODY, target=target)
    assert streamed(await other.answers()) == BODY
    await first.body(b"", last=True)
    assert streamed(await first.answers()) == BODY
    await send(third, await parts.pending(target=target), BODY, target=target)
    assert streamed(await third.answers()) == BODY, "the share is given back"


# -- stores


async def test_body_whose_decision_cannot_be_read_is_refused(parts: BodyParts, monkeypatch: pytest.MonkeyPatch) -> None:
    order = await parts.pending()

    def gone(_receipt_id: ReceiptId) -> None:
        raise ReceiptStoreUnavailable("as told")

    monkeypatch.setattr(type(parts.parts.store), "get", lambda _self, receipt_id: gone(receipt_id))
    stream = parts.stream()
    await stream.headers(order)
    (refusal,) = await stream.answers()
    assert reason_of(refusal) == "store_unavailable"


async def test_good_body_whose_verdict_cannot_be_written_does_not_pass(parts: BodyParts) -> None:
    order = await parts.pending()
    stream = parts.stream()
    await send(stream, order, BODY, end="none")
    await stream.answer()
    await parts.parts.writer.aclose(5.0)
    await stream.body(b"", last=True)
    *answers, refusal = await stream.answers()
    assert reason_of(refusal) == "store_unavailable"
    assert len(streamed(answers)) < len(BODY)
