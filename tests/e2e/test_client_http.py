"""The client over real TLS against a small verifier: sync and async, HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from pch.client import (
    ChallengeUnusable,
    ConnectionLost,
    InvalidRequest,
    ResponseTooLarge,
    TimedOut,
    TooManyRedirects,
)
from pch.keys import generate
from tests.e2e.client_any import Bench
from tests.e2e.client_server import TestServer
from tests.e2e.client_verifier import Forced, Reply, Verifier

RECEIPT = "0192f0c1-7e7e-7000-8000-000000000000"

pytestmark = [pytest.mark.parametrize("kind", ["sync", "async"]), pytest.mark.parametrize("http2", [True, False])]


@pytest.fixture(scope="module", params=["ed25519", "ecdsa-p256-sha256"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("http"), generate(request.param))


def seen(server: TestServer) -> list[tuple[str, bool, int]]:
    return [(each.message.method, each.signed, each.status) for each in server.verifier.received]


def test_first_get_takes_two_trips_and_each_later_request_one(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind) as client:
        first = client.get(server.url("/protected?a=b"))
        assert (first.status, first.sends, first.content, first.receipt_id) == (200, 2, b"app:", RECEIPT)
        assert first.http_version == ("2" if http2 else "1.1")
        for method in ("GET", "POST", "PUT", "HEAD", "DELETE"):
            response = client.request(method, server.url(), content=b"x" if method in {"POST", "PUT"} else None)
            assert (response.status, response.sends, response.signed) == (200, 1, True)
        assert server.connections == 1
        nonces = [each.nonce for each in server.verifier.received if each.signed]
        assert len(set(nonces)) == len(nonces) == 6


def test_first_post_asks_by_head_and_its_content_travels_once(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind) as client:
        response = client.request("POST", server.url(), content=b"x" * 200_000, headers={"x-a": "1"})
        assert (response.status, len(response.content)) == (200, 200_004)
        assert seen(server) == [("HEAD", False, 401), ("POST", True, 200)]
        assert ("x-a", b"1") in server.verifier.received[1].message.headers


def test_open_route_is_served_without_a_proof(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind) as client:
        assert client.get(server.url("/open")).signed is False
        for _ in range(2):
            response = client.request("POST", server.url("/open"), content=b"x")
            assert (response.content, response.signed, response.receipt_id) == (b"open:x", False, None)
        assert [method for method, _, _ in seen(server)] == ["GET", "HEAD", "POST", "POST"]


@pytest.mark.parametrize(
    ("reason", "method", "again"),
    [
        ("stale_challenge", "POST", True),
        ("bad_signature", "GET", True),
        ("nonce_replay", "GET", True),
        ("nonce_replay", "POST", False),
        ("policy_denied", "GET", False),
    ],
)
def test_refused_proof_is_made_again_as_its_reason_allows(
    bench: Bench, kind: str, http2: bool, reason: str, method: str, again: bool
) -> None:
    verifier = Verifier(bench.key)
    with bench.server(http2=http2, verifier=verifier) as server, bench.client(kind) as client:
        client.get(server.url())
        verifier.forced.append(Forced(403 if reason == "policy_denied" else 401, reason))
        response = client.request(method, server.url())
        assert (response.status == 200) is again
        assert response.reason == (None if again else reason)
        assert len(verifier.received) == (4 if again else 3)


def test_refusal_is_retried_once_only(bench: Bench, kind: str, http2: bool) -> None:
    verifier = Verifier(bench.key)
    with bench.server(http2=http2, verifier=verifier) as server, bench.client(kind) as client:
        client.get(server.url())
        verifier.forced.extend([Forced(401, "stale_challenge")] * 5)
        response = client.get(server.url())
        assert (response.status, response.reason, response.sends) == (401, "stale_challenge", 2)
        assert len(verifier.forced) == 3


def test_wrong_local_clock_is_corrected(bench: Bench, kind: str, http2: bool) -> None:
    verifier = Verifier(bench.key, clock_ahead_s=-7200)
    with bench.server(http2=http2, verifier=verifier) as server, bench.client(kind) as client:
        first = client.get(server.url())
        assert (first.status, first.sends) == (200, 3)
        assert verifier.received[1].reason == "expired_signature"
        second = client.get(server.url())
        assert (second.status, second.sends) == (200, 1)


def test_killed_connection_is_replaced_and_signed_for_anew(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind) as client:
        client.get(server.url())
        server.kill_connections()
        response = client.request("GET", server.url())
        assert response.status == 200
        assert server.connections == 2
        assert [each.status for each in server.verifier.received] == [401, 200, 401, 200]
        bindings = {each.message.lines("pch-channel-binding")[0] for each in server.verifier.received if each.signed}
        assert len(bindings) == 2


def test_connection_lost_under_a_request(bench: Bench, kind: str, http2: bool) -> None:
    verifier = Verifier(bench.key)
    with bench.server(http2=http2, verifier=verifier) as server, bench.client(kind) as client:
        client.get(server.url())
        verifier.forced.append(Forced(drop=True, reply=Reply(200, [], drop=True)))
        assert client.get(server.url()).status == 200
        verifier.forced.append(Forced(drop=True, reply=Reply(200, [], drop=True)))
        with pytest.raises(ConnectionLost):
            client.request("POST", server.url(), content=b"x")
        assert client.get(server.url()).status == 200


def test_refusal_that_closes_its_connection_goes_on_elsewhere(bench: Bench, kind: str, http2: bool) -> None:
    verifier = Verifier(bench.key)
    with bench.server(http2=http2, verifier=verifier) as server, bench.client(kind) as client:
        verifier.forced.append(Forced(401, "missing_signature", only_signed=False, close=True))
        response = client.get(server.url())
        assert (response.status, server.connections) == (200, 2)
        verifier.forced.extend([Forced(401, "missing_signature", only_signed=False, close=True)] * 9)
        response = client.get(server.url())
        assert (response.status, response.reason) == (401, "missing_signature")
        assert len(verifier.forced) >= 5


@pytest.mark.parametrize("changes", [{"binding": "none"}, {"algs": "ml-dsa-65"}, {"evidence": "required"}])
def test_route_that_asks_for_something_else_is_told(
    bench: Bench, kind: str, http2: bool, changes: dict[str, Any]
) -> None:
    verifier = Verifier(bench.key, **changes)
    with bench.server(http2=http2, verifier=verifier) as server, bench.client(kind) as client:
        with pytest.raises(ChallengeUnusable):
            client.get(server.url())
        assert not any(each.signed for each in verifier.received)


def test_unbound_route_gets_no_binding(bench: Bench, kind: str, http2: bool) -> None:
    verifier = Verifier(bench.key, binding="none")
    with bench.server(http2=http2, verifier=verifier) as server, bench.client(kind, binding="none") as client:
        assert client.get(server.url()).status == 200
        assert not verifier.received[1].message.lines("pch-channel-binding")


def _redirect(server: TestServer, status: int, to: str) -> str:
    return server.url(f"/redirect/{status}/{base64.urlsafe_b64encode(to.encode()).decode()}")


def test_redirects_are_followed_on_request_and_signed_anew(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.server(http2=http2) as other:
        to_other = _redirect(server, 307, other.url("/protected?x"))
        with bench.client(kind) as client:
            assert client.get(to_other).status == 307
        with bench.client(kind, follow_redirects=True) as client:
            client.get(server.url())
            headers = {"authorization": "secret", "x-a": "1"}
            response = client.request("POST", to_other, content=b"hello", headers=headers)
            assert (response.status, response.content) == (200, b"app:hello")
            assert response.url == other.url("/protected?x")
            mine = {each.nonce for each in server.verifier.received if each.signed}
            for each in other.verifier.received:
                assert not each.message.lines("authorization")
                assert not each.signed or each.nonce not in mine
            assert other.verifier.received[-1].message.lines("x-a") == [b"1"]
            same = client.get(_redirect(server, 302, "/protected/moved"))
            assert (same.status, server.verifier.received[-1].message.target) == (200, "/protected/moved")


def test_endless_and_downgrading_redirects_are_refused(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind, follow_redirects=True) as client:
        loop = Forced(only_signed=False, reply=Reply(302, [(b"location", b"/again")]))
        server.verifier.forced.extend([loop] * 20)
        with pytest.raises(TooManyRedirects):
            client.get(server.url("/again"))
        assert len(server.verifier.forced) == 9
        server.verifier.forced.clear()
        with pytest.raises(TooManyRedirects):
            client.get(_redirect(server, 302, "http://127.0.0.1:1/"))


def test_answer_past_the_limit_is_refused(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind, max_response_bytes=1_000_000) as client:
        assert len(client.get(server.url("/big/1000000")).content) == 1_000_000
        with pytest.raises(ResponseTooLarge):
            client.get(server.url("/big/1000001"))
        assert client.get(server.url("/big/10")).content == b"x" * 10


def test_malformed_fresh_challenges_cost_a_round_trip_and_nothing_else(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind) as client:
        client.get(server.url())
        server.verifier.forced.append(Forced(reply=Reply(200, [(b"pch-challenge", b'"short"')], b"ok")))
        assert client.get(server.url()).content == b"ok"
        response = client.get(server.url())
        assert (response.status, response.sends) == (200, 2)


def test_silent_server_is_given_up(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind, timeout_s=0.3) as client:
        server.verifier.lock.acquire()
        try:
            with pytest.raises(TimedOut):
                client.get(server.url())
        finally:
            server.verifier.lock.release()


def test_plain_http_only_without_binding(bench: Bench, kind: str, http2: bool) -> None:
    verifier = Verifier(bench.key, binding="none")
    with TestServer(verifier, None) as server:
        with bench.client(kind, binding="none", http2=http2) as client:
            assert [client.get(server.url()).status for _ in range(2)] == [200, 200]
            server.kill_connections()
            assert client.request("PUT", server.url(), content=b"x").status == 200
        with bench.client(kind) as client, pytest.raises(InvalidRequest):
            client.get(server.url())


def test_closed_client_sends_nothing(bench: Bench, kind: str, http2: bool) -> None:
    with bench.server(http2=http2) as server, bench.client(kind) as client:
        client.get(server.url())
        with bench.client(kind) as other:
            other.get(server.url())
        with pytest.raises(InvalidRequest):
            other_closed(client, server)


def other_closed(client: Any, server: TestServer) -> None:
    inner = client._client
    if client._runner is None:
        inner.close()
    else:
        client._runner.run(inner.aclose())
    client.get(server.url())


def test_many_origins_do_not_pile_up(bench: Bench, kind: str, http2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"pch.client.{kind}_pool.MAX_ORIGINS", 2)
    servers = [bench.server(http2=http2) for _ in range(3)]
    with servers[0], servers[1], servers[2], bench.client(kind) as client:
        for server in [*servers, *servers]:
            assert client.get(server.url()).status == 200
        assert [server.connections for server in servers] == [2, 2, 2]


def test_idle_connection_past_its_time_is_not_used(
    bench: Bench, kind: str, http2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench.server(http2=http2) as server, bench.client(kind) as client:
        client.get(server.url())
        monkeypatch.setattr(f"pch.client.{kind}_connection.IDLE_EXPIRY_S", -1.0)
        client.get(server.url())
        assert server.connections == 2


def test_broken_key_is_refused(bench: Bench, kind: str, http2: bool) -> None:
    with pytest.raises(InvalidRequest), bench.client(kind, key={"kty": "OKP"}, http2=http2):
        raise AssertionError("a broken key was accepted")
