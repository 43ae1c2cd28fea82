"""Step 11 of docs/reference/pch.md §4: the content of a verified request, here or later.

A body that the Check has whole is checked here. Of one that goes on, the digests are read here, and ext_proc is ordered
to see it through: the decision is then `body_pending`, and a second receipt settles it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.body_order import MAX_WHOLE_BODY_BYTES, BodyOrder
from pch.httpsig.content_digest import expected_digests, verify_content_digest
from pch.reasons import Reason

if TYPE_CHECKING:
    from extproc.verifier import AdmittedRequest, VerifiedRequest
    from receipts.receipt_id import ReceiptId


def check_body(admitted: AdmittedRequest) -> Reason:
    """Check the content against Content-Digest, or find that ext_proc has to. Raises `BadContentDigest`.

    Also when nothing arrived: content that was taken away must not pass for a request that never had any.
    """
    request = admitted.request
    lines = request.message.lines("content-digest")
    if request.body_cut:
        expected_digests(lines)
        return Reason.BODY_PENDING
    if request.has_content or lines:
        verify_content_digest(lines, admitted.content)
    return Reason.ALLOWED


def order_body(verified: VerifiedRequest, receipt_id: ReceiptId) -> BodyOrder:
    """Order ext_proc to see the body of `verified` through. `receipt_id`: of the decision about it.

    One that the Check has whole needs that only to lose its envelope. Raises `BadContentDigest`.
    """
    admitted = verified.admitted
    request, route = admitted.request, admitted.route
    streamed = request.body_cut and route.streams
    return BodyOrder(
        receipt_id=receipt_id,
        digests=expected_digests(request.message.lines("content-digest")),
        pending=request.body_cut,
        release="streamed" if streamed else "whole",
        content_bytes=admitted.content_length if request.body_cut else len(admitted.content),
        max_body_bytes=route.max_body_bytes if streamed else min(route.max_body_bytes, MAX_WHOLE_BODY_BYTES),
        envelope_bytes=admitted.envelope_bytes,
    )
