"""Relaxed evidence on the real stack: Envoy, two filter processes, the log, the app, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pch.client import AsyncClient, Client, Response
from pch.client.cli import main
from pch.client.exchange import Answer as SeenAnswer
from pch.client.exchange import WireRequest
from pch.evidence import canonical_evidence
from pch.reasons import Reason
from pch.relaxed import EVIDENCE_PATH, MAX_ENVELOPE_BYTES, compose_envelope
from receipts.checkpoint import HeadRequest, TreeHead, compose_checkpoint
from receipts.checkpoint_keys import FileCheckpointSigner
from receipts.cli_places import KEYS_NAME
from receipts.merkle import EMPTY_ROOT
from receipts.signed_note import SignedNote
from tests.e2e.attack_case import BOTH, Case, check_refusal, refused
from tests.e2e.attack_request import Request
from tests.e2e.attack_stage import Attacker, Stage, attack, body_of, wait_until
from tests.e2e.attack_wire import Answer, Http1Session
from tests.e2e.client_any import AnyClient
from tests.support.filter_parts import KeyPair
from tests.support.hybrid_parts import hybrid_keys
from tests.support.relaxed_parts import EVIDENCE, Relaxed
from tools.stack import Stack
from tools.stack_certs import write_private
from tools.stack_config import DEMO_ROUTES, Ports, StackSettings

pytestmark = pytest.mark.e2e
both_kinds = pytest.mark.parametrize("kind", ["sync", "async"])
both_versions = pytest.mark.parametrize("http2", [True, False])
both_protocols = pytest.mark.parametrize("protocol", BOTH)

ANY = {"algorithms": ["ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"], "mode": "or"}
TIGHT = {"max_header_bytes": 3000, "max_signature_bytes": 2000, "max_field_bytes": 2000}
ROUTES: tuple[dict[str, Any], ...] = (
    {"name": "tight", "path": "/tight/**", "evidence": "optional", "max_body_bytes": 4_000_000, **ANY, **TIGHT},
    {"name": "streamed", "path": "/streamed/**", "body": "streamed", "max_body_bytes": 64_000_000, **ANY, **TIGHT},
    {"name": "hinted", "path": "/hinted/**", "relax": "always", "evidence": "required", **ANY, **TIGHT},
    {"name": "never", "path": "/never/**", "relax": "off", **ANY, **TIGHT},
    *DEMO_ROUTES,
)
DOCUMENT = {"type": "pch.evidence.v1", "cbom_sha256": "0f" * 32, "claims": {"note": "n" * 3000}}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from relaxing_stage(tmp_path_factory.mktemp("relaxed"))


@pytest.fixture(scope="module")
def redis_relaxing_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from relaxing_stage(tmp_path_factory.mktemp("rr"), nonce_store="redis")


def relaxing_stage(var: Path, **settings: Any) -> Iterator[Stage]:
    first, second = hybrid_keys("alice")
    keys = {"ed": KeyPair.new("alice"), "pq": KeyPair.new("alice", "ml-dsa-65"), "first": first, "second": second}
    write_private(var / "keyring.json", json.dumps([key.entry() for key in keys.values()]).encode())
    with Stack(StackSettings(var, Ports.free(), routes=ROUTES, **settings)) as stack:
        yield Stage(stack, keys)


# -- the client, which relaxes by itself

SIGNERS: dict[str, tuple[str, ...]] = {"ed25519": ("ed",), "ml-dsa-65": ("pq",), "hybrid": ("first", "second")}


class Watched:
    """A client, and how each of its requests went out."""

    def __init__(self, stage: Stage, signers: str, kind: str = "sync", **settings: Any) -> None:
        self.seen: list[tuple[str, int]] = []
        key = tuple(stage.keys[name].signer for name in SIGNERS[signers])
        ca = stage.stack.files.tls / "ca.pem"
        self.client = AnyClient(kind, **({"key": key, "verify": ca, "observer": self._note} | settings))
        self.stage = stage

    def _note(self, wire: WireRequest, answer: SeenAnswer) -> None:
        relaxed = any(name == "pch-relaxed" for name, _ in wire.headers)
        how = "ahead" if wire.is_ahead else "relaxed" if relaxed else "signed" if wire.is_signed else "unsigned"
        self.seen.append((how, answer.status))

    def request(self, method: str, path: str, content: bytes = b"") -> Response:
        self.seen.clear()
        return self.client.request(method, f"https://{self.stage.authority}{path}", content=content)


@pytest.fixture
def watched(stage: Stage) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(*arguments: Any, **settings: Any) -> Watched:
        made.append(Watched(stage, *arguments, **settings))
        return made[-1]

    stage.seen_by_app()
    yield make
    for each in made:
        each.client.close()


def app_saw(stage: Stage, response: Response, method: str, content: bytes) -> None:
    """The app got the original request: its content, the right length, and nothing of the envelope or the proof."""
    (record,) = stage.seen_by_app()
    assert record["method"] == method
    assert (record["body_bytes"], record["body_sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    fields = [(name.lower(), value) for name, value in record["headers"]]
    assert ("x-signet-receipt", response.receipt_id) in fields
    assert not [name for name, _ in fields if name.startswith(("pch-", "signature", "x-signet-body"))]
    lengths = [value for name, value in fields if name == "content-length"]
    assert lengths == ([str(len(content))] if content else [])
    assert not [name for name, _ in fields if name == "transfer-encoding"]


@both_kinds
@both_versions
@pytest.mark.parametrize("signers", SIGNERS)
def test_a_request_over_budget_is_relaxed_with_its_content(
    stage: Stage, watched: Callable[..., Watched], kind: str, http2: bool, signers: str
) -> None:
    client = watched(signers, kind, http2=http2, evidence=DOCUMENT)
    for method, content in (("PUT", b"hello"), ("POST", bytes(range(256)) * 200)):
        response = client.request(method, "/tight/x", content)
        assert (response.status, response.reason) == (200, None), client.seen
        assert client.seen[-2:] == [("signed", 431), ("relaxed", 200)]
        app_saw(stage, response, method, content)
        receipt = stage.receipt(response.receipt_id or "")
        assert receipt["proof"]["evidence_sha256"] is not None
        assert len(receipt["proof"]["signatures"]) == (2 if signers == "hybrid" else 1)
        assert receipt["request"]["content"] == "verified"


@both_kinds
@both_versions
def test_a_request_without_content_sends_its_envelope_ahead(
    stage: Stage, watched: Callable[..., Watched], kind: str, http2: bool
) -> None:
    client = watched("hybrid", kind, http2=http2, evidence=DOCUMENT)
    for method in ("GET", "DELETE", "GET", "HEAD", "GET", "GET", "GET"):
        response = client.request(method, "/tight/y?a=b")
        assert (response.status, response.reason) == (200, None), client.seen
        assert client.seen[-3:] == [("signed", 431), ("ahead", 204), ("relaxed", 200)]
        app_saw(stage, response, method, b"")
        assert stage.receipt(response.receipt_id or "")["proof"]["evidence_sha256"] is not None


@both_kinds
@both_versions
@pytest.mark.parametrize("route", ["tight", "streamed"])
def test_a_body_too_large_for_the_check_is_relaxed_too(
    stage: Stage, watched: Callable[..., Watched], kind: str, http2: bool, route: str
) -> None:
    client = watched("hybrid", kind, http2=http2, evidence=DOCUMENT)
    content = bytes(range(251)) * 12_000
    response = client.request("PUT", f"/{route}/large", content)
    assert (response.status, response.reason) == (200, None), client.seen
    assert client.seen[-1] == ("relaxed", 200)
    app_saw(stage, response, "PUT", content)
    assert stage.receipt(response.receipt_id or "")["request"]["content"] == "pending"


@both_kinds
@both_versions
def test_where_relaxing_is_asked_for_no_request_is_refused_for_its_size(
    stage: Stage, watched: Callable[..., Watched], kind: str, http2: bool
) -> None:
    client = watched("hybrid", kind, http2=http2, evidence=DOCUMENT)
    assert client.request("GET", "/hinted/a").status == 200
    assert client.seen == [("unsigned", 401), ("ahead", 204), ("relaxed", 200)]
    stage.seen_by_app()
    assert client.request("GET", "/hinted/a").status == 200
    assert client.seen == [("ahead", 204), ("relaxed", 200)]
    stage.seen_by_app()
    response = client.request("PUT", "/hinted/a", b"content")
    assert client.seen == [("relaxed", 200)]
    app_saw(stage, response, "PUT", b"content")


@both_versions
async def test_many_at_once_share_the_places_of_their_envelopes(stage: Stage, http2: bool) -> None:
    signers = tuple(stage.keys[name].signer for name in SIGNERS["hybrid"])
    ca = stage.stack.files.tls / "ca.pem"
    url = f"https://{stage.authority}/hinted/many"
    async with AsyncClient(
        key=signers, verify=ca, http2=http2, evidence=DOCUMENT, max_connections_per_origin=2, timeout_s=30
    ) as client:
        answers = await asyncio.gather(*(client.get(url) for _ in range(40)))
        answers += await asyncio.gather(*(client.put(url, content=b"content") for _ in range(20)))
    assert {(answer.status, answer.reason) for answer in answers} == {(200, None)}
    assert len({answer.receipt_id for answer in answers}) == 60
    stage.seen_by_app()


@pytest.mark.parametrize(("relax", "path"), [("never", "/tight/x"), ("auto", "/never/x"), ("always", "/never/x")])
def test_who_may_not_relax_is_told_so(watched: Callable[..., Watched], relax: str, path: str) -> None:
    client = watched("hybrid", evidence=DOCUMENT, relax=relax)
    response = client.request("PUT", path, b"content")
    expected = {"never": (431, "header_budget"), "auto": (431, "header_too_large"), "always": (401, "stale_challenge")}
    assert (response.status, response.reason) == expected[relax]


def test_small_evidence_stays_in_the_header(stage: Stage, watched: Callable[..., Watched]) -> None:
    client = watched("ed25519", evidence={"type": "pch.evidence.v1"})
    response = client.request("PUT", "/tight/x", b"content")
    assert (response.status, client.seen[-1]) == (200, ("signed", 200))
    app_saw(stage, response, "PUT", b"content")


def test_the_command_line_relaxes(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pch.keys import generate, public_jwk

    evidence = tmp_path / "evidence.json"
    evidence.write_text(json.dumps(DOCUMENT, indent=1))
    private = generate("ed25519")
    key = tmp_path / "key.json"
    write_private(key, json.dumps(private).encode())
    keyring = stage.var / "keyring.json"
    entries = json.loads(keyring.read_text())
    entry = {"subject": "cli", "jwk": public_jwk(private), "not_before": None, "not_after": None, "status": "active"}
    write_private(keyring, json.dumps([*entries, entry]).encode())
    command = ["request", "--key", str(key), "--cacert", str(stage.stack.files.tls / "ca.pem"), "--json", "-v"]
    command += ["--evidence", str(evidence), "-X", "PUT", "-d", "hello"]
    url = f"https://{stage.authority}/tight/cli"

    def passes() -> dict[str, Any] | None:
        status = main([*command, url])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found if status == 0 else None

    assert wait_until(passes, "the new key counts")["status"] == 200
    assert main([*command, "--relax", "never", url]) == 1
    refused_ = json.loads(capsys.readouterr().out)
    assert (refused_["status"], refused_["reason"]) == (431, "header_budget")
    evidence.write_text('{"type":"x"}')
    assert main([*command, url]) != 0


# -- attacks


def granted(a: Attacker, session: Any = None) -> str:
    """Get a challenge with the grant as any client does: by a header over budget."""
    request = a.request(a.target("/tight"), headers=(("x-big", b"x" * 2500),))
    answer = (session or a.session).send(request)
    assert (answer.status, answer.reason, answer.get("pch-relax")) == (431, "header_budget", "evidence=body")
    return str(answer.challenges[0])


def relaxed(a: Attacker, key: str | tuple[str, str] = "ed", route: str = "tight", **changes: Any) -> Relaxed:
    names = (key,) if isinstance(key, str) else key
    keys = dict(zip(("pch", "pch-pq"), (a.stage.keys[name] for name in names), strict=False))
    values: dict[str, Any] = {
        "keys": keys,
        "challenge": changes.pop("challenge", None) or granted(a),
        "target": a.target(f"/{route}"),
        "binding": a.session.binding,
        "authority": a.stage.authority,
        "created_s": int(time.time()),
    }
    return Relaxed(**(values | changes))


def wire(made: Relaxed, framing: str = "length") -> Request:
    request, _ = made.build()
    headers = tuple(line for line in request.message.headers if line[0] != "content-length")
    return Request(made.method, made.target, made.authority, headers, body=request.body, framing=framing)


def ahead(a: Attacker, challenge: str, envelope: bytes, **changes: Any) -> Request:
    headers = (("pch-challenge", f'"{challenge}"'.encode()),)
    return Request("POST", EVIDENCE_PATH, a.stage.authority, headers, body=envelope).but(**changes)


def without_content(a: Attacker, **changes: Any) -> Relaxed:
    return relaxed(a, **({"method": "GET", "body": b""} | changes))


@both_protocols
@pytest.mark.parametrize("key", ["ed", "pq", ("first", "second")])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_relaxed_request_passes_as_it_was(stage: Stage, protocol: str, key: Any, framing: str) -> None:
    with attack(stage, protocol) as a:
        made = relaxed(a, key, body=b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = a.send(wire(made, framing))
        assert (answer.status, answer.reason) == (200, None)
        (record,) = stage.seen_by_app()
        assert (record["method"], record["target"], body_of(record)) == ("PUT", made.target, made.body)
        again = a.send(wire(made, framing))
        assert again.reason == "nonce_replay"
        assert stage.seen_by_app() == []


def _swap_envelope(a: Attacker) -> Answer:
    made = relaxed(a)
    request, envelope = made.build()
    other = compose_envelope(bytes(len(EVIDENCE)), {})
    assert len(other) == len(envelope)
    return a.send(wire(made).but(body=other + request.body[len(envelope) :]))


def _ahead_of_another_connection(a: Attacker) -> Answer:
    """The envelope is sent on another connection, which gets it refused; then the request has none."""
    made = without_content(a)
    _, envelope = made.build()
    other = a.connect()
    taken = other.send(ahead(a, made.challenge, envelope))
    assert (taken.status, taken.reason) == (403, "evidence_rejected")
    return a.send(wire(made))


def _on_another_connection(a: Attacker) -> Answer:
    """Envelope and proof belong to one connection, the request comes on another one."""
    made = without_content(a)
    _, envelope = made.build()
    assert a.send(ahead(a, made.challenge, envelope)).status == 204
    return a.connect().send(wire(made))


def _envelope_of_another_challenge(a: Attacker) -> Answer:
    first, second = without_content(a), without_content(a)
    assert a.send(ahead(a, first.challenge, first.build()[1])).status == 204
    return a.send(wire(second))


def _envelope_used_before(a: Attacker) -> Answer:
    made = without_content(a)
    assert a.send(ahead(a, made.challenge, made.build()[1])).status == 204
    assert a.send(wire(made)).status == 200
    a.stage.seen_by_app()
    return a.send(wire(dataclasses.replace(made, target=a.target("/tight", "/again"))))


def _other_evidence_ahead(a: Attacker) -> Answer:
    made = without_content(a)
    other = canonical_evidence({"type": "pch.evidence.v1", "claims": {"build": "4712"}})
    assert a.send(ahead(a, made.challenge, compose_envelope(other, {}))).status == 204
    return a.send(wire(made))


def _first_envelope_of_two(a: Attacker) -> Answer:
    """Two envelopes before one content: the second one would be content, and is not what was signed."""
    made = relaxed(a)
    request, envelope = made.build()
    return a.send(wire(made).but(body=envelope + request.body))


LENGTH = len(compose_envelope(EVIDENCE, {}))
ATTACKS = (
    refused("length one short", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(relaxed(a, length=LENGTH - 1)))),
    refused("length one long", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(relaxed(a, length=LENGTH + 1)))),
    refused("length of all", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(relaxed(a, length=LENGTH + 11)))),
    refused("length past it", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(relaxed(a, length=LENGTH + 12)))),
    refused(
        "length far past it", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(relaxed(a, length=MAX_ENVELOPE_BYTES)))
    ),
    refused(
        "length far past a body of unknown length",
        Reason.MALFORMED_SIGNATURE,
        lambda a: a.send(wire(relaxed(a, length=MAX_ENVELOPE_BYTES), "chunked")),
    ),
    refused(
        "length past every envelope", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(relaxed(a, length=131_073)))
    ),
    refused("envelope exchanged", Reason.EVIDENCE_REJECTED, _swap_envelope),
    refused("two envelopes", Reason.BAD_CONTENT_DIGEST, _first_envelope_of_two),
    refused("envelope missing", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(r := relaxed(a)).but(body=r.body))),
    refused(
        "content missing",
        Reason.MALFORMED_SIGNATURE,
        lambda a: a.send(wire(r := relaxed(a)).but(body=r.build()[1])),
    ),
    refused(
        "content changed",
        Reason.BAD_CONTENT_DIGEST,
        lambda a: a.send(wire(r := relaxed(a)).but(body=r.build()[0].body[:-1] + b"X")),
    ),
    refused(
        "content added",
        Reason.BAD_CONTENT_DIGEST,
        lambda a: a.send(wire(r := relaxed(a)).but(body=r.build()[0].body + b"X")),
    ),
    refused("no grant", Reason.STALE_CHALLENGE, lambda a: a.send(wire(relaxed(a, challenge=a.challenge())))),
    refused("a route that never relaxes", Reason.STALE_CHALLENGE, lambda a: a.send(wire(relaxed(a, route="never")))),
    refused(
        "ML-DSA in the header", Reason.HEADER_TOO_LARGE, lambda a: a.send(wire(relaxed(a, "pq", in_header=("pch",))))
    ),
    refused("Ed25519 in both places", Reason.MALFORMED_SIGNATURE, lambda a: a.send(wire(relaxed(a, both=("pch",))))),
    refused("nothing was sent ahead", Reason.STALE_CHALLENGE, lambda a: a.send(wire(without_content(a)))),
    refused("sent ahead on another connection", Reason.STALE_CHALLENGE, _ahead_of_another_connection),
    refused("used on another connection", Reason.BINDING_MISMATCH, _on_another_connection),
    refused("sent ahead under another challenge", Reason.STALE_CHALLENGE, _envelope_of_another_challenge),
    refused("envelope used before", Reason.NONCE_REPLAY, _envelope_used_before),
    refused("other evidence sent ahead", Reason.EVIDENCE_REJECTED, _other_evidence_ahead),
    refused(
        "content where none was signed for",
        Reason.MALFORMED_SIGNATURE,
        lambda a: a.send(wire(without_content(a)).but(body=b"x")),
    ),
)


@pytest.mark.parametrize(
    ("case", "protocol"),
    [pytest.param(case, protocol, id=f"{case.name}-{protocol}") for case in ATTACKS for protocol in case.protocols],
)
def test_attack_is_refused_and_never_reaches_the_app(stage: Stage, case: Case, protocol: str) -> None:
    with attack(stage, protocol) as a:
        check_refusal(stage, a, case, case.send(a), method="PUT")


@both_protocols
def test_over_budget_all_the_same_is_final(stage: Stage, protocol: str) -> None:
    with attack(stage, protocol) as a:
        made = relaxed(a, extra=(("x-big", b"x" * 2500),))
        answer = a.send(wire(made))
        assert (answer.status, answer.reason) == (431, "header_too_large")
        assert answer.get("pch-relax") is None
        assert stage.seen_by_app() == []


@both_protocols
def test_envelopes_are_bounded_and_never_reach_the_app(stage: Stage, protocol: str) -> None:
    with attack(stage, protocol) as a:
        largest = compose_envelope(EVIDENCE, {}).ljust(MAX_ENVELOPE_BYTES)
        for _ in range(4):
            assert a.send(ahead(a, granted(a), largest)).status == 204
        full = a.send(ahead(a, granted(a), largest))
        assert (full.status, full.reason) == (429, "quota")
        fresh = a.connect()
        challenge = granted(a, fresh)
        longer = fresh.send(ahead(a, challenge, largest + b" "))
        assert (longer.status, longer.reason) in {(413, "body_too_large"), (0, None)}
        unnamed = a.connect().send(ahead(a, challenge, largest, headers=()))
        assert (unnamed.status, unnamed.reason) == (403, "evidence_rejected")
        assert stage.seen_by_app() == []


def test_the_next_request_of_a_connection_is_read_where_it_begins(stage: Stage) -> None:
    """HTTP/1.1 has no frames: had the length upstream been wrong, the app would read content as a request."""
    with attack(stage, "http1") as a:
        assert isinstance(a.session, Http1Session)
        inner = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        for body in (inner, b"0\r\n\r\n" + inner, b"\r\n"):
            made = relaxed(a, body=body)
            plain = a.request("/public/after")
            a.session.wire.send(wire(made).http1() + plain.http1())
            assert [a.session.read("PUT").status, a.session.read().status] == [200, 200]
            first, second = stage.seen_by_app()
            assert (body_of(first), first["method"]) == (body, "PUT")
            assert (second["target"], second["method"]) == ("/public/after", "GET")


@both_protocols
def test_workers_that_share_redis_find_each_others_envelopes(redis_relaxing_stage: Stage, protocol: str) -> None:
    with attack(redis_relaxing_stage, protocol) as a:
        for _ in range(8):
            made = without_content(a)
            assert a.send(ahead(a, made.challenge, made.build()[1])).status == 204
            assert (a.send(wire(made)).status, a.send(wire(made)).reason) == (200, "nonce_replay")


# -- checkpoints


def checkpoint_of(stage: Stage) -> str:
    def fetch() -> str | None:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{stage.stack.settings.ports.admin}/v1/log/checkpoint", timeout=10
        ) as answer:
            text = answer.read().decode()
        return text if int(text.split("\n")[1]) > 0 else None

    return str(wait_until(fetch, "the log has a head"))


def show(stage: Stage, note: str) -> Response:
    evidence = {"type": "pch.evidence.v1", "checkpoint": note}
    with Client(key=stage.keys["ed"].signer, verify=stage.stack.files.tls / "ca.pem", evidence=evidence) as client:
        return client.get(f"https://{stage.authority}/tight/checkpoint")


def test_a_checkpoint_is_held_against_the_log(stage: Stage) -> None:
    with attack(stage, "http2") as a:
        a.challenge()
    note = checkpoint_of(stage)
    assert (shown := show(stage, note)).status == 200, shown.reason
    assert show(stage, "nonsense").reason == "evidence_rejected"
    log = next(stage.var.rglob(KEYS_NAME)).parent
    signer = FileCheckpointSigner(log / KEYS_NAME, lambda: int(time.time()))

    def forged(size: int) -> str:
        head = TreeHead(signer.origin, size, bytes(32))
        request = HeadRequest(TreeHead(signer.origin, 0, EMPTY_ROOT), head, (), 0)
        return SignedNote(compose_checkpoint(head), signer.sign(request)).data.decode()

    larger = show(stage, forged(10**9))
    assert (larger.status, larger.reason) == (503, "store_unavailable")
    before = stage.admin_text("/metrics").decode()
    fork = show(stage, forged(1))
    assert (fork.status, fork.reason) == (403, "evidence_rejected")
    events = [each["receipt"] for each in stage.admin("/receipts/latest?limit=20")["receipts"]]
    (event,) = [each for each in events if each["kind"] == "log_event" and each["event"]["name"] == "log_fork"]
    assert event["event"]["facts"]["size"] == 1
    assert _forks(stage.admin_text("/metrics").decode()) == _forks(before) + 1
    assert "LOG FORK" in (stage.stack.files.logs / "filter.log").read_text()


def _forks(metrics: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith("signet_log_forks_total")]
    return float(lines[0].split()[-1]) if lines else 0.0
