"""The conformance cases against our own verifier and client (docs/reference/conformance.md)."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from extproc.breaker import Phase
from extproc.decision import ALLOWING, Answer
from extproc.request import EdgeRequest
from extproc.response import check_response
from pch.client.challenge import ChallengeText, parse_pch_challenge, parse_www_authenticate
from pch.client.channel import Channel, OriginClock
from pch.client.errors import ChallengeSyntaxError
from pch.client.exchange import Answer as ClientAnswer
from pch.client.exchange import Exchange, ExchangeSettings
from pch.client.relaxing import sign_with_evidence
from pch.client.request import make_request
from pch.client.response import Headers
from pch.client.signing import sign_request
from pch.errors import BadSignature
from pch.httpsig.errors import HttpSigError
from pch.httpsig.message import RequestMessage
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_field import parse_signature
from pch.httpsig.signature_input import parse_signature_input
from pch.keys import private_key_from_jwk, public_key_from_jwk, thumbprint
from pch.reasons import ANSWERS
from pch.relaxed import parse_envelope
from tests.conformance.answer_checks import check_refusal, check_upstream
from tests.conformance.make_cases import CLIENT, VERIFIER, documents
from tests.support.filter_parts import FilterParts, KeyPair, SetClock, edge_request

CASES = Path(__file__).with_name("cases")
WORLD: dict[str, Any] = json.loads((CASES / "world.json").read_text())
KEYS: list[dict[str, Any]] = json.loads((CASES / "keys.json").read_text())
PRIVATE = {key["name"]: private_key_from_jwk(key["private_jwk"]) for key in KEYS}
PUBLIC = {key["key_id"]: public_key_from_jwk(key["jwk"]) for key in KEYS}
BREAKER = "[plan.breaker]\nmin_samples = 5\nmax_gain = 0.5\nfloor_share = 1.0\n"
"""A few failures open it, and what has a good proof goes on all the same."""
PSEUDO = (":method", ":path", ":authority", ":scheme")


def cases(*files: str) -> list[Any]:
    found = [case for file in files for case in json.loads((CASES / f"{file}.json").read_text())]
    return [pytest.param(case, id=case["id"]) for case in found]


def config_text() -> str:
    """Write the world's routes as the filter's TOML: JSON values are TOML values here."""
    routes = "".join(
        "[[route]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in route.items())
        for route in WORLD["routes"]
    )
    head = {"realm": WORLD["realm"], "max_age_s": WORLD["max_age_s"], "clock_skew_s": WORLD["clock_skew_s"]}
    filter_section = "".join(f"{name} = {json.dumps(value)}\n" for name, value in head.items())
    return f'[filter]\nworkers = 1\n{filter_section}[nonce_store]\nkind = "memory"\n{BREAKER}' + routes


def verifier(folder: Path) -> FilterParts:
    """Set a verifier up as world.json says."""
    epochs = [
        {
            "epoch": key["epoch"],
            "key_b64": base64.b64encode(bytes.fromhex(key["key_hex"])).decode(),
            "created_ms": WORLD["nonces_since_ms"],
            "retired_ms": key["retired_ms"],
        }
        for key in WORLD["sealing_keys"]
    ]
    (folder / "sealing.json").write_text(json.dumps({"epochs": epochs}))
    (folder / "sealing.json").chmod(0o600)
    keys = {
        key["name"]: KeyPair(
            key["subject"],
            PRIVATE[key["name"]],
            key["jwk"],
            key["status"],
            key["not_before"],
            key["not_after"],
            key["partner"],
        )
        for key in KEYS
        if key["registered"]
    }
    return FilterParts(folder, keys, config_text(), SetClock(WORLD["now_ms"]))


def message_of(request: dict[str, Any]) -> RequestMessage:
    headers = tuple((name, value.encode("latin-1")) for name, value in request["headers"])
    return RequestMessage(request["method"], request["scheme"], request["authority"], request["target"], headers)


def edge_request_of(step: dict[str, Any]) -> EdgeRequest:
    message, edge = message_of(step["request"]), step["edge"]
    pseudo = zip(PSEUDO, (message.method, message.target, message.authority, message.scheme), strict=True)
    lines = [*((name, value.encode("latin-1")) for name, value in pseudo), *message.headers]
    return edge_request(
        message,
        stream_id=edge["stream"],
        edge_instance=edge["instance"],
        binding=None if edge["binding_hex"] is None else bytes.fromhex(edge["binding_hex"]),
        body=base64.b64decode(step["request"]["body_base64"]),
        header_bytes=sum(len(name) + len(value) + 4 for name, value in lines),
        is_grpc=any(value.startswith(b"application/grpc") for name, value in lines if name == "content-type"),
        deferrable=True,
    )


def trip(parts: FilterParts, route: str) -> None:
    """Let the app behind `route` fail until the breaker opens."""
    for _ in range(4):
        for _ in range(10):
            parts.stress.ended(route, 503, 10, (), probe_epoch=None)
        parts.clock.now_ms += 100
        parts.stress.tick()
    assert parts.stress.phase(route) is not Phase.CLOSED


def check_answer(expect: dict[str, Any], answer: Answer) -> None:
    allowed = answer.reason in ALLOWING
    kept = answer.reason == "evidence_kept"
    said = {"decision": "allow" if allowed else "keep" if kept else "deny", "reason": str(answer.reason)}
    denied = check_response(answer).denied_response
    headers = {each.header.key for each in denied.headers}
    said |= {"status": None if allowed else denied.status.code, "challenge": "www-authenticate" in headers}
    if answer.reason == "allowed":
        assert answer.verified is not None
        said |= {
            "subject": answer.verified.key.subject,
            "alg": answer.verified.algorithm,
            "key_ids": [each.key.key_id for each in answer.verified.signatures],
        }
        bases = {each.proof.label: each.signature_base.decode() for each in answer.verified.signatures}
        assert bases == expect["signature_bases"]
    assert said == {name: value for name, value in expect.items() if name not in {"signature_bases", "answer"}}
    if "upstream" in expect.get("answer", {}):
        check_upstream(expect["answer"]["upstream"], answer)
    elif "answer" in expect:
        check_refusal(expect["answer"], denied)


@pytest.mark.parametrize("case", cases(*VERIFIER))
async def test_our_verifier_answers_as_the_case_says(case: dict[str, Any], tmp_path: Path) -> None:
    parts = verifier(tmp_path)
    await parts.start()
    try:
        for step in case["steps"]:
            for route in step.get("not_closed", ()):
                trip(parts, route)
            parts.clock.now_ms = step["now_ms"]
            check_answer(step["expect"], await parts.answer(edge_request_of(step)))
    finally:
        await parts.stop()


@pytest.mark.parametrize("case", cases(*VERIFIER))
def test_every_base_of_a_case_is_what_rfc_9421_makes_of_its_request(case: dict[str, Any]) -> None:
    """And where the case is accepted, its signatures hold over just these bases, by the keys of keys.json."""
    sent_ahead: list[bytes] = []
    for step in case["steps"]:
        message, expect = message_of(step["request"]), step["expect"]
        try:
            inputs = parse_signature_input(message.lines("signature-input"))
            found = {
                label: signature_base(message, params).decode()
                for label, params in inputs.items()
                if params.tag in {"pch", "pch-pq"}
            }
        except HttpSigError:
            found = {}
        assert found == expect["signature_bases"]
        if expect["reason"] == "evidence_kept":
            sent_ahead.append(base64.b64decode(step["request"]["body_base64"]))
        if expect["reason"] != "allowed":
            continue
        signatures = parse_signature(message.lines("signature")) | enveloped(step["request"], sent_ahead)
        for label, base in found.items():
            PUBLIC[inputs[label].keyid or ""].verify(signatures[label], base.encode())
            with pytest.raises(BadSignature):
                PUBLIC[inputs[label].keyid or ""].verify(signatures[label], base.encode() + b"\n")


def enveloped(request: dict[str, Any], sent_ahead: list[bytes]) -> dict[str, bytes]:
    """Give the signatures in a relaxed request's envelope, before its content or `sent_ahead` of it."""
    (relaxed,) = [value for name, value in request["headers"] if name == "pch-relaxed"] or [""]
    length = int(relaxed.partition("length=")[2] or 0)
    envelopes = [base64.b64decode(request["body_base64"])[:length]] if length else sent_ahead if relaxed else []
    of_all = [json.loads(each)["signatures"] for each in envelopes]
    return {label: base64.b64decode(value) for each in of_all for label, value in each.items()}


