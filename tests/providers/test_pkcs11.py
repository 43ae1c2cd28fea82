"""The PKCS#11 provider on a real SoftHSM2: what never comes out, and what happens when the token goes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pkcs11
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from pkcs11 import Attribute, KeyType, ObjectClass
from prometheus_client import CollectorRegistry

from kms.errors import NotFound, StoreUnavailable, TooLarge, Unsupported
from kms.primitive import Primitive
from kms.providers.connection import ConnectionMeter
from kms.providers.pkcs11 import Pkcs11Provider, open_pkcs11_provider
from kms.providers.token_session import MARKER_ID
from kms.telemetry import Telemetry
from tests.support import softhsm
from tests.support.provider_parts import kid_of, open_softhsm_provider, running_softhsm, under_load
from tests.support.public_operations import verify

DIGEST = bytes(32)
ED25519, P256 = Primitive.ED25519, Primitive.ECDSA_P256_SHA256


class SetClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def hsm(tmp_path: Path) -> Iterator[softhsm.SoftHsm]:
    with running_softhsm(tmp_path / "hsm") as running:
        yield running


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def provider(hsm: softhsm.SoftHsm, clock: SetClock) -> Iterator[Pkcs11Provider]:
    opened = open_softhsm_provider(hsm, clock)
    yield opened
    opened.close()


def reason_of(call) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return caught.value.reason


def test_it_claims_what_the_token_does(provider: Pkcs11Provider) -> None:
    assert provider.primitives == {ED25519, P256}


@pytest.mark.parametrize("primitive", [ED25519, P256])
def test_no_way_of_the_module_gives_a_private_key_out(provider: Pkcs11Provider, primitive: Primitive) -> None:
    """Every export that PKCS#11 knows: reading, copying, changing, wrapping (I-1, G-1)."""
    key = provider.generate(primitive, kid_of(primitive))

    def attempts(token) -> list[str]:  # type: ignore[no-untyped-def]
        session = token._session
        private = session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=bytes.fromhex(key.handle))
        wrapping = session.generate_key(KeyType.AES, 256)
        assert private[Attribute.LABEL] == str(kid_of(primitive))

        def change() -> None:
            private[Attribute.EXTRACTABLE] = True

        refused = []
        for export in (
            lambda: private[Attribute.VALUE],
            change,
            lambda: private.copy({Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False}),
            lambda: wrapping.wrap_key(private),
        ):
            with pytest.raises(pkcs11.PKCS11Error):
                export()
            refused.append("refused")
        return refused

    assert provider._thread.call(attempts, 5.0) == ["refused"] * 4


def test_keys_survive_a_restart_and_a_destroyed_one_does_not(hsm: softhsm.SoftHsm) -> None:
    provider = open_softhsm_provider(hsm)
    keys = [provider.generate(primitive, kid_of(primitive)) for primitive in (ED25519, P256)]
    gone = provider.generate(ED25519, kid_of(ED25519, 2))
    provider.destroy(gone.handle)
    provider.close()
    again = open_softhsm_provider(hsm)
    for key in keys:
        verify(key.primitive, key.public, DIGEST, again.sign(key.handle, key.primitive, DIGEST))
    with pytest.raises(NotFound):
        again.sign(gone.handle, ED25519, DIGEST)
    again.close()


