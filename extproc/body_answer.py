"""What ext_proc tells Envoy about a body; every Envoy quirk of this direction lives here.

A stream that Envoy (1.40) sees closed without an error lets the rest of the request through, and an empty message may
do the same: so every message leaves through `serialise`, and `extproc.ext_proc` ends no stream cleanly before the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    GrpcStatus,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct

from extproc.body_order import ORDER_HEADER
from extproc.response import PROBLEM_TYPE, problem_document
from pch.reasons import ANSWERS, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from receipts.receipt_id import ReceiptId

BODY_METADATA: Final = "signet.body"
"""The namespace of what ext_proc says. The second RBAC filter of envoy.yaml lets no ordered request on without it."""
REFUSED_DETAILS: Final = "signet_body_refused"
"""Envoy's response code details of a refusal, by which local_reply_config knows it."""


def headers_answer(receipt_id: ReceiptId, content_bytes: int | None) -> ProcessingResponse:
    """Let the header go on, without what started us, and say that the body is in hand.

    `content_bytes`: what Content-Length is to say upstream, where Envoy took it away; None if it is not known.
    """
    said = Struct()
    said.update({BODY_METADATA: {"receipt": receipt_id}})
    if content_bytes is not None:
        said.fields[BODY_METADATA].struct_value.update({"content_length": str(content_bytes)})
    mutation = HeaderMutation(remove_headers=[ORDER_HEADER])
    return ProcessingResponse(
        request_headers=HeadersResponse(response=CommonResponse(header_mutation=mutation)), dynamic_metadata=said
    )


def chunk_answer(data: bytes, *, last: bool) -> ProcessingResponse:
    """Let `data` go on. `last`: the body ends with it."""
    mutation = BodyMutation(streamed_response=StreamedBodyResponse(body=data, end_of_stream=last))
    return ProcessingResponse(request_body=BodyResponse(response=CommonResponse(body_mutation=mutation)))


def trailers_answer(names: Iterable[str]) -> ProcessingResponse:
    """Let the body end, and drop its trailers `names`: no one signed them."""
    return ProcessingResponse(
        request_trailers=TrailersResponse(header_mutation=HeaderMutation(remove_headers=sorted(set(names))))
    )


def refusal(reason: Reason, *, is_grpc: bool, is_head: bool, retry_after_s: int) -> ProcessingResponse:
    """Refuse the request, PCH §5. Envoy ends the request upstream; if the app has answered already, the stream."""
    rule = ANSWERS[reason]
    fields = {"pch-reason": str(reason), "cache-control": "no-store"}
    if rule.retry_after:
        fields["retry-after"] = str(retry_after_s)
    answer = ImmediateResponse(status=HttpStatus(code=rule.status), details=REFUSED_DETAILS)
    if is_grpc:
        answer.grpc_status.CopyFrom(GrpcStatus(status=rule.grpc_status))
        answer.body = str(reason).encode()
    else:
        fields["content-type"] = PROBLEM_TYPE
        answer.body = b"" if is_head else problem_document(reason).encode()
    for name, value in fields.items():
        # Envoy reads raw_value alone in this direction.
        header = HeaderValue(key=name, raw_value=value.encode())
        overwrite = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        answer.headers.set_headers.append(HeaderValueOption(header=header, append_action=overwrite))
    return ProcessingResponse(immediate_response=answer)


def serialise(response: ProcessingResponse) -> bytes:
    """Write `response` for the wire. Raises ValueError for one that says nothing: the stream then ends in error."""
    if response.WhichOneof("response") is None:
        raise ValueError("an answer that says nothing is not sent")
    if response.HasField("immediate_response") and not 400 <= response.immediate_response.status.code <= 599:
        raise ValueError("a refusal without a status is not sent")
    return bytes(response.SerializeToString())