@pytest.mark.parametrize("case", [case for case in cases("accepted") if "alg" in case.values[0]["steps"][0]["expect"]])
async def test_an_accepted_case_with_either_signature_spoilt_is_refused(case: dict[str, Any], tmp_path: Path) -> None:
    (step,) = case["steps"]
    parts = verifier(tmp_path)
    await parts.start()
    try:
        good = edge_request_of(step)
        for label in step["expect"]["signature_bases"]:
            headers = [
                (name, spoilt(value, label) if name == "signature" else value) for name, value in good.message.headers
            ]
            message = dataclasses.replace(good.message, headers=tuple(headers))
            answer = await parts.answer(dataclasses.replace(good, message=message))
            assert answer.reason == "bad_signature"
        assert (await parts.answer(good)).reason == "allowed"
    finally:
        await parts.stop()


def spoilt(value: bytes, label: str) -> bytes:
    """Change one character of the signature under `label`."""
    place = value.index(f"{label}=:".encode()) + len(label) + 20
    return value[:place] + (b"A" if value[place : place + 1] != b"A" else b"B") + value[place + 1 :]


@pytest.mark.parametrize("case", cases("client-signs"))
def test_our_client_signs_what_the_case_says(case: dict[str, Any]) -> None:
    given, expect = case["given"], case["expect"]
    signed = sign_request(
        message_of(given["request"]),
        base64.b64decode(given["request"]["body_base64"]),
        signers=tuple(PRIVATE[name] for name in given["keys"]),
        challenge=given["challenge"],
        binding=None if given["binding_hex"] is None else bytes.fromhex(given["binding_hex"]),
        created_s=given["created_s"],
        max_age_s=given["max_age_s"],
        cover=given["cover"],
    )
    added = {name: value.decode() for name, value in signed.added}
    assert {name: added[name] for name in expect["fields"]} == expect["fields"]
    assert set(added) == {*expect["fields"], "signature"}
    assert (
        dict(zip(("pch", "pch-pq"), (base.decode() for base in signed.bases), strict=False))
        == expect["signature_bases"]
    )
    signatures = parse_signature([added["signature"].encode()])
    for name, (label, base) in zip(given["keys"], expect["signature_bases"].items(), strict=True):
        PUBLIC[PRIVATE[name].key_id].verify(signatures[label], base.encode())