def test_a_lost_token_is_told_and_comes_back_after_a_growing_pause(hsm: softhsm.SoftHsm, clock: SetClock) -> None:
    telemetry = Telemetry(CollectorRegistry())
    provider = open_softhsm_provider(hsm, clock, lambda: 0.0, meter=ConnectionMeter(telemetry, "pkcs11"))
    key = provider.generate(ED25519, kid_of(ED25519))

    def metric(name: str, **labels: str) -> float | None:
        return telemetry.registry.get_sample_value(name, {"backend": "pkcs11", **labels})

    hsm.lose()
    with pytest.raises(StoreUnavailable) as caught:
        provider.sign(key.handle, ED25519, DIGEST)
    assert caught.value.reason == "token_lost"
    assert caught.value.retry_after_s == 1
    assert metric("kms_backend_sessions", state="connected") == 0
    assert metric("kms_backend_sessions", state="error") == 1
    # Half of 100, 200, 400 … 5000 ms with this draw; a try before its time touches no module.
    for pause_s in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5):
        clock.now_s += pause_s - 0.001
        hsm_calls = reason_of(provider.check)
        assert hsm_calls == "token_lost"
        clock.now_s += 0.002
        assert reason_of(provider.check) == "token_lost"
    hsm.bring_back()
    assert reason_of(provider.check) == "token_lost"
    clock.now_s += 5.0
    provider.check()
    verify(ED25519, key.public, DIGEST, provider.sign(key.handle, ED25519, DIGEST))
    assert metric("kms_backend_sessions", state="connected") == 1
    assert metric("kms_backend_reconnects_total") == 1
    provider.close()


def test_a_token_killed_under_load_gives_signatures_or_503_and_nothing_else(hsm: softhsm.SoftHsm) -> None:
    provider = open_softhsm_provider(hsm)
    keys = [provider.generate(primitive, kid_of(primitive)) for primitive in (ED25519, P256)]
    signed: list[float] = []

    def work() -> None:
        for key in keys:
            verify(key.primitive, key.public, DIGEST, provider.sign(key.handle, key.primitive, DIGEST))
        signed.append(time.monotonic())

    def flap() -> None:
        for _ in range(3):
            before = len(signed)
            while len(signed) < before + 5:
                time.sleep(0.001)
            hsm.lose()
            time.sleep(0.05)
            hsm.bring_back()

    mended_s: list[float] = []

    def recovered() -> bool:
        mended_s.append(time.monotonic())
        return bool(signed) and signed[-1] > mended_s[0]

    reasons = under_load(work, flap, recovered)
    assert set(reasons) == {"token_lost"}
    provider.close()


@pytest.mark.parametrize("verb", ["generate", "sign", "destroy", "attest", "check"])
def test_every_verb_tells_of_a_lost_token(provider: Pkcs11Provider, hsm: softhsm.SoftHsm, verb: str) -> None:
    key = provider.generate(P256, kid_of(P256))
    unused = provider.generate(P256, kid_of(P256, 2))
    hsm.lose()
    calls = {
        "generate": lambda: provider.generate(P256, kid_of(P256, 3)),
        "sign": lambda: provider.sign(unused.handle, P256, DIGEST),
        "destroy": lambda: provider.destroy(key.handle),
        "attest": lambda: provider.attest(key.handle, b"nonce"),
        "check": provider.check,
    }
    assert reason_of(calls[verb]) == "token_lost"


def test_a_token_emptied_in_use_is_not_taken_for_ours(
    provider: Pkcs11Provider, hsm: softhsm.SoftHsm, clock: SetClock
) -> None:
    key = provider.generate(ED25519, kid_of(ED25519))
    hsm.init_token("--token", softhsm.LABEL)
    assert reason_of(lambda: provider.sign(key.handle, ED25519, DIGEST)) == "token_lost"
    clock.now_s += 10
    assert reason_of(provider.check) == "token_lost"
    clock.now_s += 10
    with pytest.raises(StoreUnavailable):
        provider.generate(ED25519, kid_of(ED25519, 2))


def test_another_token_of_the_same_name_is_refused(
    provider: Pkcs11Provider, hsm: softhsm.SoftHsm, clock: SetClock
) -> None:
    provider.generate(ED25519, kid_of(ED25519))
    hsm.lose()
    assert reason_of(provider.check) == "token_lost"
    hsm.tokens.mkdir()
    hsm.init_token("--free")
    # Another provider made itself at home on it meanwhile.
    mark_by_another_process(hsm)
    clock.now_s += 10
    assert reason_of(provider.check) == "token_replaced"
    shutil.rmtree(hsm.tokens)
    hsm.bring_back()
    clock.now_s += 10
    provider.check()


