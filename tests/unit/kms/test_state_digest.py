from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kms.state_digest import StateDigest

records = st.dictionaries(st.text(max_size=8), st.binary(max_size=8), max_size=12)


@given(first=records, second=records)
def test_a_digest_says_what_is_there_and_not_how_it_came(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    by_steps, at_once = StateDigest(), StateDigest()
    for name, record in first.items():
        by_steps.put(name, record)
    for name in first.keys() - second.keys():
        by_steps.drop(name)
    for name, record in second.items():
        by_steps.put(name, record)
    at_once.load(second)
    assert by_steps.hex(5) == at_once.hex(5)


@given(first=records, second=records)
def test_other_records_have_another_digest(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    one, other = StateDigest(), StateDigest()
    one.load(first)
    other.load(second)
    assert (one.hex(1) == other.hex(1)) == (first == second)


def test_records_that_change_names_and_epochs_are_told_apart() -> None:
    digest, swapped = StateDigest(), StateDigest()
    digest.load({"a": b"1", "b": b"2"})
    swapped.load({"a": b"2", "b": b"1"})
    assert digest.hex(1) != swapped.hex(1)
    assert digest.hex(1) != digest.hex(2)
    assert len(digest.hex(1)) == 64
