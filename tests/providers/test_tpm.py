"""The TPM provider on a real swtpm: what the TPM binds, what a rollback shows, and what happens when it dies."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import NotFound, StoreUnavailable, TooLarge
from kms.primitive import Primitive
from kms.providers.provider import Attestation, KeyHandle, ProviderKey
from kms.providers.sealed_bytes import SealedFileError
from kms.providers.secret_buffer import SecretBuffer
from tests.support.provider_parts import kid_of, missing_part, open_swtpm_provider, running_swtpm, under_load
from tests.support.public_operations import verify
from tests.support.swtpm import SwTpm, is_there

if is_there():
    from tpm2_pytss import ESAPI
    from tpm2_pytss.constants import TPM2_CAP
    from tpm2_pytss.types import TPM2B_PUBLIC, TPMS_ATTEST, TPMT_PUBLIC, TPMT_SIGNATURE

    from kms.providers.tpm import (
        MANIFEST_NAME,
        ROOT_NAME,
        TpmProvider,
        parse_tpm_root,
        quoted_data,
    )
    from kms.providers.tpm_manifest import Manifest, parse_manifest, write_manifest

DIGEST = bytes(32)
ED25519 = Primitive.ED25519


class SetClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module", autouse=True)
def _parts() -> None:
    if not is_there():
        missing_part("swtpm or tpm2-pytss")


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SwTpm]:
    with running_swtpm(tmp_path) as running:
        yield running


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sealed"


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return caught.value.reason


def check_key(provider: TpmProvider, key: ProviderKey) -> None:
    verify(key.primitive, key.public, DIGEST, provider.sign(key.handle, key.primitive, DIGEST))


def test_keys_survive_restarts_of_the_service_and_of_the_tpm(tpm: SwTpm, folder: Path) -> None:
    provider = open_swtpm_provider(tpm, folder)
    keys = [provider.generate(primitive, kid_of(primitive)) for primitive in (ED25519, Primitive.ML_DSA_65)]
    gone = provider.generate(ED25519, kid_of(ED25519, 2))
    provider.destroy(gone.handle)
    provider.close()
    tpm.kill()
    tpm.start()
    again = open_swtpm_provider(tpm, folder)
    for key in keys:
        check_key(again, key)
    with pytest.raises(NotFound):
        again.sign(gone.handle, ED25519, DIGEST)
    again.close()


def test_another_tpm_does_not_open_the_store(tpm: SwTpm, folder: Path, tmp_path: Path) -> None:
    open_swtpm_provider(tpm, folder).close()
    with running_swtpm(tmp_path / "other") as other:
        assert reason_of(lambda: open_swtpm_provider(other, folder)) == "tpm_refuses"
    open_swtpm_provider(tpm, folder).close()


def test_a_killed_tpm_stops_changes_and_evidence_and_comes_back(tpm: SwTpm, folder: Path, clock: SetClock) -> None:
    provider = open_swtpm_provider(tpm, folder, clock)
    key = provider.generate(ED25519, kid_of(ED25519))
    tpm.kill()
    for call in (
        lambda: provider.generate(ED25519, kid_of(ED25519, 2)),
        lambda: provider.destroy(key.handle),
        lambda: provider.attest(key.handle, b"nonce"),
        provider.check,
    ):
        clock.now_s += 10
        assert reason_of(call) == "token_lost"
    # Keys in use are in this process's memory; a caller that wants evidence does not get any.
    check_key(provider, key)
    tpm.start()
    clock.now_s += 10
    provider.check()
    check_key(provider, provider.generate(ED25519, kid_of(ED25519, 3)))
    assert provider.attest(key.handle, b"nonce").class_ == "tpm-2.0"
    provider.close()
    again = open_swtpm_provider(tpm, folder)
    check_key(again, key)
    again.close()


@pytest.mark.parametrize(
    "command",
    ["create_primary", "start_auth_session", "tr_from_tpmpublic", "nv_read", "nv_increment", "quote", "flush_context"],
)
def test_a_tpm_that_dies_in_any_command_is_away_and_comes_back(
    tpm: SwTpm, folder: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """What follows on a lost command, flushing behind it, fails in another way, and every call after that too."""
    provider = open_swtpm_provider(tpm, folder, clock)
    key = provider.generate(ED25519, kid_of(ED25519))
    original, dead = getattr(ESAPI, command), list[str]()

    def dying(*args: Any, **named: Any) -> Any:
        if not dead:
            dead.append(command)
            tpm.kill()
        return original(*args, **named)

    def change_and_attest() -> None:
        provider.generate(ED25519, kid_of(ED25519, 2))
        provider.attest(key.handle, b"nonce")

    monkeypatch.setattr(ESAPI, command, dying)
    assert reason_of(change_and_attest) == "token_lost"
    assert dead == [command]
    tpm.start()
    clock.now_s += 10
    provider.check()
    check_key(provider, provider.generate(ED25519, kid_of(ED25519, 3)))
    assert provider.attest(key.handle, b"nonce").class_ == "tpm-2.0"
    provider.close()


def test_a_tpm_killed_under_load_loses_no_key_that_was_told_of(tpm: SwTpm, folder: Path) -> None:
    provider = open_swtpm_provider(tpm, folder)
    told: list[ProviderKey] = []
    versions = itertools.count(1)

    def work() -> None:
        key = provider.generate(ED25519, kid_of(ED25519, next(versions)))
        told.append(key)
        provider.attest(key.handle, b"nonce")

    def flap() -> None:
        for _ in range(3):
            before = len(told)
            while len(told) < before + 3:
                time.sleep(0.001)
            tpm.kill()
            time.sleep(0.02)
            tpm.start()

    at_mending: list[int] = []

    def recovered() -> bool:
        at_mending.append(len(told))
        return len(told) > at_mending[0] + 4

    reasons = under_load(work, flap, recovered)
    assert "token_lost" in reasons
    provider.close()
    again = open_swtpm_provider(tpm, folder)
    for key in told:
        check_key(again, key)
    again.close()


def test_nothing_starts_without_the_tpm(tpm: SwTpm, folder: Path) -> None:
    open_swtpm_provider(tpm, folder).close()
    tpm.kill()
    assert reason_of(lambda: open_swtpm_provider(tpm, folder)) == "token_lost"
    tpm.start()
    open_swtpm_provider(tpm, folder).close()


def test_a_folder_that_was_put_back_is_refused(tpm: SwTpm, folder: Path, tmp_path: Path) -> None:
    provider = open_swtpm_provider(tpm, folder)
    key = provider.generate(ED25519, kid_of(ED25519))
    provider.close()
    shutil.copytree(folder, tmp_path / "backup")
    provider = open_swtpm_provider(tpm, folder)
    provider.destroy(key.handle)
    provider.close()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    assert reason_of(lambda: open_swtpm_provider(tpm, folder)) == "tpm_folder_rolled_back"


def test_a_destroyed_keys_file_that_was_put_back_is_erased(tpm: SwTpm, folder: Path) -> None:
    provider = open_swtpm_provider(tpm, folder)
    key = provider.generate(ED25519, kid_of(ED25519))
    path = folder / f"{key.handle}.key"
    content = path.read_bytes()
    provider.destroy(key.handle)
    provider.close()
    path.write_bytes(content)
    path.chmod(0o600)
    again = open_swtpm_provider(tpm, folder)
    with pytest.raises(NotFound):
        again.sign(key.handle, ED25519, DIGEST)
    again.close()
    assert not path.exists()


def test_a_tpm_whose_state_was_put_back_is_refused(tpm: SwTpm, folder: Path, tmp_path: Path) -> None:
    """Restoring swtpm's files rolls its counter back: seen as long as the folder was not put back with it."""
    open_swtpm_provider(tpm, folder).close()
    tpm.kill()
    shutil.copytree(tpm.state, tmp_path / "state-backup")
    shutil.copytree(folder, tmp_path / "backup")
    tpm.start()
    provider = open_swtpm_provider(tpm, folder)
    for version in (1, 2):
        provider.generate(ED25519, kid_of(ED25519, version))
    provider.close()
    tpm.kill()
    shutil.rmtree(tpm.state)
    shutil.copytree(tmp_path / "state-backup", tpm.state)
    tpm.start()
    assert reason_of(lambda: open_swtpm_provider(tpm, folder)) == "tpm_counter_rolled_back"
    # The limit, which docs/reference/kms-providers.md discloses: both put back together look like the past itself.
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    open_swtpm_provider(tpm, folder).close()


