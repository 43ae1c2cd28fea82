"""The client against the real stack: Envoy, the filter, the stores, the example app."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pch.client import AsyncClient, CertificateRefused, ChallengeUnusable, Client, ConnectionLost, Response
from pch.client.cli import main
from pch.keys import generate, public_jwk
from tests.e2e.client_any import TIMEOUT_S, AnyClient
from tests.e2e.client_certificates import make_ca
from tests.e2e.client_forwarder import Forwarder
from tools import pch_client_demo
from tools.stack import Stack
from tools.stack_config import Ports, StackSettings

REGISTRATION_TAKES_S = 5.0

pytestmark = pytest.mark.e2e
both_kinds = pytest.mark.parametrize("kind", ["sync", "async"])
both_versions = pytest.mark.parametrize("http2", [True, False])


class Place:
    """The running stack as a client sees it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        state = stack.state
        self.origin: str = state["https"]
        self.admin: str = state["admin"]
        self.ca: str = state["ca"]
        self.config: str = state["config"]
        self.key_path: str = state["demo_key"]
        self.key: dict[str, str] = json.loads(Path(self.key_path).read_text())
        self.guarded: str = self.origin + state["guarded_path"]

    @contextmanager
    def client(self, kind: str = "sync", **settings: Any) -> Iterator[AnyClient]:
        client = AnyClient(kind, **({"key": self.key, "verify": self.ca} | settings))
        try:
            yield client
        finally:
            client.close()

    def receipt(self, response: Response) -> dict[str, Any]:
        """Fetch the receipt that the answer names."""
        assert response.receipt_id
        with urllib.request.urlopen(f"{self.admin}/receipts/{response.receipt_id}", timeout=TIMEOUT_S) as answer:
            document: dict[str, Any] = json.loads(answer.read())
        return document

    def app_request(self, receipt_id: str | None) -> dict[str, Any]:
        """Give the one request that reached the app under this receipt."""
        wanted = ["x-signet-receipt", receipt_id]
        (found,) = [each for each in self.stack.app_requests() if wanted in each["headers"]]
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    settings = StackSettings(var=tmp_path_factory.mktemp("cl"), ports=Ports.free())
    with Stack(settings) as stack:
        yield Place(stack)


@both_kinds
@both_versions
def test_steady_state_is_one_round_trip(place: Place, kind: str, http2: bool) -> None:
    with place.client(kind, http2=http2) as client:
        first = client.get(place.guarded)
        assert (first.status, first.sends, first.http_version) == (200, 2, "2" if http2 else "1.1")
        for method, content in [
            ("GET", b""),
            ("POST", b"hello"),
            ("PUT", b"x" * 60_000),
            ("DELETE", b""),
            ("HEAD", b""),
        ]:
            response = client.request(method, f"{place.guarded}/a%20b?q=%41&q=2", content=content)
            assert (response.status, response.sends, response.signed) == (200, 1, True), response.reason
            seen = place.app_request(response.receipt_id)
            assert (seen["method"], seen["target"]) == (method, "/protected/a%20b?q=%41&q=2")
            assert seen["body_bytes"] == len(content)
            assert not [name for name, _ in seen["headers"] if name.startswith(("pch-", "signature"))]


@both_kinds
@both_versions
def test_first_post_sends_its_content_once(place: Place, kind: str, http2: bool) -> None:
    with place.client(kind, http2=http2) as client:
        response = client.request("POST", place.guarded, content=b"hello")
        assert (response.status, response.sends) == (200, 2)
        assert place.app_request(response.receipt_id)["body_bytes"] == 5


def test_receipt_can_be_read_by_its_id(place: Place) -> None:
    with place.client() as client:
        receipt = json.dumps(place.receipt(client.get(f"{place.guarded}/receipted")))
        assert "/protected/receipted" in receipt
        assert "allowed" in receipt


@both_versions
async def test_fifty_at_once_in_one_round_trip_each(place: Place, http2: bool) -> None:
    async with AsyncClient(key=place.key, verify=place.ca, http2=http2, timeout_s=TIMEOUT_S) as client:
        await asyncio.gather(*(client.get(place.guarded) for _ in range(50)))
        receipts: set[str | None] = set()
        for _ in range(4):
            answers = await asyncio.gather(*(client.post(place.guarded, content=str(n)) for n in range(50)))
            assert {(each.status, each.sends) for each in answers} == {(200, 1)}
            receipts |= {each.receipt_id for each in answers}
        assert len(receipts) == 200


@both_kinds
@both_versions
def test_killed_connection_is_signed_for_anew(place: Place, kind: str, http2: bool) -> None:
    with Forwarder(place.stack.settings.ports.https) as forwarder, place.client(kind, http2=http2) as client:
        for round_number in range(1, 4):
            response = client.get(forwarder.url("/protected"))
            assert (response.status, response.sends) == (200, 2)
            assert client.request("POST", forwarder.url("/protected"), content=b"x").sends == 1
            assert forwarder.connections == round_number
            forwarder.cut()


