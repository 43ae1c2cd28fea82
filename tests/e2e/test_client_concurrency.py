"""Many requests at once: streams of one connection, threads of one client, bounds, cancellation."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pch.client import AsyncClient, Client, ConnectFailed, NetworkError, PoolExhausted, TimedOut
from pch.client.limits import MAX_CONNECTIONS_PER_ORIGIN, MAX_STREAMS_PER_CONNECTION
from pch.keys import generate
from tests.e2e.client_any import TIMEOUT_S, Bench
from tests.e2e.client_server import TestServer
from tests.e2e.client_verifier import Verifier


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("concurrency"), generate("ed25519"))


def async_client(bench: Bench, **settings: object) -> AsyncClient:
    options: dict[str, object] = {"key": bench.key, "verify": bench.ca.path, "timeout_s": TIMEOUT_S} | settings
    return AsyncClient(**options)  # type: ignore[arg-type]


def check_nonces(server: TestServer) -> None:
    """Every challenge was used once, on its connection, by a request that passed."""
    signed = [each for each in server.verifier.received if each.signed]
    assert len({each.nonce for each in signed}) == len(signed)
    assert all(server.verifier.issued[each.nonce] == each.connection for each in signed)
    assert {each.status for each in signed} == {200}


@pytest.mark.parametrize("http2", [True, False])
async def test_fifty_at_once_share_bounded_connections(bench: Bench, http2: bool) -> None:
    with bench.server(http2=http2) as server:
        async with async_client(bench) as client:
            sends: list[set[int]] = []
            for _ in range(3):
                answers = await asyncio.gather(*(client.post(server.url(), content=b"x" * n) for n in range(50)))
                assert [len(each.content) for each in answers] == [4 + n for n in range(50)]
                sends.append({each.sends for each in answers})
            assert server.connections <= MAX_CONNECTIONS_PER_ORIGIN
            assert sends[1:] == [{1}, {1}]
        check_nonces(server)


async def test_streams_of_one_connection_are_in_flight_together(bench: Bench) -> None:
    verifier = Verifier(bench.key, challenges_per_answer=8)
    with bench.server(verifier=verifier) as server:
        async with async_client(bench, max_connections_per_origin=1) as client:
            await client.get(server.url())
            # The server now answers only when eight requests are there at once: they can only come by one connection.
            server.batch = MAX_STREAMS_PER_CONNECTION
            answers = await asyncio.gather(*(client.get(server.url()) for _ in range(MAX_STREAMS_PER_CONNECTION)))
            assert {(each.status, each.sends) for each in answers} == {(200, 1)}
            assert server.connections == 1
        check_nonces(server)


async def test_killed_connections_fail_no_idempotent_request(bench: Bench) -> None:
    with bench.server() as server:
        async with async_client(bench) as client:
            await asyncio.gather(*(client.get(server.url()) for _ in range(50)))
            for _ in range(3):
                server.kill_connections()
                answers = await asyncio.gather(*(client.get(server.url()) for _ in range(50)))
                assert {each.status for each in answers} == {200}
        check_nonces(server)


async def test_cancelled_request_leaves_the_client_usable(bench: Bench) -> None:
    with bench.server() as server:
        async with async_client(bench, max_connections_per_origin=1) as client:
            await client.get(server.url())
            server.batch = 2  # One request alone is not answered.
            tasks = [asyncio.create_task(client.get(server.url())) for _ in range(1)]
            await asyncio.sleep(0.05)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            server.batch = 1
            assert (await client.get(server.url())).status == 200
            assert server.connections == 2


async def test_request_that_waits_is_bounded_in_time_and_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pch.client.async_pool.MAX_WAITING_REQUESTS", 1)
    with bench.server(http2=False) as server, server.verifier.lock:
        async with async_client(bench, max_connections_per_origin=1, timeout_s=0.5) as client:
            tasks = [asyncio.create_task(client.get(server.url())) for _ in range(3)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert sorted(type(each).__name__ for each in results) == ["PoolExhausted", "TimedOut", "TimedOut"]


async def test_cancelled_waiter_does_not_swallow_a_wake_up(bench: Bench) -> None:
    with bench.server(http2=False) as server:
        async with async_client(bench, max_connections_per_origin=1) as client:
            for round_number in range(20):
                tasks = [asyncio.create_task(client.get(server.url())) for _ in range(6)]
                await asyncio.sleep(0.001 * (round_number % 4))
                for task in tasks[1::2]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert {each.status for each in results[::2] if not isinstance(each, BaseException)} == {200}
                assert not [each for each in results[::2] if isinstance(each, BaseException)]


async def test_closing_wakes_those_who_wait(bench: Bench) -> None:
    with bench.server(http2=False) as server:
        client = async_client(bench, max_connections_per_origin=1)
        with server.verifier.lock:
            tasks = [asyncio.create_task(client.get(server.url())) for _ in range(3)]
            await asyncio.sleep(0.1)
            await client.aclose()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert len([each for each in results if isinstance(each, BaseException)]) >= 2


@pytest.mark.parametrize("http2", [True, False])
def test_threads_share_a_client(bench: Bench, http2: bool) -> None:
    with bench.server(http2=http2) as server:
        with Client(key=bench.key, verify=bench.ca.path, timeout_s=TIMEOUT_S) as client, ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: client.post(server.url(), content=str(n)), range(200)))
            assert [each.text for each in answers] == [f"app:{n}" for n in range(200)]
            assert server.connections <= MAX_CONNECTIONS_PER_ORIGIN
        check_nonces(server)


def test_thread_that_waits_is_bounded_in_time_and_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pch.client.sync_pool.MAX_WAITING_REQUESTS", 1)
    errors: list[str] = []

    def get(client: Client, url: str) -> None:
        try:
            client.get(url)
        except NetworkError as error:
            errors.append(type(error).__name__)

    client = Client(key=bench.key, verify=bench.ca.path, timeout_s=0.5, max_connections_per_origin=1)
    with bench.server() as server, server.verifier.lock, client:
        threads = [threading.Thread(target=get, args=(client, server.url())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(errors) == [PoolExhausted.__name__, TimedOut.__name__, TimedOut.__name__]


def test_too_many_origins_in_use_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pch.client.sync_pool.MAX_ORIGINS", 1)
    outcomes: list[object] = []
    client = Client(key=bench.key, verify=bench.ca.path, timeout_s=TIMEOUT_S)
    with bench.server() as server, bench.server() as other, client:
        with server.verifier.lock:
            thread = threading.Thread(target=lambda: outcomes.append(client.get(server.url()).status))
            thread.start()
            while not server.connections:
                thread.join(0.01)
            with pytest.raises(PoolExhausted):
                client.get(other.url())
        thread.join()
        assert client.get(other.url()).status == 200
    assert outcomes == [200]


async def test_too_many_origins_in_use_are_refused_to_tasks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pch.client.async_pool.MAX_ORIGINS", 1)
    with bench.server() as server, bench.server() as other:
        async with async_client(bench) as client:
            with server.verifier.lock:
                task = asyncio.create_task(client.get(server.url()))
                while not server.connections:
                    await asyncio.sleep(0.01)
                with pytest.raises(PoolExhausted):
                    await client.get(other.url())
            assert (await task).status == 200
            assert (await client.get(other.url())).status == 200


async def test_every_method_has_its_call(bench: Bench) -> None:
    with bench.server() as server:
        url, changing = server.url("/protected?a=1"), ("post", "put", "patch")
        async with async_client(bench) as client:
            for name in ("get", "head", "options", "delete", *changing):
                parts = {"content": "x"} if name in changing else {}
                response = await getattr(client, name)(url, headers={"x-a": "b"}, params={"c": 2}, **parts)
                assert response.status == 200
        with Client(key=bench.key, verify=bench.ca.path) as blocking:
            for name in ("get", "head", "options", "delete", *changing):
                parts = {"content": "x"} if name in changing else {}
                response = getattr(blocking, name)(url, headers={"x-a": "b"}, params={"c": 2}, **parts)
                assert response.status == 200
        passed = [each for each in server.verifier.received if each.status == 200]
        methods = ["GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT", "PATCH"]
        assert [each.message.method for each in passed] == methods * 2
        assert {each.message.target for each in passed} == {"/protected?a=1&c=2"}
        assert [each.body for each in passed] == [b"", b"", b"", b"", b"x", b"x", b"x"] * 2


async def test_refused_connection_frees_its_place(bench: Bench) -> None:
    async with async_client(bench, max_connections_per_origin=1) as client:
        for _ in range(3):
            with pytest.raises(ConnectFailed):
                await client.get("https://127.0.0.1:1/")
    with Client(key=bench.key, max_connections_per_origin=1) as blocking:
        for _ in range(3):
            with pytest.raises(ConnectFailed):
                blocking.get("https://127.0.0.1:1/")
