"""Bodies on the real Envoy with the real filter: what was signed arrives whole, and nothing else ever does."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from pch.httpsig.content_digest import content_digest
from tests.e2e.attack_stage import Attacker, Stage, attack, body_of, open_stage, wait_until
from tests.e2e.attack_wire import Http1Session, Http2Session
from tests.e2e.body_upstream import in_place_of_the_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.attack_request import Request

pytestmark = pytest.mark.e2e

LIMIT_BYTES: Final = 131_072
"""What the edge hands over with the question."""
MAX_HELD_BYTES: Final = 1 << 20
BODY: Final = os.urandom(400_000)
PROTOCOLS: Final = ("http1", "http2")
PREFIXES: Final = ("/uploads", "/held")
SIZES: Final = (1, LIMIT_BYTES - 1, LIMIT_BYTES, LIMIT_BYTES + 1, LIMIT_BYTES + 20_000, MAX_HELD_BYTES)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("b")) as opened:
        yield opened


@pytest.fixture(params=PROTOCOLS)
def attacker(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Attacker]:
    with attack(stage, request.param) as made:
        yield made


def post(attacker: Attacker, body: bytes = BODY, prefix: str = "/uploads", **changes: Any) -> Request:
    return attacker.request(attacker.target(prefix), **({"method": "POST", "body": body} | changes))


def header(seen: dict[str, Any], name: str) -> list[str]:
    return [value for each, value in seen["headers"] if each.lower() == name]


@dataclass(frozen=True)
class Chain:
    """The receipts of one request: the decision, and the verdict if its body was pending."""

    decision: dict[str, Any]
    verdict: dict[str, Any] | None


def chain(attacker: Attacker) -> Chain:
    """Give the receipts of the one signed request of `attacker`."""

    def found() -> list[dict[str, Any]]:
        receipts = attacker.stage.receipts_of(attacker.marker)
        return [each for each in receipts if each["kind"] != "decision" or each["proof"]]

    receipts = found()
    decisions = [each for each in receipts if each["kind"] == "decision"]
    verdicts = [each for each in receipts if each["kind"] == "body_verdict"]
    assert len(decisions) == 1
    assert all(each["refers_to"] == decisions[0]["id"] for each in verdicts)
    assert len(verdicts) <= 1
    return Chain(decisions[0], verdicts[0] if verdicts else None)


def settled(attacker: Attacker) -> Chain:
    """Wait until the body has its verdict."""
    return wait_until(lambda: found if (found := chain(attacker)).verdict else None, "a verdict on the body")


# -- what passes


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("size", SIZES)
def test_body_of_any_size_and_framing_arrives_as_it_was_signed(
    attacker: Attacker, size: int, prefix: str, framing: str
) -> None:
    body = os.urandom(size)
    answer = attacker.send(attacker.signed(post(attacker, body, prefix, framing=framing)))
    assert (answer.status, answer.reason) == (200, None)
    (seen,) = attacker.stage.seen_by_app()
    assert (seen["body_bytes"], seen["body_sha256"]) == (size, hashlib.sha256(body).hexdigest())
    assert header(seen, "content-length") == ([str(size)] if framing == "length" else [])
    assert header(seen, "x-signet-body") == []
    assert header(seen, "x-signet-receipt") == [answer.receipt_id]
    # Also a body that fills the limit and does not say how long it is: that there is no more cannot be known.
    pending = size > LIMIT_BYTES or (size == LIMIT_BYTES and framing == "chunked")
    receipts = chain(attacker)
    assert receipts.decision["reason"] == ("body_pending" if pending else "allowed")
    assert receipts.decision["request"]["content"] == ("pending" if pending else "verified")
    assert (receipts.verdict is not None) == pending
    if receipts.verdict is not None:
        assert (receipts.verdict["decision"], receipts.verdict["reason"]) == ("allow", "allowed")
        assert receipts.verdict["request"]["content_sha256"] == seen["body_sha256"]


@pytest.mark.parametrize("digest", [None, content_digest(b"")], ids=["no digest", "a digest of nothing"])
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
def test_a_request_that_says_that_it_has_no_content_passes_without_any(
    attacker: Attacker, framing: str, digest: str | None
) -> None:
    """`Content-Length: 0`, chunked coding or DATA that ends at once, and nothing of the kind."""
    said = (("content-length", b"0"),) if framing == "length" else ()
    answer = attacker.send(attacker.signed(post(attacker, b"", framing=framing, headers=said), digest=digest))
    assert (answer.status, answer.reason) == (200, None)
    (seen,) = attacker.stage.seen_by_app()
    assert (seen["method"], seen["body_bytes"]) == ("POST", 0)
    receipts = chain(attacker)
    assert (receipts.decision["reason"], receipts.decision["request"]["content"]) == ("allowed", "none")
    assert receipts.verdict is None


def test_content_coding_is_left_alone_and_the_digest_is_of_the_coded_bytes(attacker: Attacker) -> None:
    plain = os.urandom(200_000)
    coded = gzip.compress(plain)
    assert len(coded) > LIMIT_BYTES
    request = post(attacker, coded, headers=(("content-encoding", b"gzip"),))
    assert attacker.send(attacker.signed(request)).status == 200
    (seen,) = attacker.stage.seen_by_app()
    assert seen["body_bytes"] == len(coded)
    assert header(seen, "content-encoding") == ["gzip"]
    assert body_of(seen) == coded[: len(body_of(seen))]


def test_digest_of_what_the_coding_stands_for_is_refused(attacker: Attacker) -> None:
    plain = os.urandom(200_000)
    request = post(attacker, gzip.compress(plain), headers=(("content-encoding", b"gzip"),))
    answer = attacker.send(attacker.signed(request, digest=content_digest(plain)))
    assert (answer.status, answer.reason) == (400, "bad_content_digest")
    assert not attacker.stage.seen_by_app()


def test_both_digests_hold_together(attacker: Attacker) -> None:
    both = content_digest(BODY, ("sha-256", "sha-512"))
    assert attacker.send(attacker.signed(post(attacker), digest=both)).status == 200
    (seen,) = attacker.stage.seen_by_app()
    assert seen["body_bytes"] == len(BODY)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_request_trailers_end_a_body_and_go_no_further(attacker: Attacker, framing: str) -> None:
    if attacker.protocol == "http1" and framing == "length":
        framing = "chunked"  # HTTP/1.1 has trailers in no other framing.
    trailers = (("x-signet-subject", b"root"), ("x-late", b"1"))
    answer = attacker.send(attacker.signed(post(attacker, framing=framing)).but(trailers=trailers))
    assert answer.status == 200
    (seen,) = attacker.stage.seen_by_app()
    assert seen["body_bytes"] == len(BODY)
    assert seen["trailers"] == []
    assert chain(attacker).verdict is not None


def test_altered_body_that_ends_with_trailers_is_refused(attacker: Attacker) -> None:
    request = attacker.signed(post(attacker, framing="chunked"))
    answer = attacker.send(request.but(body=BODY[:-1], trailers=(("x-late", b"1"),)))
    assert (answer.status, answer.reason) == (400, "bad_content_digest")
    assert not attacker.stage.seen_by_app()


def test_client_that_waits_for_100_continue_sends_its_body_once(stage: Stage) -> None:
    with attack(stage, "http1") as attacker:
        request = attacker.signed(post(attacker, headers=(("expect", b"100-continue"),)))
        session = attacker.session
        assert isinstance(session, Http1Session)
        head, _, body = request.http1().partition(b"\r\n\r\n")
        session.wire.send(head + b"\r\n\r\n")
        assert session.wire.receive().startswith(b"HTTP/1.1 100 ")
        assert session.raw(body, method="POST").status == 200
        (seen,) = stage.seen_by_app()
        assert seen["body_bytes"] == len(BODY)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "GET", "HEAD"])
def test_content_counts_whatever_the_method(attacker: Attacker, method: str) -> None:
    good = attacker.signed(post(attacker, method=method))
    assert attacker.send(good).status == 200
    (seen,) = attacker.stage.seen_by_app()
    assert (seen["method"], seen["body_bytes"]) == (method, len(BODY))
    again = attacker.connect()
    bad = attacker.signed(post(attacker, method=method), challenge=attacker.challenge(again), binding=again.binding)
    answer = again.send(bad.but(body=BODY[:-1] + b"!"))
    assert (answer.status, answer.reason) == (400, "bad_content_digest")
    if method == "HEAD":
        assert answer.body == b""
    assert not attacker.stage.seen_by_app()


def test_streams_of_one_connection_do_not_mix(stage: Stage) -> None:
    with attack(stage, "http2") as attacker:
        session = attacker.session
        assert isinstance(session, Http2Session)
        bodies = [bytes([number]) * (200_000 + number) for number in range(4)]
        requests = [attacker.signed(post(attacker, body)) for body in bodies]
        requests[2] = requests[2].but(body=bodies[2][:-1] + b"!")
        answers = session.send_all(requests)
        assert [answer.status for answer in answers] == [200, 200, 400, 200]
        assert sorted(each["body_bytes"] for each in stage.seen_by_app()) == [200_000, 200_001, 200_003]


# -- what does not


def flipped(body: bytes, place: int) -> bytes:
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


ALTERED: Final = {
    "first byte": flipped(BODY, 0),
    "a byte in what the Check sees": flipped(BODY, LIMIT_BYTES - 1),
    "a byte that it does not see": flipped(BODY, LIMIT_BYTES),
    "last byte": flipped(BODY, len(BODY) - 1),
    "truncated": BODY[:-1],
    "truncated to what the Check sees": BODY[:LIMIT_BYTES],
    "truncated below": BODY[: LIMIT_BYTES - 1],
    "extended": BODY + b"x",
    "nothing": b"",
    "another body": os.urandom(len(BODY)),
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("name", ALTERED)
def test_altered_body_is_refused_and_the_app_never_has_it(
    attacker: Attacker, name: str, framing: str, prefix: str
) -> None:
    request = attacker.signed(post(attacker, prefix=prefix, framing=framing))
    answer = attacker.send(request.but(body=ALTERED[name]))
    assert (answer.status, answer.reason) == (400, "bad_content_digest")
    assert answer.json()["reason"] == "bad_content_digest"
    assert answer.challenges, "the connection goes on with a fresh challenge"
    assert not attacker.stage.seen_by_app()
    receipts = chain(attacker)
    if receipts.decision["reason"] == "body_pending":
        assert receipts.verdict is not None
        assert (receipts.verdict["decision"], receipts.verdict["reason"]) == ("deny", "bad_content_digest")
        assert receipts.verdict["status"] == 400
    else:
        assert (receipts.decision["reason"], receipts.verdict) == ("bad_content_digest", None)
    # The challenge is spent all the same.
    replay = attacker.connect()
    assert replay.send(request).status in {401, 403}
    assert not attacker.stage.seen_by_app()


@pytest.mark.parametrize(
    "digest",
    [
        content_digest(BODY, ("sha-512",)),
        "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:",
        content_digest(b"other"),
        f"{content_digest(BODY)}, {content_digest(b'other', ('sha-512',))}",
        f"{content_digest(b'other')}, {content_digest(BODY, ('sha-512',))}",
        f"{content_digest(BODY)}, sha-512=:AAAA:",
        "sha-256=::",
        "sha-256",
    ],
)
def test_digest_that_is_not_that_of_the_body_is_refused(attacker: Attacker, digest: str) -> None:
    answer = attacker.send(attacker.signed(post(attacker), digest=digest))
    assert (answer.status, answer.reason) == (400, "bad_content_digest")
    assert not attacker.stage.seen_by_app()


def test_large_body_without_a_digest_is_refused(attacker: Attacker) -> None:
    request = attacker.signed(post(attacker, b"")).but(body=BODY)
    answer = attacker.send(request)
    assert (answer.status, answer.reason) == (401, "missing_component")
    assert not attacker.stage.seen_by_app()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_over_the_routes_limit_is_413(attacker: Attacker, framing: str) -> None:
    body = bytes(MAX_HELD_BYTES + 1)
    answer = attacker.send(attacker.signed(post(attacker, body, "/held", framing=framing)))
    assert (answer.status, answer.reason) == (413, "body_too_large")
    assert not attacker.stage.seen_by_app()


def test_words_that_only_the_filter_may_say_change_nothing(attacker: Attacker) -> None:
    """Neither the header that starts ext_proc nor anything like its metadata is the client's to send."""
    forged = (
        ("x-signet-body", b"ordered"),
        ("x-envoy-auth-partial-body", b"false"),
        ("x-signet-edge-body-bytes", b"999999999"),
        ("x-signet-receipt", b"01a1fdcf-6e74-7552-9567-f88f62197977"),
    )
    for target in ("/public", "/protected", "/uploads"):
        small = attacker.request(attacker.target(target), method="POST", body=b"small", headers=forged)
        assert attacker.send(attacker.signed(small)).status == 200
        (seen,) = attacker.stage.seen_by_app()
        assert header(seen, "x-signet-body") == []
    altered = attacker.signed(post(attacker, headers=forged)).but(body=flipped(BODY, 9))
    assert attacker.send(altered).status == 400
    # Over HTTP/1.1 the refusal may be lost: the edge answers, and closes, while the body is still on its way.
    assert attacker.connect().send(post(attacker, headers=forged)).status in {0, 401}
    assert not attacker.stage.seen_by_app()


