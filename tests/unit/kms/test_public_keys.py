"""Verification by vectors from outside, and the cache of public keys through an outage (I-18, I-19, G-2, G-11)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from kms import public_keys
from kms.custody import Custody
from kms.errors import StoreUnavailable, Unsupported
from kms.key_record import KeyRecord, KeyState, KeyVersion
from kms.kid import parse_kid
from kms.primitive import Primitive
from kms.providers.inmem import InMemoryProvider
from kms.public_keys import HARD_TTL_FACTOR, BadSignature, PublicKeys, check_signature, load_verifying_key
from kms.telemetry import Telemetry
from tests.support.kms_core import HandClock

VECTORS = Path(__file__).parents[2] / "vectors"
KID = parse_kid("core/audit/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v1")


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def verdict(primitive: Primitive, public: bytes, message: bytes, signature: bytes) -> str:
    try:
        check_signature(load_verifying_key(primitive, public), signature, message)
    except (BadSignature, ValueError):
        return "invalid"
    return "valid"


def raw_public(group: dict[str, Any]) -> bytes:
    public = group["publicKey"]
    return bytes.fromhex(public if isinstance(public, str) else public.get("pk") or public["uncompressed"])


@pytest.mark.parametrize(
    ("name", "primitive", "least"),
    [
        ("wycheproof/ed25519_test.json", Primitive.ED25519, 99),
        ("wycheproof/ecdsa_secp256r1_sha256_p1363_test.json", Primitive.ECDSA_P256_SHA256, 189),
        ("wycheproof/mldsa_44_verify_test.json", Primitive.ML_DSA_44, 90),
        ("wycheproof/mldsa_65_verify_test.json", Primitive.ML_DSA_65, 90),
    ],
)
def test_verify_agrees_with_wycheproof(name: str, primitive: Primitive, least: int) -> None:
    seen = 0
    for group in load(name)["testGroups"]:
        for case in group["tests"]:
            if case.get("ctx"):
                continue  # A context other than the empty one: no operation of ours has one.
            found = verdict(primitive, raw_public(group), bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"]))
            assert found == case["result"], case["tcId"]
            seen += 1
    assert seen >= least


def test_verify_of_odd_ed25519_points_is_that_of_rfc_8032_without_cofactor() -> None:
    seen: dict[str, int] = {}
    for case in load("cctv/ed25519vectors.json"):
        found = verdict(Primitive.ED25519, bytes.fromhex(case["key"]), case["msg"].encode(), bytes.fromhex(case["sig"]))
        seen[found] = seen.get(found, 0) + 1
        # What needs the cofactor to verify, or an R that is not canonical, is never accepted.
        flags = set(case["flags"] or ())
        if flags & {"low_order_residue", "non_canonical_R"}:
            assert found == "invalid", case["number"]
    assert seen.keys() == {"valid", "invalid"}


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_p256_signature_of_another_length_does_not_verify(length: int) -> None:
    public = bytes.fromhex(
        load("wycheproof/ecdsa_secp256r1_sha256_p1363_test.json")["testGroups"][0]["publicKey"]["uncompressed"]
    )
    with pytest.raises(BadSignature):
        check_signature(load_verifying_key(Primitive.ECDSA_P256_SHA256, public), bytes(length), b"m")


@pytest.mark.parametrize("primitive", [Primitive.X25519, Primitive.ML_KEM_768, Primitive.HKDF_ROOT])
def test_keys_that_do_not_sign_are_not_loaded(primitive: Primitive) -> None:
    with pytest.raises(Unsupported):
        load_verifying_key(primitive, bytes(32))


class CacheStage:
    """A cache over one provider whose absence the test decides on."""

    def __init__(self, max_entries: int = 4, soft_ttl_ms: int = 1000) -> None:
        self.hand = HandClock()
        self.provider = InMemoryProvider()
        self.custody = Custody(
            self.provider, {"inmem": self.provider}, allow_sign_fallback=False, clock=self.hand.clock
        )
        self.telemetry = Telemetry()
        self.cache = PublicKeys(
            self.custody, self.hand.clock, self.telemetry, max_entries=max_entries, soft_ttl_ms=soft_ttl_ms
        )
        part = self.provider.generate(Primitive.ED25519, KID)
        self.version = KeyVersion(1, (part,), 0)
        self.record = KeyRecord(KID.name, (self.version,), KeyState.ENABLED, 1, (), "inmem")

    def age_ms(self, version: int = 1) -> int | None:
        return self.cache.get(KID.name.version(version), self.record, self.version).age_ms

    def hits(self, hit: str) -> float:
        return self.telemetry.registry.get_sample_value("kms_verify_cache_hits_total", {"hit": hit}) or 0.0

    def metric(self, name: str) -> float:
        return self.telemetry.registry.get_sample_value(name) or 0.0


def test_a_miss_has_no_age_and_a_hit_says_its_age() -> None:
    stage = CacheStage()
    assert stage.age_ms() is None
    stage.hand.now_s += 0.75
    assert stage.age_ms() == 750
    assert (stage.hits("false"), stage.hits("true")) == (1, 1)


def test_past_the_soft_ttl_keys_are_loaded_anew_while_the_provider_is_there() -> None:
    stage = CacheStage(soft_ttl_ms=1000)
    stage.age_ms()
    stage.hand.now_s += 1.001
    assert stage.age_ms() is None
    assert stage.hits("false") == 2
    assert stage.metric("verify_cache_expired_total") == 0


def test_in_an_outage_age_counts_from_when_the_provider_last_answered() -> None:
    stage = CacheStage(soft_ttl_ms=1000)
    stage.age_ms()
    stage.hand.now_s += 0.5
    stage.custody.note("inmem", answered=True)
    stage.hand.now_s += 0.25
    stage.custody.note("inmem", answered=False)
    assert stage.age_ms() == 250
    assert stage.metric("kms_verify_cache_age_ms") == 250
    stage.hand.now_s += 1.0
    assert stage.age_ms() == 1250
    assert stage.metric("verify_cache_expired_total") == 1


def test_keys_not_in_the_cache_are_served_in_an_outage_from_the_last_known_metadata_with_their_age() -> None:
    stage = CacheStage()
    stage.custody.note("inmem", answered=False)
    stage.hand.now_s += 0.1
    assert stage.age_ms() == 100


def test_past_the_hard_ttl_there_is_no_answer_and_after_the_outage_there_is() -> None:
    stage = CacheStage(soft_ttl_ms=1000)
    stage.age_ms()
    stage.custody.note("inmem", answered=False)
    stage.hand.now_s += 1.0 * HARD_TTL_FACTOR
    assert stage.age_ms() == 1000 * HARD_TTL_FACTOR
    stage.hand.now_s += 0.01
    with pytest.raises(StoreUnavailable) as refused:
        stage.age_ms()
    assert refused.value.reason == "verify_cache_expired"
    stage.custody.note("inmem", answered=True)
    assert stage.age_ms() is None


def test_age_never_shrinks_while_an_outage_lasts() -> None:
    stage = CacheStage(soft_ttl_ms=10_000)
    stage.custody.note("inmem", answered=False)
    ages = []
    for step_s in (0.0, 0.3, 0.0, 2.0, 0.001):
        stage.hand.now_s += step_s
        stage.custody.note("inmem", answered=False)
        ages.append(stage.age_ms() or 0)
    assert ages == sorted(ages)


def test_the_least_recently_used_key_leaves_first_and_a_smaller_bound_holds_at_once() -> None:
    stage = CacheStage(max_entries=2)
    stage.age_ms(1)
    stage.age_ms(2)
    stage.age_ms(1)
    stage.age_ms(3)
    assert len(stage.cache) == 2
    assert stage.age_ms(1) == 0
    assert stage.age_ms(2) is None
    stage.cache.configure(max_entries=1, soft_ttl_ms=5)
    assert len(stage.cache) == 1
    assert stage.metric("kms_config_verify_cache_ttl_ms") == 5


def test_the_cache_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_bytes = public_keys.LOADED_BYTES[Primitive.ED25519] + 1024
    monkeypatch.setattr(public_keys, "MAX_CACHE_BYTES", 2 * entry_bytes)
    stage = CacheStage(max_entries=100, soft_ttl_ms=1000)
    for number in (1, 2, 3, 1):
        assert stage.age_ms(number) is None
    assert len(stage.cache) == 2
    assert stage.age_ms(3) == 0
    stage.hand.now_s += 2
    assert stage.age_ms(3) is None
    assert (len(stage.cache), stage.cache._size_bytes) == (2, 2 * entry_bytes)


def test_a_kem_key_has_nothing_to_verify_with() -> None:
    stage = CacheStage()
    part = stage.provider.generate(Primitive.X25519, KID)
    with pytest.raises(Unsupported):
        stage.cache.get(KID, stage.record, KeyVersion(1, (part,), 0))


def test_what_is_cached_is_the_key_that_signs() -> None:
    stage = CacheStage()
    signature = stage.provider.sign(stage.version.parts[0].handle, Primitive.ED25519, b"m" * 32)
    key = stage.cache.get(KID, stage.record, stage.version).keys[Primitive.ED25519]
    check_signature(key, signature, b"m" * 32)
    other = ed25519.Ed25519PrivateKey.generate().sign(b"m" * 32)
    for bad in (other, signature[:-1], signature[:-1] + bytes([signature[-1] ^ 1]), b""):
        with pytest.raises(BadSignature):
            check_signature(key, bad, b"m" * 32)
