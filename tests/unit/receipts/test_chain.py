from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receipts.chain import ChainBroken, ChainVerifier
from receipts.errors import ReceiptFormatError
from receipts.receipt import leaf_hash, seal
from receipts.receipt_id import WriterId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from receipts.receipt import ReceiptDraft

WRITERS = [WriterId(f"00000000-0000-4000-8000-{number:012x}") for number in range(3)]


def chained(make_draft: Callable[..., ReceiptDraft], order: Iterable[int]) -> list[bytes]:
    """Seal one receipt for each entry of `order`, which says whose it is."""
    tails: dict[int, tuple[int, bytes | None]] = {}
    raws = []
    for writer in order:
        wseq, prev = tails.get(writer, (0, None))
        raws.append(seal(make_draft(), WRITERS[writer], wseq + 1, prev))
        tails[writer] = (wseq + 1, leaf_hash(raws[-1]))
    return raws


def verify(raws: Iterable[bytes]) -> dict[str, int]:
    chains = ChainVerifier()
    for raw in raws:
        chains.add(raw)
    return chains.writers


orders = st.lists(st.integers(0, 2), min_size=2, max_size=12)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)


@relaxed
@given(orders)
def test_any_interleaving_of_whole_chains_holds(make_draft: Callable[..., ReceiptDraft], order: list[int]) -> None:
    assert verify(chained(make_draft, order)) == {WRITERS[n]: order.count(n) for n in set(order)}


@relaxed
@given(orders, st.data())
def test_a_missing_receipt_is_found_by_the_next_of_its_writer(
    make_draft: Callable[..., ReceiptDraft], order: list[int], data: st.DataObject
) -> None:
    raws = chained(make_draft, order)
    inner = [place for place, writer in enumerate(order) if writer in order[place + 1 :]]
    if not inner:
        return
    del raws[data.draw(st.sampled_from(inner))]
    with pytest.raises(ChainBroken):
        verify(raws)


@relaxed
@given(orders, st.data())
def test_a_repeated_receipt_is_found(
    make_draft: Callable[..., ReceiptDraft], order: list[int], data: st.DataObject
) -> None:
    raws = chained(make_draft, order)
    place = data.draw(st.integers(0, len(raws) - 1))
    raws.insert(data.draw(st.integers(place + 1, len(raws))), raws[place])
    with pytest.raises(ChainBroken):
        verify(raws)


@relaxed
@given(orders, st.data())
def test_a_changed_receipt_is_found_by_the_next_of_its_writer(
    make_draft: Callable[..., ReceiptDraft], order: list[int], data: st.DataObject
) -> None:
    raws = chained(make_draft, order)
    inner = [place for place, writer in enumerate(order) if writer in order[place + 1 :]]
    if not inner:
        return
    place = data.draw(st.sampled_from(inner))
    twin = bytearray(raws[place])
    twin[data.draw(st.integers(0, len(twin) - 1))] ^= data.draw(st.integers(1, 255))
    raws[place] = bytes(twin)
    with pytest.raises((ChainBroken, ReceiptFormatError)):
        verify(raws)


def test_a_chain_that_begins_late_is_found(make_draft: Callable[..., ReceiptDraft]) -> None:
    with pytest.raises(ChainBroken):
        verify(chained(make_draft, [0, 0])[1:])


def test_a_second_branch_is_found(make_draft: Callable[..., ReceiptDraft]) -> None:
    first, _ = raws = chained(make_draft, [0, 0])
    fork = seal(make_draft(), WRITERS[0], 2, leaf_hash(first))
    assert verify([first, fork]) == {WRITERS[0]: 2}
    with pytest.raises(ChainBroken):
        verify([*raws, fork])
    with pytest.raises(ChainBroken, match="prev"):
        verify([*raws, seal(make_draft(), WRITERS[0], 3, leaf_hash(fork))])