# -- what upstream sees of a body that fails, byte by byte


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_app_gets_the_beginning_of_a_streamed_body_and_never_its_end(attacker: Attacker, framing: str) -> None:
    with in_place_of_the_app(attacker.stage.stack) as app:
        request = attacker.signed(post(attacker, framing=framing)).but(body=flipped(BODY, 3))
        assert attacker.send(request).status == 400
        arrived = app.only()
    assert not arrived.whole
    assert len(arrived.raw) < len(BODY)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_app_gets_nothing_at_all_of_a_held_body_that_fails(attacker: Attacker, framing: str) -> None:
    with in_place_of_the_app(attacker.stage.stack) as app:
        request = attacker.signed(post(attacker, prefix="/held", framing=framing)).but(body=flipped(BODY, 3))
        assert attacker.send(request).status == 400
    assert not app.seen


def test_app_that_answers_early_does_not_get_the_end_of_an_altered_body(attacker: Attacker) -> None:
    with in_place_of_the_app(attacker.stage.stack, early=True) as app:
        request = attacker.signed(post(attacker)).but(body=flipped(BODY, len(BODY) - 1))
        answer = attacker.send(request)
        arrived = app.only()
    assert answer.status in {0, 200, 400}, "the app's own answer, or ours, or a reset between the two"
    assert not arrived.whole
    receipts = settled(attacker)
    assert receipts.verdict is not None
    assert receipts.verdict["decision"] == "deny"


def test_client_that_breaks_off_leaves_a_verdict_and_the_app_nothing_whole(stage: Stage) -> None:
    with attack(stage, "http1") as attacker:
        session = attacker.session
        assert isinstance(session, Http1Session)
        request = attacker.signed(post(attacker))
        with in_place_of_the_app(stage.stack) as app:
            session.wire.send(request.http1()[:-1000])
            wait_until(lambda: app.seen and len(app.seen[0].raw) > 1000, "the beginning of the body")
            session.close()
            assert not app.only().whole
        receipts = settled(attacker)
        assert receipts.verdict is not None
        assert (receipts.verdict["decision"], receipts.verdict["reason"]) == ("deny", "bad_content_digest")
