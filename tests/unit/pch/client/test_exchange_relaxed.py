"""When an exchange relaxes, what it sends then, and when it gives up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pch.client.challenge import ChallengeText
from pch.client.channel import Channel, OriginClock
from pch.client.errors import ChallengeUnusable, ConnectionLost
from pch.client.exchange import Answer, Exchange, ExchangeSettings, WireRequest
from pch.client.request import make_request
from pch.client.response import Headers, Response
from pch.client.url import parse_url
from pch.evidence import canonical_evidence
from pch.keys import generate, private_key_from_jwk
from pch.relaxed import parse_envelope

ED = private_key_from_jwk(generate("ed25519"))
PQ = private_key_from_jwk(generate("ml-dsa-65"))
EVIDENCE = canonical_evidence({"type": "pch.evidence.v1", "claims": {"a": "b"}})
NUMBERS = itertools.count(1)


def fresh() -> ChallengeText:
    return ChallengeText(f"{next(NUMBERS):060d}")


def channel(binding: bytes | None = bytes(32)) -> Channel:
    here = Channel(binding, OriginClock())
    here.challenges.add([fresh()], 0.0)
    return here


def exchange(method: str = "PUT", content: bytes = b"content", **changes: Any) -> Exchange:
    values: dict[str, Any] = {"signers": (ED,), "binding": "tls-exporter", "evidence": EVIDENCE} | changes
    settings = ExchangeSettings(clock_s=lambda: 1_800_000_000.0, monotonic_s=lambda: 0.0, **values)
    return Exchange(make_request(method, "https://app.example/a", content=content), settings)


def offer(status: int, *, hints: str = "", relax: bool = False, ended: bool = False, **params: str) -> Answer:
    challenge = fresh()
    values = {"algs": "ed25519 ml-dsa-65", "mode": "and", "binding": "tls-exporter", "evidence": "optional"} | params
    if hints:
        values["hints"] = hints
    text = ", ".join(f'{name}="{value}"' for name, value in values.items())
    lines = [
        ("www-authenticate", f'PCH realm="r", challenge="{challenge}", max-age=60, {text}'.encode()),
        ("pch-challenge", f'"{challenge}"'.encode()),
        ("pch-reason", b"header_budget" if status == 431 else b"stale_challenge"),
    ]
    if relax:
        lines.append(("pch-relax", b"evidence=body"))
    return Answer(status, Headers(tuple(lines)), b"", "2", ended)


def over_budget(**changes: Any) -> Answer:
    return offer(431, relax=True, **changes)


def plain(status: int = 200, *, ended: bool = False) -> Answer:
    return Answer(status, Headers((("pch-challenge", f'"{fresh()}"'.encode()),)), b"", "2", ended)


def is_relaxed(wire: WireRequest) -> bool:
    return any(name == "pch-relaxed" for name, _ in wire.headers)


def test_content_is_sent_again_behind_its_envelope() -> None:
    here, this = channel(), exchange()
    assert not is_relaxed(this.next_request(here))
    refused = over_budget()
    assert this.answered(here, refused) is None
    wire = this.next_request(here)
    assert is_relaxed(wire)
    assert parse_envelope(wire.envelope).evidence == EVIDENCE
    assert wire.content == wire.envelope + b"content"
    granted = (refused.headers.get("pch-challenge") or "").strip('"')
    assert granted.encode() in dict(wire.headers)["signature-input"]
    response = this.answered(here, plain())
    assert response is not None
    assert (response.status, response.sends) == (200, 2)


def test_without_content_the_envelope_goes_ahead_on_the_same_connection_and_challenge() -> None:
    here, this = channel(), exchange("GET", b"")
    this.next_request(here)
    assert this.answered(here, over_budget()) is None
    ahead = this.next_request(here)
    assert ahead.is_ahead
    assert not ahead.is_signed
    assert (ahead.request.method, str(ahead.request.url)) == ("POST", "https://app.example/.well-known/pch/evidence")
    named = dict(ahead.headers)["pch-challenge"]
    assert this.answered(here, plain(204)) is None
    wire = this.next_request(here)
    assert (is_relaxed(wire), wire.envelope, wire.content) == (True, b"", b"")
    assert named.strip(b'"') in dict(wire.headers)["signature-input"]
    assert this.answered(here, plain()) is not None


def test_an_envelope_that_is_not_taken_in_is_the_answer() -> None:
    here, this = channel(), exchange("GET", b"")
    this.next_request(here)
    this.answered(here, over_budget())
    this.next_request(here)
    response = this.answered(here, plain(429))
    assert isinstance(response, Response)
    assert response.status == 429


def test_an_envelope_that_is_lost_is_no_request_that_was_done() -> None:
    here, this = channel(), exchange("POST", b"")
    this.next_request(here)
    this.answered(here, over_budget())
    assert this.next_request(here).is_ahead
    this.connection_gone(ConnectionLost("gone"), unsent=False, reused=True)
    elsewhere = channel()
    wire = this.next_request(elsewhere)
    assert wire.request.method == "POST", "what was signed for the lost connection is never sent on another one"
    assert wire.is_ahead or not is_relaxed(wire)


def test_a_hint_is_followed_at_once_until_an_offer_comes_without_it() -> None:
    here = Channel(bytes(32), OriginClock())
    this = exchange("GET", b"")
    this.next_request(here)
    assert this.answered(here, offer(401, hints="other relax-header-budget")) is None
    assert this.next_request(here).is_ahead
    following = exchange()
    here.challenges.add([fresh()], 0.0)
    assert is_relaxed(following.next_request(here))
    assert following.answered(here, offer(401)) is None
    assert not is_relaxed(following.next_request(here))


@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        (offer(431), {}),
        (Answer(431, Headers((("pch-relax", b"evidence=body"),)), b"", "2", False), {}),
        (over_budget(), {"relax": "never"}),
        (over_budget(), {"evidence": None}),
    ],
    ids=["no offer to relax", "no challenge", "never", "nothing to relax"],
)
def test_a_431_that_cannot_be_helped_is_final(answer: Answer, changes: dict[str, Any]) -> None:
    here, this = channel(), exchange(**changes)
    this.next_request(here)
    response = this.answered(here, answer)
    assert response is not None
    assert response.status == 431


def test_a_relaxed_request_that_is_over_budget_is_final() -> None:
    here, this = channel(), exchange()
    this.next_request(here)
    this.answered(here, over_budget())
    this.next_request(here)
    response = this.answered(here, over_budget())
    assert response is not None


def test_without_a_connection_to_name_only_content_is_relaxed() -> None:
    for content, expected in ((b"content", True), (b"", False)):
        here, this = channel(None), exchange(content=content, binding="none")
        this.next_request(here)
        assert (this.answered(here, over_budget(binding="none")) is None) is expected


def test_an_unsigned_request_over_budget_is_final() -> None:
    here, this = Channel(bytes(32), OriginClock()), exchange("GET", b"")
    assert not this.next_request(here).is_signed
    assert this.answered(here, over_budget()) is not None


def test_after_a_401_the_next_signature_is_for_a_challenge_without_a_grant() -> None:
    here, this = channel(), exchange()
    this.next_request(here)
    this.answered(here, over_budget())
    assert is_relaxed(this.next_request(here))
    assert this.answered(here, offer(401)) is None
    assert not is_relaxed(this.next_request(here))
    assert this.answered(here, over_budget()) is None, "it is over budget once more"
    assert is_relaxed(this.next_request(here))
    assert this.answered(here, over_budget()) is not None


def test_where_the_431_ends_the_connection_the_grant_is_asked_for_without_the_content() -> None:
    here, this = channel(), exchange()
    this.next_request(here)
    assert this.answered(here, over_budget(ended=True)) is None
    elsewhere = Channel(bytes(range(32)), OriginClock())
    probe = this.next_request(elsewhere)
    assert (probe.request.method, probe.is_signed) == ("HEAD", False)
    assert this.answered(elsewhere, offer(401)) is None
    signed = this.next_request(elsewhere)
    assert (signed.request.method, signed.is_signed, is_relaxed(signed), signed.content) == ("HEAD", True, False, b"")
    assert this.answered(elsewhere, over_budget()) is None
    wire = this.next_request(elsewhere)
    assert (wire.request.method, is_relaxed(wire)) == ("PUT", True)
    assert this.answered(elsewhere, plain()) is not None


def test_a_probe_that_is_within_the_budget_is_followed_by_the_request() -> None:
    here, this = channel(), exchange()
    this.next_request(here)
    this.answered(here, over_budget(ended=True))
    elsewhere = channel()
    assert this.next_request(elsewhere).request.method == "HEAD"
    assert this.answered(elsewhere, plain()) is None
    wire = this.next_request(elsewhere)
    assert (wire.request.method, is_relaxed(wire)) == ("PUT", False)
    assert this.answered(elsewhere, plain()) is not None


@pytest.mark.parametrize(("evidence", "expected"), [("none", False), ("optional", True), ("required", True)])
def test_evidence_goes_where_it_is_wanted(evidence: str, expected: bool) -> None:
    here, this = Channel(bytes(32), OriginClock()), exchange("GET", b"")
    this.next_request(here)
    this.answered(here, offer(401, evidence=evidence))
    assert any(name == "pch-evidence" for name, _ in this.next_request(here).headers) is expected


def test_evidence_that_is_required_and_not_given_is_told() -> None:
    here, this = Channel(bytes(32), OriginClock()), exchange("GET", b"", evidence=None)
    this.next_request(here)
    with pytest.raises(ChallengeUnusable):
        this.answered(here, offer(401, evidence="required"))


def redirected(**changes: Any) -> Exchange:
    """An exchange of a request that another origin led to."""
    values: dict[str, Any] = {"signers": (ED,), "binding": "tls-exporter", "evidence": EVIDENCE} | changes
    settings = ExchangeSettings(clock_s=lambda: 1_800_000_000.0, monotonic_s=lambda: 0.0, **values)
    first = make_request("GET", "https://elsewhere.example/a", content=b"")
    return Exchange(first.redirected(parse_url("https://app.example/a"), 307), settings)


@pytest.mark.parametrize("relax", ["auto", "always"])
@pytest.mark.parametrize("evidence", ["optional", "none"])
def test_evidence_stays_away_from_where_another_origin_leads(evidence: str, relax: str) -> None:
    here, this = Channel(bytes(32), OriginClock()), redirected(relax=relax)
    this.next_request(here)
    assert this.answered(here, offer(401, hints="relax-header-budget", evidence=evidence)) is None
    wire = this.next_request(here)
    assert wire.is_signed
    assert not {"pch-evidence", "pch-evidence-digest"} & dict(wire.headers).keys()


def test_evidence_stays_away_also_where_it_is_required_and_beside_an_ml_dsa_signature() -> None:
    here, this = Channel(bytes(32), OriginClock()), redirected()
    this.next_request(here)
    with pytest.raises(ChallengeUnusable, match="evidence"):
        this.answered(here, offer(401, evidence="required"))
    here, this = channel(), redirected(relax="always", signers=(PQ,))
    ahead = this.next_request(here)
    assert ahead.is_ahead
    assert isinstance(ahead.content, bytes)
    assert parse_envelope(ahead.content).evidence is None


def test_always_relaxes_unasked_and_ml_dsa_alone_is_worth_it() -> None:
    here, this = channel(), exchange(relax="always", evidence=None, signers=(PQ,))
    wire = this.next_request(here)
    assert is_relaxed(wire)
    assert "signature" not in dict(wire.headers)
    assert list(parse_envelope(wire.envelope).signatures) == ["pch"]
