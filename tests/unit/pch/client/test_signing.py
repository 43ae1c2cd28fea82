"""The signed request is exactly PCH §3's, seen by the verifier's own profile."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from pch import proof
from pch.client.challenge import ChallengeText
from pch.client.errors import InvalidRequest
from pch.client.signing import SignedRequest, sign_request
from pch.errors import BadSignature, PchError
from pch.httpsig.content_digest import verify_content_digest
from pch.httpsig.message import RequestMessage
from pch.httpsig.verify import verify
from pch.keys import generate, private_key_from_jwk, public_jwk, public_key_from_jwk

if TYPE_CHECKING:
    from pch.algorithms import Signer

BINDING = bytes(range(32))
CHALLENGE = ChallengeText("Q" * 60)
BODY = b"hello"
MESSAGE = RequestMessage("POST", "https", "h:8443", "/a?b=c", (("x-a", b"1"), ("x-a", b"2")))
KEYS = {name: generate(name) for name in ("ed25519", "ecdsa-p256-sha256")}


def signer(name: str = "ed25519") -> Signer:
    return private_key_from_jwk(KEYS[name])


def signed(
    message: RequestMessage = MESSAGE,
    body: bytes = BODY,
    *,
    algorithm: str = "ed25519",
    binding: bytes | None = BINDING,
    max_age_s: int = 60,
    cover: tuple[str, ...] = (),
) -> SignedRequest:
    return sign_request(
        message,
        body,
        signers=(signer(algorithm),),
        challenge=CHALLENGE,
        binding=binding,
        created_s=1000,
        max_age_s=max_age_s,
        cover=cover,
    )


def check(message: RequestMessage, body: bytes, *, algorithm: str = "ed25519", binding: bytes | None = BINDING) -> None:
    """Verify as a verifier does, PCH §4 steps 2, 3, 6, 7, 8 and 11."""
    found = proof.select_proofs(message).first
    sent = proof.check_binding_syntax(message)
    if binding is not None:
        proof.check_binding(sent, binding)
    proof.check_times(found, now_ms=1_001_000, max_age_s=60, skew_s=2)
    required = proof.required_components(message, bound=binding is not None, has_content=bool(body))
    proof.check_components(found, required)
    verify(message, found.params, found.signature, public_key_from_jwk(public_jwk(KEYS[algorithm])))
    if body:
        verify_content_digest(message.lines("content-digest"), body)


@pytest.mark.parametrize("algorithm", sorted(KEYS))
@pytest.mark.parametrize("binding", [BINDING, None])
@pytest.mark.parametrize("body", [BODY, b""])
def test_signed_request_passes_the_verifier(algorithm: str, binding: bytes | None, body: bytes) -> None:
    result = signed(body=body, algorithm=algorithm, binding=binding)
    check(result.message, body, algorithm=algorithm, binding=binding)
    names = [name for name, _ in result.added]
    assert ("pch-channel-binding" in names) == (binding is not None)
    assert ("content-digest" in names) == bool(body)
    assert result.message.headers == (*MESSAGE.headers, *result.added)
    found = proof.select_proofs(result.message).first
    assert (found.nonce, found.algorithm, found.key_id) == (CHALLENGE, algorithm, signer(algorithm).key_id)
    assert (found.label, found.created_s, found.expires_s) == ("pch", 1000, 1030)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"authority": "h:8444"},
        {"target": "/a?b=d"},
        {"target": "/b?b=c"},
        {"target": "/a"},
    ],
)
def test_altered_request_fails(change: dict[str, Any]) -> None:
    altered = dataclasses.replace(signed().message, **change)
    with pytest.raises(BadSignature):
        check(altered, BODY)


@pytest.mark.parametrize("index", range(len(signed().added)))
def test_altered_field_fails(index: int) -> None:
    result = signed()
    name, value = result.added[index]
    middle = value.index(b":") + 5 if b":" in value else len(value) // 2
    altered = value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]
    assert altered != value
    lines = (*tuple(line for line in result.message.headers if line[0] != name), (name, altered))
    with pytest.raises(PchError):
        check(dataclasses.replace(result.message, headers=lines), BODY)


def test_other_connection_and_other_content_fail() -> None:
    result = signed()
    with pytest.raises(PchError):
        check(result.message, BODY, binding=bytes(32))
    with pytest.raises(PchError):
        check(result.message, b"hellp")


def test_expiry_never_passes_max_age() -> None:
    found = proof.select_proofs(signed(max_age_s=7).message).first
    assert (found.created_s, found.expires_s) == (1000, 1007)


def test_further_fields_are_covered_on_request() -> None:
    result = signed(cover=("X-A", "@method"))
    check(result.message, BODY)
    assert b'"x-a": 1, 2' in result.bases[0]
    altered = dataclasses.replace(result.message, headers=(("x-a", b"3"), *result.added))
    with pytest.raises(BadSignature):
        check(altered, BODY)


def test_hybrid_signs_the_same_components_twice() -> None:
    result = sign_request(
        MESSAGE,
        BODY,
        signers=(signer("ed25519"), signer("ecdsa-p256-sha256")),
        challenge=CHALLENGE,
        binding=BINDING,
        created_s=1000,
        max_age_s=60,
    )
    proofs = proof.select_proofs(result.message)
    second = proofs.second_half
    assert second is not None
    assert proofs.first.params.components == second.params.components
    assert (proofs.first.created_s, proofs.first.expires_s, proofs.first.nonce) == (1000, 1030, CHALLENGE)
    assert (second.created_s, second.expires_s, second.nonce) == (1000, 1030, CHALLENGE)
    verify(result.message, second.params, second.signature, public_key_from_jwk(public_jwk(KEYS["ecdsa-p256-sha256"])))


def test_foreign_signature_is_kept_beside_ours() -> None:
    foreign = (("signature-input", b'other=("@method");tag="app"'), ("signature", b"other=:eA==:"))
    result = signed(dataclasses.replace(MESSAGE, headers=foreign))
    check(result.message, BODY)
    assert result.message.headers[:2] == foreign


@pytest.mark.parametrize(
    "headers",
    [
        (("pch-evidence", b":eA==:"),),
        (("pch-channel-binding", b"x"),),
        (("content-digest", b"sha-256=:eA==:"),),
        (("signature-input", b'pch=("@method");tag="app"'),),
        (("signature-input", b'x=("@method");tag="pch"'),),
        (("signature-input", b'x=("@method");tag="pch-pq"'),),
        (("signature-input", b"x="),),
    ],
)
def test_colliding_field_is_refused(headers: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(InvalidRequest):
        signed(dataclasses.replace(MESSAGE, headers=headers))


def test_what_cannot_be_signed_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        signed(binding=b"short")
    with pytest.raises(InvalidRequest):
        signed(cover=("x-absent",))
    for count in (0, 3):
        with pytest.raises(InvalidRequest):
            sign_request(
                MESSAGE,
                BODY,
                signers=(signer(),) * count,
                challenge=CHALLENGE,
                binding=BINDING,
                created_s=1,
                max_age_s=60,
            )
