"""The keyring: what a file may say, when keys hold, and how a changed file takes effect."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from extproc import keyring as keyring_module
from extproc.errors import ServerFault
from extproc.keyring import Keyring, KeyringError, KeyringFile, parse_keyring, parse_time
from pch.errors import UnknownKey
from pch.keys import generate, public_jwk, thumbprint

if TYPE_CHECKING:
    from pathlib import Path

ED25519 = [public_jwk(generate("ed25519")) for _ in range(4)]
P256 = public_jwk(generate("ecdsa-p256-sha256"))
NOON = "2026-01-31T12:00:00Z"
NOON_MS = 1_769_860_800_000


def entry(jwk: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"subject": "alice", "jwk": jwk or ED25519[0], "status": "active"} | changes


def parsed(*entries: Any) -> Keyring:
    return parse_keyring(json.dumps(entries).encode())


def write(path: Path, *entries: Any) -> None:
    write_text(path, json.dumps(entries))


def write_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def test_a_registered_key_is_found_by_its_thumbprint() -> None:
    keyring = parsed(entry(), entry(P256, subject="bob", not_before=NOON, not_after="2026-01-31T12:00:01Z"))
    found = keyring.lookup(thumbprint(P256))
    assert (found.subject, found.not_before_ms, found.not_after_ms) == ("bob", NOON_MS, NOON_MS + 1000)
    assert found.public_key.algorithm.name == "ecdsa-p256-sha256"
    assert not found.revoked
    assert len(keyring) == 2
    for unknown in ("", "x", thumbprint(ED25519[1]), thumbprint(P256) + " "):
        with pytest.raises(UnknownKey):
            keyring.lookup(unknown)


def test_a_revoked_key_is_found_and_says_so() -> None:
    assert parsed(entry(status="revoked")).lookup(thumbprint(ED25519[0])).revoked


def test_a_subject_may_have_several_keys() -> None:
    keyring = parsed(*(entry(jwk) for jwk in ED25519))
    assert {keyring.lookup(thumbprint(jwk)).subject for jwk in ED25519} == {"alice"}


@pytest.mark.parametrize(
    ("now_ms", "good"),
    [(NOON_MS - 1, False), (NOON_MS, True), (NOON_MS + 999, True), (NOON_MS + 1000, False), (0, False), (2**62, False)],
)
def test_a_key_holds_from_not_before_until_not_after(now_ms: int, good: bool) -> None:
    found = parsed(entry(not_before=NOON, not_after="2026-01-31T12:00:01Z")).lookup(thumbprint(ED25519[0]))
    if good:
        found.check_dates(now_ms)
    else:
        with pytest.raises(UnknownKey):
            found.check_dates(now_ms)


@pytest.mark.parametrize("now_ms", [0, NOON_MS, 2**62])
def test_a_key_without_dates_always_holds(now_ms: int) -> None:
    for each in (entry(), entry(not_before=None, not_after=None)):
        parsed(each).lookup(thumbprint(ED25519[0])).check_dates(now_ms)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NOON, NOON_MS),
        ("2026-01-31T12:00:00.001Z", NOON_MS + 1),
        ("1970-01-01T00:00:00Z", 0),
        (None, None),
    ],
)
def test_times_in_utc_are_read(text: str | None, expected: int | None) -> None:
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-31", "2026-01-31T12:00:00", "2026-01-31T12:00:00+00:00", "2026-01-31 12:00:00Z",
     "2026-02-30T12:00:00Z", "2026-01-31T24:00:01Z", "2026-01-31T12:00:00Z ",
     "2026-01-31t12:00:00z",
     "２026-01-31T12:00:00Z", 5, True, []],
)  # fmt: skip
def test_other_times_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text)
    with pytest.raises(KeyringError, match="entry 1"):
        parsed(entry(not_before=text))


PRIVATE = generate("ed25519")

REFUSED = [
    ("", "is not JSON"),
    ("[", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("\udcff", "is not JSON"),
    ("{}", "is not a JSON list"),
    ("null", "is not a JSON list"),
    ("[NaN]", "holds NaN"),
    ("[-Infinity]", "holds -Infinity"),
    ("[3]", "entry 1: has unknown members, or is no object"),
    ("[[]]", "entry 1: has unknown members, or is no object"),
    ('[{"subject": "a", "subject": "b"}]', "the same member twice"),
    ([entry(), {"subject": "a"}], "entry 2: needs subject, jwk and status"),
    ([entry(role="admin")], "entry 1: has unknown members"),
    ([entry(), entry()], "entry 2: the key is there twice"),
    ([entry(), entry(subject="bob", status="revoked")], "entry 2: the key is there twice"),
    ([entry(), entry(ED25519[0] | {"kid": "other"})], "entry 2: the key is there twice"),
    ([entry(status="gone")], "entry 1: status must be active or revoked"),
    ([entry(status=None)], "entry 1: status must be"),
    ([entry(subject="")], "entry 1: must be a subject"),
    ([entry(subject="a b")], "entry 1: must be a subject"),
    ([entry(subject="a\nx")], "entry 1: must be a subject"),
    ([entry(subject="é")], "entry 1: must be a subject"),
    ([entry(subject="a" * 129)], "entry 1: must be a subject"),
    ([entry(subject=7)], "entry 1: subject must be text"),
    ([entry(not_before=NOON, not_after=NOON)], "entry 1: not_before must be earlier"),
    ([entry(not_before=NOON, not_after="2025-01-01T00:00:00Z")], "entry 1: not_before must be earlier"),
    ([{"subject": "a", "jwk": "key", "status": "active"}], "entry 1: jwk must be an object"),
    ([entry(PRIVATE)], "entry 1: JWK holds a private key"),
    ([entry({"kty": "oct", "k": "AAAA"})], "entry 1: "),
    ([entry(ED25519[0] | {"x": "AAAA"})], "entry 1: "),
    ([entry(ED25519[0] | {"crv": "X25519"})], "entry 1: "),
    ([entry(P256 | {"y": P256["x"]})], "entry 1: "),
    ([entry(ED25519[0] | {"alg": "ES256"})], "entry 1: "),
]  # fmt: skip


def text_of(document: object) -> str:
    return document if isinstance(document, str) else json.dumps(document)


@pytest.mark.parametrize(("document", "message"), REFUSED)
def test_a_bad_file_is_refused_without_quoting_keys(document: object, message: str) -> None:
    with pytest.raises(KeyringError) as caught:
        parse_keyring(text_of(document).encode("utf-8", "surrogateescape"))
    assert message in str(caught.value)
    assert PRIVATE["d"] not in str(caught.value)


@pytest.mark.parametrize(("document", "message"), REFUSED)
def test_a_file_that_breaks_keeps_the_last_good_keyring(tmp_path: Path, document: object, message: str) -> None:
    path = tmp_path / "keyring.json"
    write(path, entry())
    file = KeyringFile(path)
    good = file.current
    path.with_suffix(".new").write_bytes(text_of(document).encode("utf-8", "surrogateescape"))
    path.with_suffix(".new").replace(path)
    for _ in range(2):
        file.reload()
        assert file.current is good
        assert message in str(file.problem)
        assert str(path) in str(file.problem)
    write(path, entry(), entry(P256))
    file.reload()
    assert file.problem is None
    assert len(file.current) == 2
    path.write_text(text_of(document), errors="surrogateescape")
    with pytest.raises(KeyringError, match=r"keyring\.json"):
        KeyringFile(path)


def test_too_many_entries_or_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_module, "MAX_ENTRIES", 1)
    with pytest.raises(KeyringError, match="more than 1 entries"):
        parsed(entry(), entry(P256))
    monkeypatch.setattr(keyring_module, "MAX_FILE_BYTES", 10)
    write(tmp_path / "k", entry())
    with pytest.raises(KeyringError, match="is larger than 10 bytes"):
        KeyringFile(tmp_path / "k")


def test_an_absent_file_stops_the_start_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ServerFault, match=r"absent\.json: cannot be read"):
        KeyringFile(tmp_path / "absent.json")


def test_a_file_that_anyone_may_write_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "k", entry())
    (tmp_path / "k").chmod(0o666)
    with pytest.raises(KeyringError, match="has mode 0666"):
        KeyringFile(tmp_path / "k")


def test_a_file_that_vanishes_keeps_the_last_good_keyring(tmp_path: Path) -> None:
    write(tmp_path / "k", entry())
    file = KeyringFile(tmp_path / "k")
    (tmp_path / "k").unlink()
    file.reload()
    assert len(file.current) == 1
    assert "cannot be read" in str(file.problem)


def test_an_edit_in_place_of_the_same_length_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text(json.dumps([entry(subject="alice")]))
    file = KeyringFile(path)
    before = path.stat()
    path.write_text(json.dumps([entry(subject="alicf")]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.reload()
    assert file.current.lookup(thumbprint(ED25519[0])).subject == "alicf"


def test_a_file_rewritten_with_the_same_content_keeps_the_same_keyring(tmp_path: Path) -> None:
    write(tmp_path / "k", entry())
    file = KeyringFile(tmp_path / "k")
    before = file.current
    write(tmp_path / "k", entry())
    file.reload()
    assert file.current is before


def test_a_reload_reuses_decoded_keys_and_drops_those_that_went(tmp_path: Path) -> None:
    path = tmp_path / "k"
    write(path, entry(), entry(ED25519[1]), entry(ED25519[2] | {"key_ops": ["verify"]}))
    file = KeyringFile(path)
    first = file.current
    write(path, entry(status="revoked"), entry(ED25519[2] | {"key_ops": ["verify"]}))
    file.reload()
    kept = thumbprint(ED25519[0])
    assert file.current.lookup(kept).public_key is first.lookup(kept).public_key
    assert file.current.lookup(kept).revoked
    assert not first.lookup(kept).revoked
    with pytest.raises(UnknownKey):
        file.current.lookup(thumbprint(ED25519[1]))
    assert len(file.current.decoded) == 1


def test_a_key_that_only_resembles_a_known_one_is_checked_anew(tmp_path: Path) -> None:
    path = tmp_path / "k"
    write(path, entry())
    file = KeyringFile(path)
    write(path, entry(ED25519[0] | {"d": "AAAA"}))
    file.reload()
    assert "private" in str(file.problem)


def test_an_unforeseen_failure_keeps_the_last_good_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "k", entry())
    file = KeyringFile(tmp_path / "k")

    def fail(*_: object, **__: object) -> Keyring:
        raise MemoryError

    monkeypatch.setattr(keyring_module, "parse_keyring", fail)
    write(tmp_path / "k", entry(P256))
    file.reload()
    assert len(file.current) == 1
    assert "MemoryError" in str(file.problem)


async def test_watching_takes_a_change_up_and_outlives_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "k"
    write(path, entry())
    file = KeyringFile(path)
    watch = asyncio.create_task(file.watch(0.001))

    async def until(reached: Any) -> None:
        async with asyncio.timeout(10):
            while not reached():
                await asyncio.sleep(0.001)

    write_text(path, "broken")
    await until(lambda: file.problem is not None)
    write(path, entry(), entry(P256))
    await until(lambda: len(file.current) == 2)
    assert file.problem is None
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


PQ = public_jwk(generate("ml-dsa-65"))
OTHER_PQ = public_jwk(generate("ml-dsa-65"))


def pair(first: dict[str, Any], second: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The entries of a hybrid; `changes` are of the second one."""
    return [entry(first, partner=thumbprint(second)), entry(second, partner=thumbprint(first)) | changes]


