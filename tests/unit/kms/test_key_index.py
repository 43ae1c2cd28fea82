from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms import key_index
from kms.errors import NotFound, StoreUnavailable
from kms.key_index import MAX_CANDIDATES, MAX_KEPT, KeyIndex
from kms.key_record import KeyState
from kms.primitive import Primitive
from tests.support.kms_records import name_of, record_of, version_of


def numbers(index: KeyIndex, tenant: str = "core") -> list[tuple[str, int]]:
    return [(record.name.uuid[-2:], version.number) for record, version in index.newest(tenant, Primitive.ED25519)]


def test_a_key_is_found_by_its_whole_name() -> None:
    index = KeyIndex()
    index.put(record_of(name_of(1)))
    assert index.find(name_of(1)).name == name_of(1)
    for other in (name_of(2), name_of(1, tenant="acme"), name_of(1, alg="ml-dsa")):
        with pytest.raises(NotFound):
            index.find(other)
    assert [record.name for record in index] == [name_of(1)]


def test_candidates_are_the_tenants_versions_newest_first() -> None:
    index = KeyIndex()
    index.put(record_of(name_of(1), versions=2, created_ms=100))
    index.put(record_of(name_of(2), created_ms=101))
    index.put(record_of(name_of(3, tenant="acme"), created_ms=500))
    assert numbers(index) == [("02", 1), ("01", 2), ("01", 1)]
    assert index.newest("core", Primitive.ML_DSA_65) == ()
    assert index.newest("nobody", Primitive.ED25519) == ()


def test_candidates_change_with_the_keys() -> None:
    index = KeyIndex()
    record = record_of(name_of(1), created_ms=100)
    index.put(record)
    assert numbers(index) == [("01", 1)]
    assert index.newest("core", Primitive.ED25519) is index.newest("core", Primitive.ED25519)
    index.put(record.rotated(version_of(2, created_ms=200)))
    assert numbers(index) == [("01", 2), ("01", 1)]
    index.put(index.find(name_of(1)).changed(KeyState.ENABLED, 2))
    assert numbers(index) == [("01", 2)]
    index.put(index.find(name_of(1)).changed(KeyState.DESTROYED, 3))
    assert numbers(index) == []


def test_candidates_are_at_most_64() -> None:
    index = KeyIndex()
    for number in range(MAX_CANDIDATES + 6):
        index.put(record_of(name_of(number), created_ms=number))
    found = numbers(index)
    assert len(found) == MAX_CANDIDATES
    assert found[0] == (f"{MAX_CANDIDATES + 5:02x}", 1)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["rotate", "rotate", "rotate", "fence", "disable"])), max_size=120
    ),
    looks=st.sets(st.integers(0, 119)),
)
@settings(deadline=None)
@pytest.mark.parametrize(("most", "kept"), [(3, 8), (3, 3), (MAX_CANDIDATES, MAX_KEPT)])
def test_candidates_kept_up_to_date_are_those_gathered_anew(
    most: int, kept: int, changes: list[tuple[int, str]], looks: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_index, "MAX_CANDIDATES", most)
        patch.setattr(key_index, "MAX_KEPT", kept)
        _compare_candidates(changes, looks)


def _compare_candidates(changes: list[tuple[int, str]], looks: set[int]) -> None:
    index = KeyIndex()
    for step, (number, verb) in enumerate(changes):
        record = index.get(name_of(number))
        if record is None:
            record = record_of(name_of(number), created_ms=step)
        elif verb == "rotate":
            record = record.rotated(version_of(record.newest.number + 1, created_ms=step))
        elif verb == "fence":
            record = record.changed(record.state, min(record.min_version + 3, record.newest.number + 1))
        else:
            record = record.changed(KeyState.DISABLED, None)
        index.put(record)
        if step in looks:
            fresh = KeyIndex()
            for each in index:
                fresh.put(each)
            assert index.newest("core", Primitive.ED25519) == fresh.newest("core", Primitive.ED25519)


def test_fences_make_few_searches_of_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a tenant with many keys could hold the event loop up with each fence (I-17)."""
    index, searches = KeyIndex(), 0
    gather = key_index.heapq.nlargest

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal searches
        searches += 1
        return gather(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(key_index.heapq, "nlargest", counted)
    for number in range(MAX_KEPT):
        index.put(record_of(name_of(number), created_ms=number))
    large = record_of(name_of(0xFFFF), versions=MAX_KEPT, created_ms=10_000)
    index.put(large)
    for fence in range(2, MAX_KEPT + 1):
        index.newest("core", Primitive.ED25519)
        large = large.changed(large.state, fence)
        index.put(large)
    assert searches <= 1 + MAX_KEPT // (MAX_KEPT - MAX_CANDIDATES)


def test_a_change_while_candidates_are_gathered_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    index = KeyIndex()
    record = record_of(name_of(1), created_ms=100)
    index.put(record)
    gather = key_index.heapq.nlargest

    def meanwhile(*args: object, **kwargs: object) -> object:
        found = gather(*args, **kwargs)  # type: ignore[call-overload]
        index.put(record.rotated(version_of(2, created_ms=200)))
        return found

    monkeypatch.setattr(key_index.heapq, "nlargest", meanwhile)
    assert numbers(index) == [("01", 1)]
    monkeypatch.setattr(key_index.heapq, "nlargest", gather)
    assert numbers(index) == [("01", 2), ("01", 1)]


def test_no_tenant_takes_the_room_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "MAX_VERSIONS_IN_ALL", 6)
    monkeypatch.setattr(key_index, "MAX_TENANT_VERSIONS", 3)
    index = KeyIndex()
    index.put(record_of(name_of(1), versions=3))
    with pytest.raises(StoreUnavailable) as refused:
        index.check_room("core", versions=1)
    assert refused.value.reason == "key_limit"
    index.check_room("acme", versions=3)
    index.put(record_of(name_of(2, tenant="acme"), versions=3))
    with pytest.raises(StoreUnavailable):
        index.check_room("third", versions=1)


def test_a_tenants_parts_are_counted_by_provider_without_those_of_destroyed_keys() -> None:
    index = KeyIndex()
    record = record_of(name_of(1), versions=3)
    index.put(record)
    index.put(record_of(name_of(2, tenant="acme")))
    index.check_parts("core", "inmem", parts=1, most=4)
    for provider, tenant, most in (("file", "core", 1), ("inmem", "acme", 2), ("inmem", "nobody", 1)):
        index.check_parts(tenant, provider, parts=1, most=most)
    with pytest.raises(StoreUnavailable) as refused:
        index.check_parts("core", "inmem", parts=2, most=4)
    assert refused.value.reason == "key_limit"
    rotated = record.rotated(version_of(4))
    index.put(rotated)
    with pytest.raises(StoreUnavailable):
        index.check_parts("core", "inmem", parts=1, most=4)
    index.put(rotated.changed(KeyState.DISABLED, None))
    with pytest.raises(StoreUnavailable):
        index.check_parts("core", "inmem", parts=1, most=4)
    index.put(rotated.changed(KeyState.DESTROYED, None))
    index.check_parts("core", "inmem", parts=4, most=4)