def mark_by_another_process(hsm: softhsm.SoftHsm) -> None:
    import os
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    code = (
        "import os, time; from kms.providers.pkcs11 import open_pkcs11_provider; from tests.support import softhsm;"
        "open_pkcs11_provider(softhsm.MODULE, softhsm.LABEL, softhsm.PIN_ENV, os.environ, time.monotonic,"
        "lambda: 1.0).close()"
    )
    environment = os.environ | hsm.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=30)


def test_a_wrong_pin_is_tried_once(hsm: softhsm.SoftHsm, clock: SetClock) -> None:
    open_softhsm_provider(hsm).close()
    with pytest.raises(StoreUnavailable) as caught:
        open_pkcs11_provider(
            softhsm.MODULE, softhsm.LABEL, softhsm.PIN_ENV, {softhsm.PIN_ENV: "87654321"}, clock, lambda: 1.0
        )
    assert caught.value.reason == "token_pin"
    assert "87654321" not in str(caught.value)
    open_softhsm_provider(hsm).close()


@pytest.mark.parametrize("environ", [{}, {softhsm.PIN_ENV: ""}])
def test_nothing_starts_without_a_pin(hsm: softhsm.SoftHsm, environ: dict[str, str]) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        open_pkcs11_provider(softhsm.MODULE, softhsm.LABEL, softhsm.PIN_ENV, environ, SetClock(), lambda: 1.0)
    assert caught.value.reason == "token_pin_unset"


def test_no_token_of_the_name_and_no_module_are_told(hsm: softhsm.SoftHsm, tmp_path: Path) -> None:
    for module, label in ((softhsm.MODULE, "OTHER"), (tmp_path / "none.so", softhsm.LABEL)):
        with pytest.raises(StoreUnavailable) as caught:
            open_pkcs11_provider(module, label, softhsm.PIN_ENV, hsm.environ, SetClock(), lambda: 1.0)
        assert caught.value.reason == "token_lost"
    open_softhsm_provider(hsm).close()


def test_a_module_has_one_provider_at_a_time(provider: Pkcs11Provider, hsm: softhsm.SoftHsm) -> None:
    assert reason_of(lambda: open_softhsm_provider(hsm)) == "token_in_use"


def test_an_attestation_binds_key_nonce_and_token(provider: Pkcs11Provider) -> None:
    key = provider.generate(ED25519, kid_of(ED25519))
    attestation = provider.attest(key.handle, b"n" * 16)
    assert attestation.class_ == provider.attestation_class == "pkcs11-attributes"
    content, signature = attestation.evidence[:-65], attestation.evidence[-64:]
    statement = json.loads(content)
    assert statement["nonce"] == (b"n" * 16).hex()
    assert bytes.fromhex(statement["point"])[2:] == key.public
    assert statement["attributes"] == {
        "always_sensitive": True,
        "extractable": False,
        "local": True,
        "never_extractable": True,
        "sensitive": True,
    }
    marker = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), bytes.fromhex(statement["token_identity"])[2:]
    )
    der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    prehashed = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    marker.verify(der, hashlib.sha256(content).digest(), prehashed)
    with pytest.raises(InvalidSignature):
        marker.verify(der, hashlib.sha256(content.replace(b"6e6e", b"6e6f", 1)).digest(), prehashed)
    other = provider.attest(key.handle, b"m" * 16)
    assert other.evidence[:-65] != content
    with pytest.raises(TooLarge):
        provider.attest(key.handle, bytes(65))


def test_the_markers_own_key_cannot_be_asked_to_sign(provider: Pkcs11Provider) -> None:
    from kms.providers.provider import KeyHandle

    with pytest.raises(NotFound):
        provider.sign(KeyHandle(MARKER_ID.hex()), P256, DIGEST)


def test_unclaimed_primitives_are_refused_before_the_token_is_asked(
    provider: Pkcs11Provider, hsm: softhsm.SoftHsm
) -> None:
    hsm.lose()
    with pytest.raises(Unsupported):
        provider.generate(Primitive.ML_DSA_65, kid_of(Primitive.ML_DSA_65))
