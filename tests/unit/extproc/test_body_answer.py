"""What ext_proc may say: nothing empty, nothing without a status, and nothing that Envoy would read as a pass."""

from __future__ import annotations

import json

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ImmediateResponse, ProcessingResponse
from envoy.type.v3.http_status_pb2 import HttpStatus

from extproc.body_answer import REFUSED_DETAILS, chunk_answer, headers_answer, refusal, serialise, trailers_answer
from extproc.body_order import ORDER_HEADER
from pch.reasons import ANSWERS, Reason
from receipts.receipt_id import ReceiptId

RECEIPT = ReceiptId("01a1fdcf-6e74-7552-9567-f88f62197977")


@pytest.mark.parametrize("reason", ANSWERS)
@pytest.mark.parametrize("is_grpc", [False, True])
@pytest.mark.parametrize("is_head", [False, True])
def test_every_refusal_is_whole_and_speaks_the_clients_language(
    reason: Reason, *, is_grpc: bool, is_head: bool
) -> None:
    made = ProcessingResponse.FromString(
        serialise(refusal(reason, is_grpc=is_grpc, is_head=is_head, retry_after_s=7))
    ).immediate_response
    rule = ANSWERS[reason]
    fields = {each.header.key: each.header.raw_value.decode() for each in made.headers.set_headers}
    assert made.status.code == rule.status
    assert made.details == REFUSED_DETAILS
    assert fields["pch-reason"] == reason
    assert fields["cache-control"] == "no-store"
    assert fields.get("retry-after") == ("7" if rule.retry_after else None)
    if is_grpc:
        assert made.grpc_status.status == rule.grpc_status != 0
        assert "content-type" not in fields
    elif is_head:
        assert made.body == b""
    else:
        assert json.loads(made.body)["reason"] == reason
        assert fields["content-type"] == "application/problem+json"


@pytest.mark.parametrize("status", [0, 100, 200, 302, 399, 600])
def test_refusal_without_the_status_of_one_is_not_sent(status: int) -> None:
    answer = ImmediateResponse()
    if status:
        answer.status.CopyFrom(HttpStatus(code=status))
    with pytest.raises(ValueError, match="status"):
        serialise(ProcessingResponse(immediate_response=answer))


def test_answer_that_says_nothing_is_not_sent() -> None:
    with pytest.raises(ValueError, match="nothing"):
        serialise(ProcessingResponse())


@pytest.mark.parametrize("content_bytes", [None, 0, 5])
def test_header_goes_on_without_what_started_us(content_bytes: int | None) -> None:
    made = ProcessingResponse.FromString(serialise(headers_answer(RECEIPT, content_bytes)))
    assert list(made.request_headers.response.header_mutation.remove_headers) == [ORDER_HEADER]
    assert not made.request_headers.response.header_mutation.set_headers
    said = {"receipt": RECEIPT} | ({} if content_bytes is None else {"content_length": str(content_bytes)})
    assert dict(made.dynamic_metadata["signet.body"].items()) == said


def test_chunks_and_trailers_say_where_the_body_ends() -> None:
    for last in (False, True):
        made = ProcessingResponse.FromString(serialise(chunk_answer(b"data", last=last)))
        streamed = made.request_body.response.body_mutation.streamed_response
        assert (streamed.body, streamed.end_of_stream) == (b"data", last)
    made = ProcessingResponse.FromString(serialise(trailers_answer(["b", "a", "b"])))
    assert list(made.request_trailers.header_mutation.remove_headers) == ["a", "b"]
