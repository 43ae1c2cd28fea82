"""What is sent next, for every answer of PCH §5."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pch.client.challenge import ChallengeText
from pch.client.channel import Channel, OriginClock
from pch.client.errors import ChallengeSyntaxError, ChallengeUnusable, ConnectionLost, TimedOut
from pch.client.exchange import SIGN_AGAIN, Answer, Exchange, ExchangeSettings, WireRequest
from pch.client.limits import MAX_LOST_CONNECTIONS
from pch.client.request import make_request
from pch.client.response import Headers, Response
from pch.keys import generate, private_key_from_jwk
from pch.proof import select_proofs
from pch.reasons import ANSWERS, Reason

KEY = private_key_from_jwk(generate("ed25519"))
NUMBERS = itertools.count()
NOW_S = 1_700_000_000.0
DATE_PLUS_HOUR = b"Tue, 14 Nov 2023 23:13:20 GMT"
SEEN: list[tuple[WireRequest, Answer]] = []


def settings(binding: str = "tls-exporter") -> ExchangeSettings:
    return ExchangeSettings(
        (KEY,), binding, lambda: NOW_S, lambda: 0.0, lambda wire, answer: SEEN.append((wire, answer))
    )


def channel(*, bound: bool = True) -> Channel:
    return Channel(bytes(32) if bound else None, OriginClock())


def exchange(method: str = "GET", content: bytes = b"", binding: str = "tls-exporter") -> Exchange:
    return Exchange(make_request(method, "https://h/a", content=content), settings(binding))


def fresh() -> ChallengeText:
    return ChallengeText(f"{next(NUMBERS):060d}")


def refusal(
    reason: str | None = "missing_signature", *, status: int = 401, ended: bool = False, **params: str
) -> Answer:
    challenge = fresh()
    values = {"algs": "ed25519", "mode": "and", "binding": "tls-exporter", "evidence": "none"} | params
    text = ", ".join(f'{name}="{value}"' for name, value in values.items())
    lines = [("date", DATE_PLUS_HOUR)]
    if status == 401:
        lines += [
            ("www-authenticate", f'PCH realm="r", challenge="{challenge}", max-age=60, {text}'.encode()),
            ("pch-challenge", f'"{challenge}"'.encode()),
        ]
    if reason:
        lines.append(("pch-reason", reason.encode()))
    return Answer(status, Headers(tuple(lines)), b"", "2", ended)


def success(*challenges: ChallengeText, ended: bool = False) -> Answer:
    lines = [("pch-receipt", b'"r1"')]
    if challenges:
        lines.append(("pch-challenge", ", ".join(f'"{each}"' for each in challenges).encode()))
    return Answer(200, Headers(tuple(lines)), b"ok", "2", ended)


def nonce(wire: WireRequest) -> str:
    request = wire.request.message()
    return select_proofs(type(request)(request.method, "https", "h", "/a", wire.headers)).first.nonce


def offered(answer: Answer) -> str:
    return (answer.headers.get("pch-challenge") or "").strip('"')


def signed_once(method: str = "GET", content: bytes = b"") -> tuple[Exchange, Channel]:
    """An exchange whose first signed request is out."""
    here = channel()
    here.challenges.add([fresh()], 0.0)
    this = exchange(method, content)
    assert this.next_request(here).is_signed
    return this, here


def test_first_get_goes_out_unsigned_and_then_signs_the_challenge() -> None:
    here, this = channel(), exchange()
    assert not this.next_request(here).is_signed
    answer = refusal()
    assert this.answered(here, answer) is None
    wire = this.next_request(here)
    assert wire.is_signed
    assert nonce(wire) == offered(answer)
    response = this.answered(here, success(fresh()))
    assert isinstance(response, Response)
    assert (response.status, response.receipt_id, response.signed, response.sends) == (200, "r1", True, 2)
    assert len(here.challenges) == 1
    assert SEEN[-1][0] is wire


def test_steady_state_is_one_round_trip() -> None:
    here = channel()
    first, second = fresh(), fresh()
    here.challenges.add([first], 0.0)
    for challenge, following in ((first, second), (second, fresh())):
        this = exchange("POST", b"x")
        wire = this.next_request(here)
        assert nonce(wire) == challenge
        response = this.answered(here, success(following))
        assert response is not None
        assert response.sends == 1


@pytest.mark.parametrize(("method", "content"), [("POST", b""), ("PUT", b"x"), ("DELETE", b""), ("GET", b"x")])
def test_request_that_changes_something_or_has_content_asks_first(method: str, content: bytes) -> None:
    here, this = channel(), exchange(method, content)
    probe = this.next_request(here)
    assert (probe.request.method, probe.request.body, probe.headers) == ("HEAD", b"", ())
    assert this.answered(here, refusal()) is None
    wire = this.next_request(here)
    assert (wire.request.method, wire.request.body, wire.is_signed) == (method, content, True)


def test_unguarded_connection_is_asked_once() -> None:
    here = channel()
    this = exchange("POST", b"x")
    assert this.next_request(here).request.method == "HEAD"
    assert this.answered(here, success()) is None
    wire = this.next_request(here)
    assert (wire.request.method, wire.is_signed) == ("POST", False)
    response = this.answered(here, success())
    assert response is not None
    assert not response.signed
    following = exchange("POST", b"x")
    assert following.next_request(here).request.method == "POST"
    # Where a guarded route turns up after all, nothing was done and the request is signed.
    assert following.answered(here, refusal()) is None
    assert following.next_request(here).is_signed
    assert not here.unguarded


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("reason", sorted(SIGN_AGAIN))
def test_refused_proof_is_made_again_once(reason: Reason, method: str) -> None:
    this, here = signed_once(method)
    again = refusal(reason)
    assert this.answered(here, again) is None
    wire = this.next_request(here)
    assert nonce(wire) == offered(again)
    response = this.answered(here, refusal(reason))
    assert response is not None
    assert (response.status, response.reason, response.sends) == (401, reason, 2)


@pytest.mark.parametrize(("method", "again"), [("GET", True), ("PUT", True), ("POST", False), ("PATCH", False)])
def test_replayed_nonce_is_made_good_only_for_idempotent_methods(method: str, again: bool) -> None:
    this, here = signed_once(method)
    assert (this.answered(here, refusal("nonce_replay")) is None) is again


@pytest.mark.parametrize("reason", sorted(set(ANSWERS) - SIGN_AGAIN - {Reason.NONCE_REPLAY}))
def test_every_other_reason_is_final(reason: Reason) -> None:
    this, here = signed_once()
    response = this.answered(here, refusal(reason, status=ANSWERS[reason].status))
    assert response is not None
    assert response.reason == reason


def test_reason_alone_does_not_retry_without_a_challenge() -> None:
    this, here = signed_once()
    assert this.answered(here, refusal("stale_challenge", status=403)) is not None


def test_401_of_the_app_itself_is_final() -> None:
    this, here = signed_once()
    assert this.answered(here, refusal(None)) is not None


def test_unsigned_refusal_without_a_challenge_is_final() -> None:
    here, this = channel(), exchange()
    this.next_request(here)
    response = this.answered(here, Answer(401, Headers((("www-authenticate", b"Basic realm=x"),)), b"", "2", False))
    assert response is not None
    assert not response.signed


@pytest.mark.parametrize(("ended", "again"), [(True, True), (False, False)])
def test_binding_mismatch_is_made_good_only_on_another_connection(ended: bool, again: bool) -> None:
    this, here = signed_once("POST")
    assert (this.answered(here, refusal("binding_mismatch", status=403, ended=ended)) is None) is again
    if again:
        there = channel()
        there.challenges.add([fresh()], 0.0)
        assert this.next_request(there).is_signed
        assert this.answered(there, refusal("binding_mismatch", status=403, ended=True)) is not None


def test_challenge_is_never_used_on_another_connection() -> None:
    here, there, this = channel(), channel(), exchange()
    this.next_request(here)
    assert this.answered(here, refusal(ended=True)) is None
    assert not this.next_request(there).is_signed
    # Twice on connections that end is enough; the refusal goes to the caller.
    assert this.answered(there, refusal(ended=True)) is not None


def test_challenge_of_an_unbound_route_outlives_its_connection() -> None:
    here, there, this = channel(bound=False), channel(bound=False), exchange(binding="none")
    this.next_request(here)
    answer = refusal(binding="none", ended=True)
    assert this.answered(here, answer) is None
    assert nonce(this.next_request(there)) == offered(answer)


def test_challenge_of_a_refusal_is_kept_for_its_own_request() -> None:
    here, this, other = channel(), exchange(), exchange()
    this.next_request(here)
    assert this.answered(here, refusal()) is None
    assert not other.next_request(here).is_signed


def test_stale_challenge_empties_the_pool() -> None:
    this, here = signed_once()
    here.challenges.add([fresh(), fresh()], 0.0)
    assert this.answered(here, refusal("stale_challenge")) is None
    assert len(here.challenges) == 0


def test_wrong_clock_is_corrected_from_date() -> None:
    this, here = signed_once()
    assert this.answered(here, refusal("expired_signature")) is None
    message = this.next_request(here)
    assert b";created=1700003600;expires=1700003630;" in dict(message.headers)["signature-input"]


def test_max_age_of_the_challenge_bounds_expiry() -> None:
    here, this = channel(), exchange()
    this.next_request(here)
    answer = refusal()
    lines = tuple((name, value.replace(b"max-age=60", b"max-age=7")) for name, value in answer.headers.lines)
    assert this.answered(here, Answer(401, Headers(lines), b"", "2", False)) is None
    assert b";created=1700000000;expires=1700000007;" in dict(this.next_request(here).headers)["signature-input"]


@pytest.mark.parametrize(
    "params",
    [{"binding": "none"}, {"algs": "ml-dsa-65 ed25519+ml-dsa-65"}, {"algs": ""}, {"evidence": "required"}],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_challenge_that_this_client_does_not_meet_is_told(params: dict[str, Any], method: str) -> None:
    here, this = channel(), exchange(method)
    this.next_request(here)
    with pytest.raises(ChallengeUnusable) as caught:
        this.answered(here, refusal(**params))
    assert caught.value.response.status == 401


def test_client_without_binding_refuses_to_answer_a_bound_route() -> None:
    here, this = channel(bound=False), exchange(binding="none")
    this.next_request(here)
    with pytest.raises(ChallengeUnusable):
        this.answered(here, refusal())


def test_proof_refused_by_a_route_of_another_kind_is_not_made_again() -> None:
    this, here = signed_once()
    with pytest.raises(ChallengeUnusable):
        this.answered(here, refusal("stale_challenge", binding="none"))


def test_malformed_challenge_in_a_refusal_is_told() -> None:
    here, this = channel(), exchange()
    this.next_request(here)
    with pytest.raises(ChallengeSyntaxError):
        this.answered(here, Answer(401, Headers((("www-authenticate", b"PCH realm=x"),)), b"", "2", False))


def test_malformed_fresh_challenge_does_not_spoil_a_good_answer() -> None:
    this, here = signed_once()
    response = this.answered(here, Answer(200, Headers((("pch-challenge", b"nonsense"),)), b"ok", "2", False))
    assert response is not None
    assert (response.status, response.challenges, len(here.challenges)) == (200, (), 0)


@pytest.mark.parametrize(
    ("method", "unsent", "reused", "moves"),
    [
        ("GET", False, True, True),
        ("GET", False, False, False),
        ("POST", False, True, False),
        ("POST", True, False, True),
        ("POST", True, True, True),
    ],
)
def test_lost_connection_moves_only_what_may_be_sent_again(
    method: str, unsent: bool, reused: bool, moves: bool
) -> None:
    this, _ = signed_once(method)
    if moves:
        this.connection_gone(ConnectionLost("x"), unsent=unsent, reused=reused)
    else:
        with pytest.raises(ConnectionLost):
            this.connection_gone(ConnectionLost("x"), unsent=unsent, reused=reused)


def test_connections_lost_are_counted() -> None:
    this, _ = signed_once()
    for _ in range(MAX_LOST_CONNECTIONS):
        this.connection_gone(ConnectionLost("x"), unsent=True, reused=True)
    with pytest.raises(ConnectionLost):
        this.connection_gone(ConnectionLost("x"), unsent=True, reused=True)


def test_timeout_never_moves_a_request() -> None:
    this, _ = signed_once()
    with pytest.raises(TimedOut):
        this.connection_gone(TimedOut("x"), unsent=False, reused=True)


def test_answer_without_a_request_is_a_programming_error() -> None:
    with pytest.raises(RuntimeError):
        exchange().answered(channel(), success())