@both_versions
async def test_connections_killed_under_load_lose_no_idempotent_request(place: Place, http2: bool) -> None:
    with Forwarder(place.stack.settings.ports.https) as forwarder:
        async with AsyncClient(key=place.key, verify=place.ca, http2=http2, timeout_s=TIMEOUT_S) as client:
            await asyncio.gather(*(client.get(forwarder.url("/protected")) for _ in range(50)))
            tasks = [asyncio.create_task(client.get(forwarder.url("/protected"))) for _ in range(50)]
            await asyncio.sleep(0.02)
            forwarder.cut()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            # A connection opened during the cut may be lost before it ever answered: that is told, never hidden.
            assert {each.status for each in results if isinstance(each, Response)} == {200}
            assert all(isinstance(each, ConnectionLost | Response) for each in results)
            again = await asyncio.gather(*(client.get(forwarder.url("/protected")) for _ in range(50)))
            assert {each.status for each in again} == {200}


@both_kinds
def test_wrong_authority_or_name_is_refused(place: Place, kind: str, tmp_path: Path) -> None:
    other = make_ca(tmp_path, "other")
    for verify in (other.path, True):
        with place.client(kind, verify=verify) as client, pytest.raises(CertificateRefused):
            client.get(place.guarded)
    with Forwarder(place.stack.settings.ports.https, "127.0.0.2") as forwarder, place.client(kind) as client:
        url = forwarder.url("/protected")
        with pytest.raises(CertificateRefused):
            client.get(url)
        with place.client(kind, verify=False) as careless:
            assert careless.get(url).status == 200


@both_kinds
def test_client_insists_on_its_binding(place: Place, kind: str) -> None:
    unbound = place.origin + "/unbound"
    with place.client(kind) as client, pytest.raises(ChallengeUnusable):
        client.get(unbound)
    with place.client(kind, binding="none") as client:
        first, second = client.get(unbound), client.get(unbound)
        assert (first.status, second.status) == (200, 200)
        with pytest.raises(ChallengeUnusable):
            client.get(place.guarded)


@both_kinds
def test_wrong_clock_is_corrected_from_date(place: Place, kind: str) -> None:
    with place.client(kind, clock_s=lambda: time.time() - 86_400) as client:
        first = client.get(place.guarded)
        assert (first.status, first.sends) == (200, 3)
        assert client.get(place.guarded).sends == 1


@both_kinds
def test_refusals_come_to_the_caller(place: Place, kind: str) -> None:
    with place.client(kind) as client:
        client.get(place.guarded)
        large = client.request("POST", place.guarded, content=b"x" * 70_000)
        assert (large.status, large.reason) == (413, "body_too_large")
        nowhere = client.get(place.origin + "/nowhere")
        assert (nowhere.status, nowhere.reason) == (403, "no_route")
        assert client.get(place.origin + "/protected/../x").status == 400
        assert client.get(place.guarded).status == 200
    with place.client(kind, key=generate("ed25519")) as stranger:
        refused = stranger.get(place.guarded)
        assert (refused.status, refused.reason, refused.sends) == (401, "unknown_key", 3)


def test_newly_registered_key_of_the_other_algorithm_gets_in(place: Place, tmp_path: Path) -> None:
    key = generate("ecdsa-p256-sha256")
    jwk = tmp_path / "public.json"
    jwk.write_text(json.dumps(public_jwk(key)))
    command = ["clients", "add", "--config", place.config, "--subject", "newcomer", "--jwk", str(jwk)]
    subprocess.run([sys.executable, "-m", "extproc", *command], check=True, timeout=30, capture_output=True)
    deadline = time.monotonic() + REGISTRATION_TAKES_S
    with place.client(key=key) as client:
        while (response := client.get(place.guarded)).status != 200:
            assert response.reason == "unknown_key"
            assert time.monotonic() < deadline
        assert ["x-signet-subject", "newcomer"] in place.app_request(response.receipt_id)["headers"]


def test_threads_share_one_client(place: Place) -> None:
    with Client(key=place.key, verify=place.ca, timeout_s=TIMEOUT_S) as client:

        async def run() -> list[Response]:
            return await asyncio.gather(*(asyncio.to_thread(client.get, place.guarded) for _ in range(50)))

        assert {each.status for each in asyncio.run(run())} == {200}


def test_command_and_demonstration_get_through(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["request", "--key", place.key_path, "--cacert", place.ca, place.guarded, "-d", "hi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["receipt_id"]
    stack = str(place.stack.files.state)
    assert pch_client_demo.main(["--stack", stack, "--url", place.guarded, "--binding", "tls-exporter"]) == 0
    out = capsys.readouterr().out
    for told in ("← 401", '| "pch-channel-binding":', "← 200", "receipt:"):
        assert told in out
