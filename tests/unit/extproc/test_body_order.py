"""The order that ties a Check to ext_proc: it survives the way through metadata, and nothing less is believed."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from extproc.body_order import (
    AUTHZ_METADATA,
    MAX_ENVELOPE_BYTES,
    MAX_STREAMED_BODY_BYTES,
    MAX_WHOLE_BODY_BYTES,
    BodyOrder,
    ForgedOrder,
    read_order,
)
from receipts.receipt_id import ReceiptId

RECEIPT = ReceiptId("01a1fdcf-6e74-7552-9567-f88f62197977")
SHA256, SHA512 = bytes(range(32)), bytes(64)


def order(**changes: Any) -> BodyOrder:
    values: dict[str, Any] = {
        "receipt_id": RECEIPT,
        "digests": {"sha-256": SHA256},
        "pending": True,
        "release": "streamed",
        "content_bytes": 200_000,
        "max_body_bytes": 1 << 30,
        "envelope_bytes": 0,
    }
    return BodyOrder(**(values | changes))


def metadata_of(made: BodyOrder, **changes: Any) -> dict[str, Struct]:
    """What Envoy forwards; None drops a member."""
    said = Struct()
    members = {"decision": "allow", "receipt": made.receipt_id, "route": "r"} | made.facts() | changes
    said.update({name: value for name, value in members.items() if value is not None})
    return {AUTHZ_METADATA: said}


@given(
    st.booleans(),
    st.none() | st.integers(0, MAX_WHOLE_BODY_BYTES),
    st.integers(0, MAX_ENVELOPE_BYTES),
    st.booleans(),
    st.sampled_from(["streamed", "whole"]),
)
def test_order_is_read_as_it_was_written(
    pending: bool, content_bytes: int | None, envelope_bytes: int, both: bool, release: str
) -> None:
    made = order(
        pending=pending,
        content_bytes=content_bytes,
        max_body_bytes=MAX_WHOLE_BODY_BYTES,
        envelope_bytes=envelope_bytes,
        digests={"sha-256": SHA256} | ({"sha-512": SHA512} if both else {}),
        release=release,
    )
    assert read_order(metadata_of(made)) == made


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in (*order().facts(), "decision", "receipt")),
        *({name: 1.0} for name in (*order().facts(), "decision", "receipt")),
        {"decision": "deny"},
        {"body": "whole"},
        {"body": ""},
        {"receipt": ""},
        {"receipt": RECEIPT.upper()},
        {"receipt": RECEIPT + "\n"},
        {"body_release": "early"},
        {"body_state": "unchecked"},
        {"body_digest": ""},
        {"body_digest": "sha-512=:AAAA:"},
        {"body_digest": "sha-256=no"},
        {"body_bytes": "-1"},
        {"body_bytes": "0x10"},
        {"body_bytes": "01"},
        {"body_bytes": "1e9"},
        {"body_bytes": str((1 << 30) + 1)},
        {"body_max_bytes": ""},
        {"body_max_bytes": str(MAX_STREAMED_BODY_BYTES + 1)},
        {"body_envelope_bytes": str(MAX_ENVELOPE_BYTES + 1)},
        {"body_release": "whole"},
    ],
)
def test_order_with_any_member_amiss_is_refused(changes: dict[str, Any]) -> None:
    assert read_order(metadata_of(order())) == order()
    with pytest.raises(ForgedOrder):
        read_order(metadata_of(order(), **changes))


@pytest.mark.parametrize("namespace", ["signet.body", "signet.tls", "envoy.filters.http.header_mutation", ""])
def test_order_counts_only_where_ext_authz_alone_writes(namespace: str) -> None:
    (said,) = metadata_of(order()).values()
    with pytest.raises(ForgedOrder):
        read_order({namespace: said})
    with pytest.raises(ForgedOrder):
        read_order({})


@pytest.mark.parametrize(
    "changes",
    [
        {"max_body_bytes": -1},
        {"max_body_bytes": MAX_STREAMED_BODY_BYTES + 1},
        {"release": "whole", "max_body_bytes": MAX_WHOLE_BODY_BYTES + 1},
        {"envelope_bytes": -1},
        {"envelope_bytes": MAX_ENVELOPE_BYTES + 1},
        {"content_bytes": -1},
        {"content_bytes": (1 << 30) + 1},
    ],
)
def test_order_out_of_its_own_bounds_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ForgedOrder):
        order(**changes)
