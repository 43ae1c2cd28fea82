"""docs/guides/your-own-envoy.md, followed as written on an Envoy configuration from Envoy's own documentation."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pch.client import Client, Upload
from pch.httpsig.content_digest import content_digest
from tests.e2e.attack_stage import wait_until
from tests.support.outcomes import outcomes_of
from tools.stack import Stack
from tools.stack_config import REPOSITORY, Ports, StackSettings
from tools.stack_envoy import ENVOY_YAML, TLS_MODULE, endpoints, envoy_binary, http_connection_manager

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

FOREIGN = Path(__file__).with_name("foreign_envoy.yaml")
GUIDE = REPOSITORY / "docs" / "guides" / "your-own-envoy.md"
STEP = re.compile(r"^<!-- apply: (\w+) (.+?) -->\n(?:```yaml\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)

Document = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """What the guide calls the parts of a configuration with one listener and one route of its owner."""

    document: Document

    @property
    def listener(self) -> Document:
        found: Document = self.document["static_resources"]["listeners"][0]
        return found

    @property
    def chain(self) -> Document:
        found: Document = self.listener["filter_chains"][0]
        return found

    @property
    def manager(self) -> Document:
        return http_connection_manager(self.listener)

    @property
    def clusters(self) -> list[Document]:
        found: list[Document] = self.document["static_resources"]["clusters"]
        return found

    @property
    def routes(self) -> list[Document]:
        found: list[Document] = self.manager["route_config"]["virtual_hosts"][0]["routes"]
        return found

    @property
    def route_entry(self) -> Document:
        """The owner's own route, which is the last."""
        return self.routes[-1]

    @property
    def route(self) -> Document:
        found: Document = self.route_entry["route"]
        return found

    def at(self, path: str) -> tuple[Document, str]:
        name, _, key = path.partition(".")
        return getattr(self, name), key


def steps(guide: str) -> list[tuple[str, str, Any]]:
    """Give what the guide has one do: verb, place, and the block or None."""
    return [(verb, place, yaml.safe_load(block) if block else None) for verb, place, block in STEP.findall(guide)]


def apply_guide(document: Document) -> Document:
    """Follow the guide on `document`."""
    result = copy.deepcopy(document)
    places = Places(result)
    ours = Places(yaml.safe_load(ENVOY_YAML.read_text()))
    for verb, place, block in steps(GUIDE.read_text()):
        target, *names = place.split()
        owner, key = places.at(target)
        if verb == "replace":
            owner[key] = block
        elif verb == "prepend":
            owner[key] = [*block, *owner.get(key, [])]
        elif verb == "merge":
            (owner.setdefault(key, {}) if key else owner).update(block)
        elif verb == "delete":
            for name in names:
                owner.pop(name, None)
        elif verb == "copy" and key:
            owner[key] = copy.deepcopy(ours.at(target)[0][key])
        elif verb == "copy":
            mine: list[Document] = getattr(ours, target)
            named = {each["name"]: copy.deepcopy(each) for each in mine if "name" in each}
            getattr(places, target)[:0] = [named[name] for name in names]
        else:
            raise AssertionError(f"the guide says {verb} {place}, which this test does not know")
    return result


def with_local_addresses(document: Document, stack: Stack, port: int, *, guided: bool) -> Document:
    """Put this machine's addresses in: the only thing that the guide leaves to its reader."""
    result = copy.deepcopy(document)
    places = Places(result)
    places.listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    clusters = {cluster["name"]: cluster for cluster in places.clusters}
    app = clusters["service_envoyproxy_io"]
    app.pop("transport_socket")
    endpoints(app)[0]["endpoint"]["address"]["socket_address"] = {
        "address": "127.0.0.1",
        "port_value": stack.settings.ports.app,
    }
    if guided:
        places.manager["forward_proto_config"]["https_destination_ports"] = [port]
        for worker, endpoint in enumerate(endpoints(clusters["signet_filter"])):
            endpoint["endpoint"]["address"]["pipe"]["path"] = str(stack.files.socket(worker))
    return result