def of_kind(file: str, kind: str) -> list[Any]:
    return [case for case in cases(file) if case.values[0]["kind"] == kind]


def given_evidence(given: dict[str, Any]) -> bytes | None:
    return None if given["evidence_base64"] is None else base64.b64decode(given["evidence_base64"])


@pytest.mark.parametrize("case", of_kind("client-relaxes", "sign"))
def test_our_client_signs_evidence_where_the_case_says(case: dict[str, Any]) -> None:
    given, expect = case["given"], case["expect"]
    message, content = message_of(given["request"]), base64.b64decode(given["request"]["body_base64"])
    signed = sign_with_evidence(
        message,
        content,
        evidence=given_evidence(given),
        relax=given["relax"],
        signers=tuple(PRIVATE[name] for name in given["keys"]),
        challenge=given["challenge"],
        binding=None if given["binding_hex"] is None else bytes.fromhex(given["binding_hex"]),
        created_s=given["created_s"],
        max_age_s=given["max_age_s"],
    )
    added = {name: value.decode() for name, value in signed.headers[len(message.headers) :]}
    assert {name: added[name] for name in expect["fields"]} == expect["fields"]
    assert added.keys() - {"signature"} == expect["fields"].keys() - {"signature"}
    assert [base.decode() for base in signed.bases] == list(expect["signature_bases"].values())
    signatures = parse_signature([added["signature"].encode()] if "signature" in added else [])
    assert bool(signed.envelope) is given["relax"]
    if signed.envelope:
        if expect["envelope_base64"] is not None:
            assert signed.envelope == base64.b64decode(expect["envelope_base64"])
        envelope = parse_envelope(signed.envelope)
        assert envelope.evidence == given_evidence(given)
        assert not signatures.keys() & envelope.signatures.keys()
        signatures |= envelope.signatures
    for name, (label, base) in zip(given["keys"], expect["signature_bases"].items(), strict=True):
        PUBLIC[PRIVATE[name].key_id].verify(signatures[label], base.encode())


@pytest.mark.parametrize("case", cases("client-reads"))
def test_our_client_reads_a_challenge_as_the_case_says(case: dict[str, Any]) -> None:
    lines = [line.encode("latin-1") for line in case["lines"]]
    try:
        if case["kind"] == "pch-challenge":
            read: Any = list(parse_pch_challenge(lines))
        else:
            offer = parse_www_authenticate(lines)
            read = None
            if offer is not None:
                lists = {"algorithms": list(offer.algorithms), "hints": list(offer.hints)}
                read = dataclasses.asdict(offer) | lists
    except ChallengeSyntaxError:
        read = "refused"
    assert read == case["expect"]