@pytest.mark.parametrize("classical", [ED25519[0], P256])
def test_the_halves_of_a_hybrid_name_each_other_in_any_order(classical: dict[str, Any]) -> None:
    for entries in (pair(classical, PQ), pair(PQ, classical)):
        keyring = parsed(*entries, entry(ED25519[1], partner=None))
        assert keyring.lookup(thumbprint(classical)).partner == thumbprint(PQ)
        assert keyring.lookup(thumbprint(PQ)).partner == thumbprint(classical)
        assert keyring.lookup(thumbprint(ED25519[1])).partner is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(partner=thumbprint(PQ))], "entry 1: its partner is not registered"),
        ([entry(partner=thumbprint(PQ)), entry(PQ)], "entry 1: its partner does not name it"),
        ([entry(), entry(PQ, partner=thumbprint(ED25519[0]))], "entry 2: its partner does not name it"),
        (pair(ED25519[0], PQ, subject="bob"), "entry 1: its partner is of another subject"),
        (pair(ED25519[0], PQ, partner=thumbprint(OTHER_PQ)), "entry 1: its partner does not name it"),
        ([entry(partner=thumbprint(ED25519[0]))], "entry 1: the two keys are no hybrid"),
        (pair(ED25519[0], ED25519[1]), "entry 1: the two keys are no hybrid"),
        (pair(ED25519[0], P256), "entry 1: the two keys are no hybrid"),
        (pair(PQ, OTHER_PQ), "entry 1: the two keys are no hybrid"),
        (pair(ED25519[0], public_jwk(generate("ml-dsa-44"))), "entry 1: the two keys are no hybrid"),
        (pair(P256, public_jwk(generate("ml-dsa-87"))), "entry 1: the two keys are no hybrid"),
        ([entry(partner=7)], "entry 1: partner must be a key id"),
        ([entry(partner=[thumbprint(PQ)]), entry(PQ)], "entry 1: partner must be a key id"),
        ([*pair(ED25519[0], PQ), entry(ED25519[1], partner=thumbprint(PQ))], "entry 3: its partner does not name it"),
    ],
)
def test_partners_that_are_no_hybrid_of_one_subject_refuse_the_file(entries: list[Any], message: str) -> None:
    with pytest.raises(KeyringError) as caught:
        parsed(*entries)
    assert str(caught.value).startswith(message)


def test_the_keyring_and_its_entries_are_frozen() -> None:
    keyring = parsed(entry())
    with pytest.raises(dataclasses.FrozenInstanceError):
        keyring.lookup(thumbprint(ED25519[0])).revoked = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        keyring.entries["x"] = keyring.lookup(thumbprint(ED25519[0]))  # type: ignore[index]