@contextlib.contextmanager
def envoy(document: Document, stack: Stack, port: int, folder: Path) -> Iterator[None]:
    config = folder / "foreign.json"
    config.write_text(json.dumps(document))
    for name in ("server.pem", "server.key"):
        shutil.copy(stack.files.tls / name, folder / name)
    environ = {
        "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(TLS_MODULE.parent),
        "SIGNET_EDGE_INSTANCE": str(uuid.uuid4()),
    }
    command = [str(envoy_binary()), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 15
            while answer(stack, port, "/public").status == 0:
                assert process.poll() is None, (folder / "envoy.log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(10)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Any = None
    body: bytes = b""


def answer(stack: Stack, port: int, path: str, **headers: str) -> Reply:
    context = ssl.create_default_context(cafile=stack.files.tls / "ca.pem")
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as reply:
            return Reply(reply.status, reply.headers, reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())
    except OSError:
        return Reply(0)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(StackSettings(tmp_path_factory.mktemp("f"), Ports.free())) as running:
        yield running


@pytest.fixture(scope="module")
def guided(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The foreign Envoy after the guide; its port."""
    port = Ports.free().https
    document = with_local_addresses(apply_guide(yaml.safe_load(FOREIGN.read_text())), stack, port, guided=True)
    with envoy(document, stack, port, tmp_path_factory.mktemp("f")):
        yield port


def reached(stack: Stack, mark: str) -> list[Document]:
    return [each for each in stack.app_requests() if mark in each["target"]]


def test_before_the_guide_anyone_reaches_the_app(stack: Stack, tmp_path: Path) -> None:
    port = Ports.free().https
    document = with_local_addresses(yaml.safe_load(FOREIGN.read_text()), stack, port, guided=False)
    with envoy(document, stack, port, tmp_path):
        assert answer(stack, port, "/protected/before").status == 200
    assert len(reached(stack, "before")) == 1


def test_unsigned_request_gets_a_challenge_and_never_reaches_the_app(stack: Stack, guided: int) -> None:
    reply = answer(stack, guided, "/protected/unsigned", **{"x-signet-subject": "demo"})
    assert reply.status == 401
    assert reply.headers["PCH-Reason"] == "missing_signature"
    assert reply.headers["WWW-Authenticate"].startswith("PCH ")
    assert 'binding="tls-exporter"' in reply.headers["WWW-Authenticate"]
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert not reached(stack, "unsigned")


@pytest.mark.parametrize("http2", [True, False])
def test_signed_request_passes_with_the_authority_it_was_signed_for(stack: Stack, guided: int, http2: bool) -> None:
    key = json.loads(stack.files.demo_key.read_text())
    path = f"/protected/signed-{http2}"
    with Client(key=key, verify=stack.files.tls / "ca.pem", http2=http2) as client:
        assert client.get(f"https://127.0.0.1:{guided}{path}").status == 200
        assert client.post(f"https://127.0.0.1:{guided}{path}", content=b"body").status == 200
    get, post = reached(stack, path)
    assert get["authority"] == post["authority"] == f"127.0.0.1:{guided}"
    assert dict(get["headers"])["x-signet-subject"] == "demo"
    assert post["body_bytes"] == 4


@pytest.mark.parametrize("http2", [True, False])
@pytest.mark.parametrize("route", ["/uploads", "/protected"])
def test_large_body_is_seen_through_and_an_altered_one_is_not(
    stack: Stack, guided: int, http2: bool, route: str
) -> None:
    key = json.loads(stack.files.demo_key.read_text())
    path, body = f"{route}/large-{http2}", os.urandom(500_000)
    altered = Upload(lambda: [body[:-1] + b"!"], length_bytes=len(body), digest=content_digest(body))
    with Client(key=key, verify=stack.files.tls / "ca.pem", http2=http2) as client:
        good, bad = (client.post(f"https://127.0.0.1:{guided}{path}", content=each) for each in (body, altered))
    if route == "/protected":
        assert (good.status, good.reason) == (413, "body_too_large")
        assert not reached(stack, path)
    else:
        assert (good.status, bad.status, bad.reason) == (200, 400, "bad_content_digest")
        (seen,) = reached(stack, path)
        assert seen["body_bytes"] == int(dict(seen["headers"])["content-length"]) == len(body)


def test_filter_hears_how_a_request_ended(stack: Stack, guided: int) -> None:
    key = json.loads(stack.files.demo_key.read_text())
    with Client(key=key, verify=stack.files.tls / "ca.pem") as client:
        answered = client.get(f"https://127.0.0.1:{guided}/protected/ended?status=404")
    decision = answered.headers["pch-receipt"].strip('"')
    outcome = wait_until(lambda: outcomes_of(stack.settings.var, decision), "the outcome's receipt")[0]
    assert outcome["outcome"]["status"] == answered.status == 404


def test_proof_of_a_stranger_is_refused(stack: Stack, guided: int) -> None:
    from pch.keys import generate

    with Client(key=generate("ed25519"), verify=stack.files.tls / "ca.pem") as client:
        assert client.get(f"https://127.0.0.1:{guided}/protected/stranger").status == 401
    assert not reached(stack, "stranger")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/a/../protected/x", 400, "ambiguous_path"),
        ("/a%2fb", 400, "ambiguous_path"),
        ("/nowhere", 403, "no_route"),
    ],
)
def test_other_refusals_hold_too(stack: Stack, guided: int, path: str, status: int, reason: str) -> None:
    reply = answer(stack, guided, path)
    assert (reply.status, reply.headers["PCH-Reason"]) == (status, reason)
    assert json.loads(reply.body)["reason"] == reason
    assert not reached(stack, path)


def test_open_route_needs_no_proof(stack: Stack, guided: int) -> None:
    assert answer(stack, guided, "/public/open").status == 200
    assert len(reached(stack, "/public/open")) == 1


def test_without_the_filter_nothing_passes(stack: Stack, guided: int) -> None:
    stack.stop_part("filter")
    try:
        for path in ("/protected/dead", "/public/dead"):
            reply = answer(stack, guided, path)
            assert (reply.status, reply.headers["PCH-Reason"]) == (503, "internal")
    finally:
        stack.start_part("filter")
    assert not reached(stack, "dead")


def test_guide_says_what_the_committed_configuration_says() -> None:
    ours = Places(yaml.safe_load(ENVOY_YAML.read_text()))
    filters = {each["name"]: each for each in ours.manager["http_filters"]}
    blocks = {(verb, place): block for verb, place, block in steps(GUIDE.read_text())}
    for each in blocks["prepend", "manager.http_filters"]:
        assert each == filters[each["name"]]
    for each in blocks["prepend", "manager.access_log"]:
        assert each in ours.manager["access_log"]
    for key, value in blocks["merge", "manager"].items():
        if key != "forward_proto_config":
            assert value == ours.manager[key], key
    assert blocks["replace", "chain.transport_socket"] == ours.chain["transport_socket"]
    assert blocks["merge", "route_entry"].items() <= ours.route_entry.items()
    assert blocks["merge", "route.retry_policy"].items() <= ours.route["retry_policy"].items()
    for key, value in blocks["merge", "listener"].items():
        assert value == ours.listener[key]
    assert len(steps(GUIDE.read_text())) == GUIDE.read_text().count("<!-- apply:") == len(blocks), "none is overlooked"
