from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.receipt_id import ID_RANDOM_BYTES, RECEIPT_ID_PATTERN, new_receipt_id

times = st.integers(0, 2**48 - 1)
noise = st.binary(min_size=ID_RANDOM_BYTES, max_size=ID_RANDOM_BYTES)


@given(times, noise)
def test_ids_are_version_7_uuids_that_carry_their_time(time_ms: int, random: bytes) -> None:
    text = new_receipt_id(time_ms, random)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == time_ms
    assert re.search(RECEIPT_ID_PATTERN, text)


@given(times, noise)
def test_74_random_bits_are_kept(time_ms: int, random: bytes) -> None:
    number = int.from_bytes(random, "big")
    flipped = {
        new_receipt_id(time_ms, (number ^ 1 << bit).to_bytes(ID_RANDOM_BYTES, "big"))
        for bit in range(ID_RANDOM_BYTES * 8)
    }
    assert len(flipped - {new_receipt_id(time_ms, random)}) == 74


def test_later_ids_sort_later() -> None:
    assert new_receipt_id(1, b"\xff" * 10) < new_receipt_id(2, b"\x00" * 10)


@pytest.mark.parametrize(("time_ms", "random"), [(-1, b"x" * 10), (2**48, b"x" * 10), (0, b"x" * 9), (0, b"x" * 11)])
def test_wrong_time_or_randomness_is_refused(time_ms: int, random: bytes) -> None:
    with pytest.raises(ValueError, match=r"48 bits|10 bytes"):
        new_receipt_id(time_ms, random)