def client_answer(given: dict[str, Any], number: int) -> ClientAnswer:
    """The verifier's answer of a case, with a challenge of its own if it carries one."""
    lines = [("pch-reason", given["reason"].encode())]
    if given["challenge"]:
        fresh = f"{number:060d}"
        offer = f'PCH realm="r", challenge="{fresh}", algs="ed25519", mode="and", binding="tls-exporter", max-age=60'
        lines += [
            ("www-authenticate", f'{offer}, evidence="{given.get("wanted", "none")}"'.encode()),
            ("pch-challenge", f'"{fresh}"'.encode()),
        ]
    if given.get("pch_relax") is not None:
        lines.append(("pch-relax", given["pch_relax"].encode()))
    return ClientAnswer(given["status"], Headers(tuple(lines)), b"", "2", connection_ended=False)


@pytest.mark.parametrize("case", of_kind("client-relaxes", "answer"))
def test_our_client_relaxes_where_the_case_says(case: dict[str, Any]) -> None:
    given = case["given"]
    channel = Channel(bytes(32), OriginClock())
    channel.challenges.add([ChallengeText("A" * 60)], 0.0)
    settings = ExchangeSettings(
        (PRIVATE["alice"],), "tls-exporter", lambda: 1_790_000_000.0, lambda: 0.0, evidence=given_evidence(given)
    )
    exchange = Exchange(make_request(given["method"], "https://app.example/protected", content=b""), settings)
    assert not sends_relaxed(exchange, channel)
    if given.get("already_again"):
        assert exchange.answered(channel, client_answer(given, 1)) is None
        assert sends_relaxed(exchange, channel)
    response = exchange.answered(channel, client_answer(given, 2))
    assert ("relax" if response is None else "give up") == case["expect"]
    if response is None:
        assert sends_relaxed(exchange, channel)


def sends_relaxed(exchange: Exchange, channel: Channel) -> bool:
    """Let the request go out, behind its envelope if that goes ahead; tell whether it is relaxed."""
    sent = exchange.next_request(channel)
    if sent.is_ahead:
        kept = ClientAnswer(204, Headers(()), b"", "2", connection_ended=False)
        assert exchange.answered(channel, kept) is None
        sent = exchange.next_request(channel)
    assert sent.is_signed
    return any(name == "pch-relaxed" for name, _ in sent.headers)


@pytest.mark.parametrize("case", cases("client-answers"))
def test_our_client_does_with_an_answer_what_the_case_says(case: dict[str, Any]) -> None:
    given = case["given"]
    channel = Channel(bytes(32), OriginClock())
    channel.challenges.add([ChallengeText("A" * 60)], 0.0)
    settings = ExchangeSettings((PRIVATE["alice"],), "tls-exporter", lambda: 1_790_000_000.0, lambda: 0.0)
    exchange = Exchange(make_request(given["method"], "https://app.example/protected", content=b""), settings)
    assert exchange.next_request(channel).is_signed
    if given.get("already_again"):
        assert exchange.answered(channel, client_answer(given, 1)) is None
        assert exchange.next_request(channel).is_signed
    response = exchange.answered(channel, client_answer(given, 2))
    assert ("give up" if response is not None else "sign again") == case["expect"]
    if response is None:
        assert exchange.next_request(channel).is_signed


def test_the_files_are_those_of_the_definitions() -> None:
    """Signatures and challenges aside, which come out anew: same cases, same rules, same verdicts."""
    written = documents()
    assert sorted(path.name for path in CASES.glob("*.json")) == sorted(written)
    for name in written:
        stored = json.loads((CASES / name).read_text())
        if name in {"world.json", "keys.json"}:
            assert stored == written[name]
            continue
        for ours, theirs in zip(written[name], stored, strict=True):
            assert (ours["id"], ours["rule"], ours["title"]) == (theirs["id"], theirs["rule"], theirs["title"])
            reasons = [[step["expect"]["reason"] for step in each.get("steps", [])] for each in (ours, theirs)]
            assert reasons[0] == reasons[1]


def test_there_are_enough_cases_of_every_kind_and_reason() -> None:
    verified = [case for file in VERIFIER for case in json.loads((CASES / f"{file}.json").read_text())]
    asked = [case for file in CLIENT for case in json.loads((CASES / f"{file}.json").read_text())]
    ids = [case["id"] for case in (*verified, *asked)]
    assert len(set(ids)) == len(ids) >= 750
    reasons = {step["expect"]["reason"] for case in verified for step in case["steps"]}
    later = {"quota", "breaker_open", "store_unavailable", "policy_unavailable", "internal"}
    assert reasons >= {str(reason) for reason in ANSWERS} - later
    assert reasons >= {"allowed", "unguarded", "evidence_kept"}
    assert {case["rule"].partition(" ")[0].partition(".")[0] for case in (*verified, *asked)} >= {
        f"§{section}" for section in range(1, 9)
    }


def test_key_ids_are_thumbprints() -> None:
    assert all(key["key_id"] == thumbprint(key["jwk"]) for key in KEYS)
