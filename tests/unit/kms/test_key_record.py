from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import Conflict, NotFound
from kms.key_record import MAX_VERSIONS, KeyRecord, KeyState, decode_record, encode_record
from tests.support.kms_records import name_of, record_of, version_of


def test_a_record_is_read_as_it_was_written() -> None:
    record = record_of(versions=3)
    assert decode_record(encode_record(record)) == record


@given(data=st.binary(max_size=200))
def test_no_other_bytes_are_a_record(data: bytes) -> None:
    with pytest.raises(ValueError, match="key record"):
        decode_record(data)


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_an_altered_record_is_refused_or_is_another_one(place: int, flip: int) -> None:
    record = record_of(versions=2)
    altered = bytearray(encode_record(record))
    altered[place % len(altered)] ^= flip
    try:
        read = decode_record(bytes(altered))
    except ValueError:
        return
    assert read != record


@pytest.mark.parametrize(("index", "value"), [(0, 2), (3, "1"), (7, [])])
def test_a_record_of_another_format_or_without_versions_is_refused(index: int, value: object) -> None:
    fields = msgspec.msgpack.decode(encode_record(record_of()))
    fields[index] = value
    with pytest.raises(ValueError, match="key record"):
        decode_record(msgspec.msgpack.encode(fields))


def test_versions_are_numbered_without_gaps() -> None:
    record = record_of()
    with pytest.raises(ValueError, match="gaps"):
        record.rotated(version_of(3))
    gap = KeyRecord(record.name, (version_of(1), version_of(3)), KeyState.ENABLED, 1, (), "inmem")
    with pytest.raises(ValueError, match="contradicts"):
        decode_record(encode_record(gap))


def test_the_newest_version_is_used_unless_one_is_named() -> None:
    record = record_of(versions=3)
    assert record.private_version(None).number == 3
    assert record.private_version(1).number == 1
    for number in (0, 4, -1):
        with pytest.raises(NotFound):
            record.version_at(number)


def test_a_fence_holds_for_private_and_public_halves_and_never_sinks() -> None:
    record = record_of(versions=3).changed(KeyState.ENABLED, 3)
    assert [version.number for version in record.open_versions()] == [3]
    for use in (record.version_at, record.private_version):
        with pytest.raises(Conflict) as refused:
            use(2)
        assert refused.value.reason == "version_fenced"
    with pytest.raises(Conflict) as sinking:
        record.changed(KeyState.ENABLED, 2)
    assert sinking.value.reason == "fence_sinks"


def test_a_fence_may_shut_out_every_version_there_is_but_not_more() -> None:
    record = record_of(versions=2).changed(KeyState.ENABLED, 3)
    assert record.open_versions() == ()
    with pytest.raises(Conflict):
        record.version_at(None)
    with pytest.raises(Conflict) as beyond:
        record.changed(KeyState.ENABLED, 4)
    assert beyond.value.reason == "fence_beyond"
    assert record.rotated(version_of(3)).version_at(None).number == 3


def test_a_disabled_key_verifies_and_does_not_sign() -> None:
    record = record_of().changed(KeyState.DISABLED, None)
    assert record.version_at(None).number == 1
    with pytest.raises(Conflict) as refused:
        record.private_version(None)
    assert refused.value.reason == "key_disabled"
    assert record.changed(KeyState.ENABLED, None).private_version(None).number == 1


@pytest.mark.parametrize("state", [KeyState.ENABLED, KeyState.DISABLED])
def test_a_destroyed_key_never_comes_back(state: KeyState) -> None:
    record = record_of().changed(KeyState.DESTROYED, None)
    with pytest.raises(Conflict):
        record.changed(state, None)
    assert record.changed(KeyState.DESTROYED, 2).min_version == 2


def test_a_key_has_a_bounded_number_of_versions() -> None:
    record = record_of(versions=MAX_VERSIONS)
    with pytest.raises(Conflict) as refused:
        record.rotated(version_of(MAX_VERSIONS + 1))
    assert refused.value.reason == "version_limit"


def test_a_record_is_named_by_its_newest_version() -> None:
    assert str(record_of(name_of(7), 2).newest_kid).endswith("#v2")


def test_a_record_whose_handle_was_made_for_another_key_or_version_uses_nothing() -> None:
    record, other = record_of(versions=2), record_of(name_of(7), versions=2)
    assert record.private_version(2) == record.versions[1]
    for stolen in (other.versions[1], replace(record.versions[0], number=2)):
        moved = replace(record, versions=(record.versions[0], stolen))
        assert moved.private_version(1) == record.versions[0]
        with pytest.raises(NotFound) as refused:
            moved.private_version(2)
        assert refused.value.reason == "handle_of_another_key"
