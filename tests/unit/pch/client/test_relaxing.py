"""Signing with evidence: where each part goes, and what the verifier's own reading makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pch.client.challenge import ChallengeText
from pch.client.errors import InvalidRequest
from pch.client.relaxing import is_relaxable, sign_with_evidence
from pch.errors import MalformedSignature
from pch.evidence import (
    canonical_evidence,
    evidence_digest_field,
    parse_evidence_field,
)
from pch.httpsig.message import RequestMessage
from pch.keys import generate, private_key_from_jwk
from pch.proof import required_components, select_proofs
from pch.relaxed import Relaxed, parse_envelope, parse_relaxed_field

ED = private_key_from_jwk(generate("ed25519"))
PQ = private_key_from_jwk(generate("ml-dsa-65"))
EVIDENCE = canonical_evidence({"type": "pch.evidence.v1", "claims": {"a": "b"}})
PLAIN = RequestMessage("PUT", "https", "app.example", "/a?b", (("x-note", b"n"),))


def sign(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "body": b"content",
        "evidence": EVIDENCE,
        "relax": True,
        "signers": (ED, PQ),
        "challenge": ChallengeText("A" * 60),
        "binding": bytes(32),
        "created_s": 1_800_000_000,
        "max_age_s": 60,
    } | changes
    return sign_with_evidence(PLAIN, **values)


def as_sent(headers: Any) -> RequestMessage:
    return dataclasses.replace(PLAIN, headers=headers)


@pytest.mark.parametrize("evidence", [EVIDENCE, None])
@pytest.mark.parametrize("signers", [(ED,), (PQ,), (ED, PQ)])
@pytest.mark.parametrize("body", [b"content", b""])
def test_relaxed_each_part_is_in_its_place(evidence: bytes | None, signers: tuple[Any, ...], body: bytes) -> None:
    made = sign(evidence=evidence, signers=signers, body=body)
    message = as_sent(made.headers)
    envelope = parse_envelope(made.envelope)
    assert envelope.evidence == evidence
    stated = len(made.envelope) if body else None
    assert parse_relaxed_field(message.lines("pch-relaxed")) == Relaxed(stated)
    assert message.lines("pch-evidence-digest") == [evidence_digest_field(evidence)]
    assert not message.lines("pch-evidence")
    assert bool(message.lines("signature")) is (ED in signers)
    proofs = select_proofs(message, envelope.signatures)
    for proof, signer in zip(proofs.both, signers, strict=True):
        assert (proof.key_id, proof.algorithm) == (signer.key_id, signer.algorithm.name)
        assert len(proof.signature) == signer.algorithm.signature_bytes
        covered = {component.name for component in proof.params.components}
        assert covered.issuperset(required_components(message, bound=True, has_content=bool(body)))
    if PQ in signers:
        with pytest.raises(MalformedSignature):
            select_proofs(message)
        with pytest.raises(MalformedSignature):
            select_proofs(message, {})
    with pytest.raises(MalformedSignature):
        select_proofs(message, {**envelope.signatures, "more": b"x"})


def test_an_envelope_that_is_lost_leaves_signatures_empty_and_the_rest_readable() -> None:
    message = as_sent(sign().headers)
    proofs = select_proofs(message, envelope_is_lost=True)
    assert [bool(proof.signature) for proof in proofs.both] == [True, False]


def test_inline_evidence_and_signatures_are_in_the_header() -> None:
    made = sign(relax=False)
    message = as_sent(made.headers)
    assert parse_evidence_field(message.lines("pch-evidence")) == EVIDENCE
    assert not message.lines("pch-relaxed")
    assert made.envelope == b""
    assert len(select_proofs(message).both) == 2


def test_without_evidence_and_unrelaxed_nothing_is_added() -> None:
    names = {name for name, _ in sign(relax=False, evidence=None).headers}
    assert not {"pch-evidence", "pch-evidence-digest", "pch-relaxed"} & names


@pytest.mark.parametrize(
    ("evidence", "signers", "expected"),
    [(None, (ED,), False), (EVIDENCE, (ED,), True), (None, (PQ,), True), (None, (ED, PQ), True)],
)
def test_what_there_is_to_relax(evidence: bytes | None, signers: tuple[Any, ...], expected: bool) -> None:
    assert is_relaxable(evidence, signers) is expected


class ShortSigner:
    """A token that gives a signature of another length than its algorithm's."""

    algorithm = PQ.algorithm
    key_id = PQ.key_id

    def sign(self, _data: bytes) -> bytes:
        return b"short"


def test_a_signature_of_another_length_is_never_sent() -> None:
    with pytest.raises(InvalidRequest):
        sign(signers=(ShortSigner(),))


@settings(max_examples=25)
@given(note=st.text(st.characters(exclude_categories=("Cs",)), max_size=400), body=st.binary(max_size=50))
def test_the_length_stated_is_always_that_of_the_envelope(note: str, body: bytes) -> None:
    evidence = canonical_evidence({"type": "pch.evidence.v1", "claims": {"note": note}})
    made = sign(evidence=evidence, body=body, signers=(ED,))
    assert parse_envelope(made.envelope).evidence == evidence
    stated = len(made.envelope) if body else None
    assert parse_relaxed_field(as_sent(made.headers).lines("pch-relaxed")) == Relaxed(stated)
