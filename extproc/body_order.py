"""What a Check orders about a body that ext_proc is to see through: the one thing that ties the two calls together.

The order goes with the Check's answer as dynamic metadata of ext_authz, which Envoy hands to ext_proc and which no
client can write. It names the decision by its receipt; what the receipt says besides is compared, never taken on trust
(`extproc.body_verdict`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from pch.errors import BadContentDigest, OurFault
from pch.httpsig.content_digest import expected_digests
from pch.httpsig.structured_field import serialise_byte_sequence
from receipts.receipt_id import RECEIPT_ID_PATTERN, ReceiptId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.struct_pb2 import Struct

AUTHZ_METADATA: Final = "envoy.filters.http.ext_authz"
"""The namespace that only the answer to a Check can write to."""
ORDER_HEADER: Final = "x-signet-body"
"""Request field that starts ext_proc: set by the Check's answer, taken from clients, removed by ext_proc."""
ORDERED: Final = "ordered"
"""Its value, and that of the metadata member `body`: without ext_proc's word such a request goes nowhere."""

BodyRelease: TypeAlias = Literal["streamed", "whole"]
MAX_ENVELOPE_BYTES: Final = 131_072
"""The longest envelope of relaxed evidence (PCH §6)."""
MAX_STREAMED_BODY_BYTES: Final = 17_179_869_184
"""The largest body that may be streamed: 16 GiB."""
MAX_WHOLE_BODY_BYTES: Final = 16_777_216
"""The largest body that may be held until it is settled."""

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_RECEIPT_ID: Final = re.compile(RECEIPT_ID_PATTERN)
_RELEASES: Final = get_args(BodyRelease)


class ForgedOrder(OurFault):
    """What came to ext_proc is no order of a Check, or not for this request: nothing of it is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyOrder:
    """What is to be done with one body.

    `receipt_id`: the Check's receipt. `digests`: of the content, by algorithm. `pending`: the receipt says
    `body_pending`, so the verdict becomes a receipt; if not, the Check saw every byte and only the envelope is to go.
    `release`: `streamed` lets all but the last chunk go as it comes, `whole` holds everything, the header too.
    `content_bytes`: how long the content must be, None if the client did not say. `max_body_bytes`: of the route.
    `envelope_bytes`: what precedes the content and goes no further (PCH §6), 0 for none.
    """

    receipt_id: ReceiptId
    digests: Mapping[str, bytes]
    pending: bool
    release: BodyRelease
    content_bytes: int | None
    max_body_bytes: int
    envelope_bytes: int = 0

    def __post_init__(self) -> None:
        most = MAX_STREAMED_BODY_BYTES if self.release == "streamed" else MAX_WHOLE_BODY_BYTES
        if not 0 <= self.max_body_bytes <= most or not 0 <= self.envelope_bytes <= MAX_ENVELOPE_BYTES:
            raise ForgedOrder("a bound of the order is out of range")
        if self.content_bytes is not None and not 0 <= self.content_bytes <= self.max_body_bytes:
            raise ForgedOrder("the content's length is over the order's own limit")

    def facts(self) -> dict[str, str]:
        """Write the order as members of the answer's dynamic metadata, beside `receipt`."""
        digest = ", ".join(f"{name}={serialise_byte_sequence(value)}" for name, value in self.digests.items())
        return {
            "body": ORDERED,
            "body_release": self.release,
            "body_state": "pending" if self.pending else "verified",
            "body_digest": digest,
            "body_bytes": "" if self.content_bytes is None else str(self.content_bytes),
            "body_max_bytes": str(self.max_body_bytes),
            "body_envelope_bytes": str(self.envelope_bytes),
        }


def read_order(metadata: Mapping[str, Struct]) -> BodyOrder:
    """Read the order from the metadata that Envoy hands to ext_proc, by namespace. Raises `ForgedOrder`."""
    if AUTHZ_METADATA not in metadata:
        raise ForgedOrder("no Check let this request through")
    said = metadata[AUTHZ_METADATA]
    if _text(said, "decision") != "allow" or _text(said, "body") != ORDERED:
        raise ForgedOrder("no Check ordered this")
    receipt_id, release, state = _text(said, "receipt"), _text(said, "body_release"), _text(said, "body_state")
    if not _RECEIPT_ID.match(receipt_id) or release not in _RELEASES or state not in {"pending", "verified"}:
        raise ForgedOrder("the order is not whole")
    try:
        digests = expected_digests([_text(said, "body_digest").encode()])
    except BadContentDigest as error:
        raise ForgedOrder("the order has no digest") from error
    length = _text(said, "body_bytes")
    return BodyOrder(
        receipt_id=ReceiptId(receipt_id),
        digests=digests,
        pending=state == "pending",
        release="streamed" if release == "streamed" else "whole",
        content_bytes=_number(length) if length else None,
        max_body_bytes=_number(_text(said, "body_max_bytes")),
        envelope_bytes=_number(_text(said, "body_envelope_bytes")),
    )


def _text(said: Struct, name: str) -> str:
    if name not in said.fields or said.fields[name].WhichOneof("kind") != "string_value":
        raise ForgedOrder("a member of the order is absent")
    return str(said.fields[name].string_value)


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ForgedOrder("a member of the order is no number")
    return int(text)