def test_a_death_between_list_and_counter_is_caught_up_with(tpm: SwTpm, folder: Path, clock: SetClock) -> None:
    provider = open_swtpm_provider(tpm, folder, clock)
    key = provider.generate(ED25519, kid_of(ED25519))
    folder_replace = provider._folder.replace

    def replace_then_kill(name: str, content: bytes) -> None:
        folder_replace(name, content)
        tpm.kill()

    provider._folder.replace = replace_then_kill  # type: ignore[method-assign]
    assert reason_of(lambda: provider.generate(ED25519, kid_of(ED25519, 2))) == "token_lost"
    provider._folder.replace = folder_replace  # type: ignore[method-assign]
    tpm.start()
    clock.now_s += 10
    third = provider.generate(ED25519, kid_of(ED25519, 3))
    provider._folder.replace = replace_then_kill  # type: ignore[method-assign]
    assert reason_of(lambda: provider.destroy(third.handle)) == "token_lost"
    provider.close()
    tpm.start()
    # A start, too, counts what was written before the death; the destruction that had begun holds.
    again = open_swtpm_provider(tpm, folder)
    check_key(again, key)
    with pytest.raises(NotFound):
        again.sign(third.handle, ED25519, DIGEST)
    again.close()


@pytest.mark.parametrize("name", ["root.tpm", "keys.list"])
def test_an_altered_or_missing_file_of_the_store_is_refused(tpm: SwTpm, folder: Path, name: str) -> None:
    provider = open_swtpm_provider(tpm, folder)
    provider.generate(ED25519, kid_of(ED25519))
    provider.close()
    content = (folder / name).read_bytes()
    for position in (0, 8, 12, 26, 30, len(content) // 2, len(content) - 1):
        altered = bytearray(content)
        altered[position] ^= 1
        (folder / name).write_bytes(altered)
        with pytest.raises(StoreUnavailable):
            open_swtpm_provider(tpm, folder)
    for cut in (content[:-1], content + b"\0", b""):
        (folder / name).write_bytes(cut)
        with pytest.raises(StoreUnavailable):
            open_swtpm_provider(tpm, folder)
    (folder / name).unlink()
    expected = {ROOT_NAME: "root_missing", MANIFEST_NAME: "tpm_list_missing"}
    assert reason_of(lambda: open_swtpm_provider(tpm, folder)) == expected[name]
    (folder / name).write_bytes(content)
    (folder / name).chmod(0o600)
    open_swtpm_provider(tpm, folder).close()


def test_two_stores_have_two_counters_in_one_tpm(tpm: SwTpm, tmp_path: Path) -> None:
    roots = []
    for name in ("one", "two"):
        open_swtpm_provider(tpm, tmp_path / name).close()
        roots.append(parse_tpm_root((tmp_path / name / ROOT_NAME).read_bytes()))
    assert roots[1].nv_index == roots[0].audit_nv_index + 1 == roots[0].nv_index + 2
    # A counter is not read with another store's authorisation.
    shutil.copy2(tmp_path / "one" / ROOT_NAME, tmp_path / "two" / ROOT_NAME)
    assert reason_of(lambda: open_swtpm_provider(tpm, tmp_path / "two")) == "tpm_store_seal_broken"


def test_the_audit_logs_counter_rises_and_stands_over_restarts(tpm: SwTpm, folder: Path) -> None:
    provider = open_swtpm_provider(tpm, folder)
    first = provider.audit_counter.read()
    assert [provider.audit_counter.increment() for _ in range(3)] == [first + 1, first + 2, first + 3]
    # Changes of the folder are counted elsewhere.
    provider.generate(ED25519, kid_of(ED25519))
    assert provider.audit_counter.read() == first + 3
    provider.close()
    tpm.kill()
    tpm.start()
    again = open_swtpm_provider(tpm, folder)
    assert again.audit_counter.read() == first + 3
    tpm.kill()
    assert reason_of(again.audit_counter.read) == "token_lost"
    again.close()


def test_no_handle_stays_loaded_behind_a_call(tpm: SwTpm, folder: Path) -> None:
    provider = open_swtpm_provider(tpm, folder)
    key = provider.generate(ED25519, kid_of(ED25519))
    for number in range(8):
        provider.attest(key.handle, bytes([number]))
        provider.check()

    def loaded(session) -> list[int]:  # type: ignore[no-untyped-def]
        counts = []
        for first in (0x8000_0000, 0x0200_0000, 0x0300_0000):  # transient objects, loaded and saved sessions
            _, data = session._esapi.get_capability(TPM2_CAP.HANDLES, first, 16)
            counts.append(data.data.handles._cdata.count)
        return counts

    assert provider._thread.call(loaded, 5.0) == [0, 0, 0]
    provider.close()


def check_quote(attestation: Attestation, nonce: bytes, handle: KeyHandle, public: bytes) -> bytes:
    """Verify evidence with `cryptography` over what the TSS unmarshals. Returns the quoting key's x coordinate."""
    evidence = json.loads(attestation.evidence)
    attest_bytes = bytes.fromhex(evidence["quote"])
    key, _ = TPMT_PUBLIC.unmarshal(bytes.fromhex(evidence["key"]))
    signature, _ = TPMT_SIGNATURE.unmarshal(bytes.fromhex(evidence["signature"]))
    point = key.unique.ecc
    x = int.from_bytes(bytes(point.x), "big")
    numbers = ec.EllipticCurvePublicNumbers(x, int.from_bytes(bytes(point.y), "big"), ec.SECP256R1())
    ecdsa = signature.signature.ecdsa
    der = utils.encode_dss_signature(
        int.from_bytes(bytes(ecdsa.signatureR), "big"), int.from_bytes(bytes(ecdsa.signatureS), "big")
    )
    numbers.public_key().verify(der, attest_bytes, ec.ECDSA(hashes.SHA256()))
    attest, _ = TPMS_ATTEST.unmarshal(attest_bytes)
    if bytes(attest.extraData) != quoted_data(nonce, handle, public, bytes.fromhex(evidence["root"])):
        raise InvalidSignature
    return bytes(point.x)


def test_a_quote_binds_nonce_key_and_root(tpm: SwTpm, folder: Path) -> None:
    provider = open_swtpm_provider(tpm, folder)
    key, other = (provider.generate(ED25519, kid_of(ED25519, version)) for version in (1, 2))
    attestation = provider.attest(key.handle, b"nonce")
    quoting = check_quote(attestation, b"nonce", key.handle, key.public)
    # The quoting key is restricted to what the TPM itself made, and is the same one next time.
    public, _ = TPMT_PUBLIC.unmarshal(bytes.fromhex(json.loads(attestation.evidence)["key"]))
    assert {"restricted", "sign", "fixedtpm"} <= set(str(public.objectAttributes).lower().split("|"))
    assert check_quote(provider.attest(other.handle, b""), b"", other.handle, other.public) == quoting
    for nonce, handle, raw in (
        (b"noncf", key.handle, key.public),
        (b"nonce", other.handle, key.public),
        (b"nonce", key.handle, other.public),
    ):
        with pytest.raises(InvalidSignature):
            check_quote(attestation, nonce, handle, raw)
    evidence = json.loads(attestation.evidence)
    for field in ("quote", "root"):
        altered = evidence | {field: evidence[field][:-1] + ("0" if evidence[field][-1] != "0" else "1")}
        with pytest.raises(InvalidSignature):
            check_quote(Attestation("tpm-2.0", json.dumps(altered).encode()), b"nonce", key.handle, key.public)
    with pytest.raises(TooLarge):
        provider.attest(key.handle, bytes(65))
    provider.close()


def test_the_master_key_is_not_in_the_folder_nor_readable_beside_the_tpm(tpm: SwTpm, folder: Path) -> None:
    drawn: list[bytes] = []

    def remembered(view: memoryview) -> None:
        from kms.providers.secret_buffer import os_random

        os_random(view)
        drawn.append(bytes(view))

    provider = open_swtpm_provider(tpm, folder, random_fill=remembered)
    provider.generate(ED25519, kid_of(ED25519))
    provider.close()
    assert len(drawn) == 2
    for path in folder.iterdir():
        assert not any(secret[:16] in path.read_bytes() for secret in drawn)
    public, _ = TPM2B_PUBLIC.unmarshal(parse_tpm_root((folder / ROOT_NAME).read_bytes()).sealed.public)
    attributes = str(public.publicArea.objectAttributes).lower()
    assert "fixedtpm" in attributes
    assert "fixedparent" in attributes


MAC_KEY = SecretBuffer(32)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.sets(st.binary(min_size=32, max_size=32)))
def test_a_list_reads_as_it_was_written_and_no_other_way(store_id: bytes, count: int, handles: set[bytes]) -> None:
    manifest = Manifest(store_id, count, frozenset(KeyHandle(handle.hex()) for handle in handles))
    data = write_manifest(manifest, MAC_KEY, b"root")
    assert parse_manifest(data, MAC_KEY, b"root") == manifest
    for altered in (data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(SealedFileError):
            parse_manifest(altered, MAC_KEY, b"root")
    with pytest.raises(SealedFileError):
        parse_manifest(data, MAC_KEY, b"toor")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_root_or_are_one(data: bytes) -> None:
    for content in (data, b"SGNTTPMR\1" + data):
        try:
            assert parse_tpm_root(content).encode() == content
        except SealedFileError:
            continue
