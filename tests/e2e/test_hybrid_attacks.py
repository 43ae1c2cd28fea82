"""Hybrid proofs on the real stack: Envoy, two filter processes, the app. Every mode, and every way around one half."""

# ruff: noqa: E501  (a row of the table is a line)

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pch.client import Client
from pch.client.cli import main as pch
from pch.httpsig.message import RequestMessage
from pch.reasons import Reason
from tests.e2e.attack_case import Case, check_refusal, refused
from tests.e2e.attack_request import Request
from tests.e2e.attack_stage import Attacker, Stage, attack, wait_until
from tests.e2e.hybrid_request import signed
from tests.support.client_token import client_token, key_uri
from tests.support.filter_parts import KeyPair
from tests.support.hybrid_parts import Half, half_of, halves, hybrid_keys, with_halves
from tools.stack import Stack
from tools.stack_certs import write_private
from tools.stack_config import DEMO_ROUTES, Ports, StackSettings

pytestmark = pytest.mark.e2e

ED, P256, PQ = "ed25519", "ecdsa-p256-sha256", "ml-dsa-65"
HYBRID = f"{ED}+{PQ}"
ROUTES = (
    {"name": "hybrid", "path": "/hybrid/**", "algorithms": [f"{ED}+{PQ}", f"{P256}+{PQ}"]},
    {"name": "mixed", "path": "/mixed/**", "algorithms": [ED, "ml-dsa-44", PQ, "ml-dsa-87", f"{ED}+{PQ}"]},
    {"name": "either", "path": "/either/**", "mode": "or", "algorithms": [f"{ED}+{PQ}", ED, PQ]},
    {"name": "pq", "path": "/pq/**", "mode": "pq_only", "algorithms": [PQ, f"{ED}+{PQ}"]},
    *DEMO_ROUTES,
)
Pair = tuple[str, str]
AB: Pair = ("a", "a-pq")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    var: Path = tmp_path_factory.mktemp("hybrid")
    keys = {name: KeyPair.new("alice", name) for name in ("ml-dsa-44", "ml-dsa-87", PQ)}
    keys["plain"] = KeyPair.new("alice")
    for name, subject, classical in (("a", "alice", ED), ("b", "bob", ED), ("p", "alice", P256)):
        keys[name], keys[f"{name}-pq"] = hybrid_keys(subject, classical)
    write_private(var / "keyring.json", json.dumps([key.entry() for key in keys.values()]).encode())
    with Stack(StackSettings(var, Ports.free(), routes=ROUTES)) as stack:
        yield Stage(stack, keys)


def both(a: Attacker, route: str = "hybrid", pair: Pair = AB, **options: object) -> Request:
    return signed(a, halves(a.stage.keys[pair[0]], a.stage.keys[pair[1]]), route, **options)  # type: ignore[arg-type]


def alone(a: Attacker, key: str, route: str, tag: str = "pch") -> Request:
    return signed(a, (Half(a.stage.keys[key], tag),), route)


def members(request: Request) -> dict[str, tuple[bytes, bytes]]:
    message = as_message(request)
    return {label: half_of(message, label) for label in ("pch", "pch-pq")}


def as_message(request: Request) -> RequestMessage:
    return RequestMessage(request.method, "https", request.authority, request.target, request.headers)


def rejoined(request: Request, halves_: dict[str, tuple[bytes, bytes]]) -> Request:
    return request.but(headers=with_halves(as_message(request), halves_).headers)


def without(request: Request, label: str) -> Request:
    return rejoined(request, {each: half for each, half in members(request).items() if each != label})


def swapped(request: Request) -> Request:
    found = members(request)
    tag, other = b'tag="pch"', b'tag="pch-pq"'
    first = (found["pch"][0].replace(tag, other), found["pch"][1])
    second = (found["pch-pq"][0].replace(other, tag), found["pch-pq"][1])
    return rejoined(request, {"pch": first, "pch-pq": second})


def spliced(a: Attacker, stolen: str, *, same_challenge: bool) -> Request:
    """Put a half of another good request of the same client into this one."""
    challenge = a.challenge()
    one = both(a, challenge=challenge)
    other = both(a, challenge=challenge if same_challenge else a.challenge(), rest="?to=mallory")
    return rejoined(one, members(one) | {stolen: members(other)[stolen]})


def broken(request: Request, label: str) -> Request:
    found = members(request)
    member, value = found[label]
    found[label] = (member, value[:30] + (b"A" if value[30:31] != b"A" else b"B") + value[31:])
    return rejoined(request, found)


def differing(a: Attacker, **params: object) -> Request:
    first, second = halves(a.stage.keys["a"], a.stage.keys["a-pq"])
    return signed(a, (first, dataclasses.replace(second, params=params)), "hybrid")


ACCEPTED: tuple[tuple[str, str, Callable[[Attacker], Request]], ...] = (
    ("ed25519 and ml-dsa-65", f"{ED}+{PQ}", lambda a: both(a)),
    ("p256 and ml-dsa-65", f"{P256}+{PQ}", lambda a: both(a, pair=("p", "p-pq"))),
    ("with content", f"{ED}+{PQ}", lambda a: both(a, body=b"hello")),
    ("both where single ones pass", f"{ED}+{PQ}", lambda a: both(a, "mixed")),
    ("ml-dsa-44", "ml-dsa-44", lambda a: alone(a, "ml-dsa-44", "mixed")),
    ("ml-dsa-65", PQ, lambda a: alone(a, PQ, "mixed")),
    ("ml-dsa-87", "ml-dsa-87", lambda a: alone(a, "ml-dsa-87", "mixed")),
    ("both in mode or", f"{ED}+{PQ}", lambda a: both(a, "either")),
    ("classical half in mode or", ED, lambda a: alone(a, "a", "either")),
    ("ML-DSA half in mode or", PQ, lambda a: alone(a, "a-pq", "either")),
    ("ML-DSA half in mode pq_only", PQ, lambda a: alone(a, "a-pq", "pq")),
    ("both in mode pq_only", f"{ED}+{PQ}", lambda a: both(a, "pq")),
)


@pytest.mark.parametrize("protocol", ["http1", "http2"])
@pytest.mark.parametrize(("name", "alg", "build"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_a_hybrid_passes_once_and_its_receipt_tells_both_halves(
    stage: Stage, name: str, alg: str, build: Callable[[Attacker], Request], protocol: str
) -> None:
    with attack(stage, protocol) as attacker:
        request = build(attacker)
        answer = attacker.send(request)
        assert (name, answer.status, answer.reason) == (name, 200, None)
        (record,) = stage.seen_by_app()
        fields = {field.lower(): value for field, value in record["headers"]}
        assert fields["x-signet-alg"] == alg
        assert not {"signature", "signature-input"} & fields.keys()
        assert answer.receipt_id is not None
        signatures = stage.receipt(answer.receipt_id)["proof"]["signatures"]
        assert "+".join(each["alg"] for each in signatures) == alg
        assert fields["x-signet-key-id"] == "+".join(each["key_id"] for each in signatures)
        assert attacker.send(request).reason == "nonce_replay"
        assert stage.seen_by_app() == []


ATTACKS: tuple[Case, ...] = (
    refused("ML-DSA half stripped", Reason.ALG_NOT_ALLOWED, lambda a: a.send(without(both(a), "pch-pq"))),
    refused("classical half stripped", Reason.MISSING_SIGNATURE, lambda a: a.send(without(both(a), "pch"))),
    refused("stripped where single ones pass", Reason.ALG_NOT_ALLOWED, lambda a: a.send(without(both(a, "mixed"), "pch-pq"))),
    refused("a half alone in mode and", Reason.ALG_NOT_ALLOWED, lambda a: a.send(alone(a, "a", "mixed"))),
    refused("the ML-DSA half alone in mode and", Reason.ALG_NOT_ALLOWED, lambda a: a.send(alone(a, "a-pq", "mixed"))),
    refused("classical half alone in pq_only", Reason.ALG_NOT_ALLOWED, lambda a: a.send(alone(a, "a", "pq"))),
    refused("key without partner where a hybrid is asked", Reason.ALG_NOT_ALLOWED, lambda a: a.send(alone(a, "plain", "hybrid"))),
    refused("tags swapped", Reason.ALG_NOT_ALLOWED, lambda a: a.send(swapped(both(a)))),
    refused("half of another request", Reason.MALFORMED_SIGNATURE, lambda a: a.send(spliced(a, "pch-pq", same_challenge=False))),
    refused("ML-DSA half of a twin", Reason.BAD_SIGNATURE, lambda a: a.send(spliced(a, "pch-pq", same_challenge=True))),
    refused("classical half of a twin", Reason.BAD_SIGNATURE, lambda a: a.send(spliced(a, "pch", same_challenge=True))),
    refused("created differs", Reason.MALFORMED_SIGNATURE, lambda a: a.send(differing(a, created=int(time.time()) - 1))),
    refused("nonce differs", Reason.MALFORMED_SIGNATURE, lambda a: a.send(differing(a, nonce=a.challenge()))),
    refused("another subject's ML-DSA key", Reason.ALG_NOT_ALLOWED, lambda a: a.send(both(a, pair=("a", "b-pq")))),
    refused("another hybrid's ML-DSA key", Reason.ALG_NOT_ALLOWED, lambda a: a.send(both(a, pair=("a", "p-pq")))),
    refused("an ML-DSA key without partner", Reason.ALG_NOT_ALLOWED, lambda a: a.send(both(a, pair=("a", PQ)))),
    refused("classical half broken", Reason.BAD_SIGNATURE, lambda a: a.send(broken(both(a), "pch"))),
    refused("ML-DSA half broken, mode or", Reason.BAD_SIGNATURE, lambda a: a.send(broken(both(a, "either"), "pch-pq"))),
    refused("classical half broken, mode pq_only", Reason.BAD_SIGNATURE, lambda a: a.send(broken(both(a, "pq"), "pch"))),
)  # fmt: skip


@pytest.mark.parametrize("protocol", ["http1", "http2"])
@pytest.mark.parametrize("case", ATTACKS, ids=[case.name for case in ATTACKS])
def test_an_attack_on_a_hybrid_is_refused_and_never_reaches_the_app(stage: Stage, case: Case, protocol: str) -> None:
    with attack(stage, protocol) as attacker:
        check_refusal(stage, attacker, case, case.send(attacker))


@pytest.mark.parametrize("http2", [False, True])
def test_our_client_signs_with_both_keys_in_every_mode(stage: Stage, http2: bool) -> None:
    signers = (stage.keys["a"].signer, stage.keys["a-pq"].signer)
    with Client(key=signers, verify=stage.stack.files.tls / "ca.pem", http2=http2) as client:
        for route in ("hybrid", "mixed", "either", "pq"):
            response = client.post(f"https://{stage.authority}/{route}/client", content=b"hello")
            assert (response.status, response.reason) == (200, None)
            assert response.receipt_id is not None
            signatures = stage.receipt(response.receipt_id)["proof"]["signatures"]
            assert [each["alg"] for each in signatures] == [ED, PQ]


def register(stage: Stage, subject: str, public: Path) -> None:
    command = [sys.executable, "-m", "extproc", "clients", "add", "--config", str(stage.stack.files.toml)]
    subprocess.run([*command, "--subject", subject, "--jwk", str(public)], check=True, capture_output=True, timeout=30)


def test_the_command_makes_a_hybrid_registers_it_and_gets_through(
    stage: Stage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`pch keygen`, `clients add` and `pch request --alg`, as an operator and a client run them."""
    private, public = str(tmp_path / "key.jwks"), str(tmp_path / "public.jwks")
    assert pch(["keygen", "--alg", HYBRID, "--out", private, "--public-out", public]) == 0
    register(stage, "carol", Path(public))
    request = [
        "request",
        f"https://{stage.authority}/hybrid/cli",
        "--key",
        private,
        "--cacert",
        str(stage.stack.files.tls / "ca.pem"),
    ]
    capsys.readouterr()

    def passes() -> bool:
        """The workers look at the keyring every half second."""
        return pch([*request, "--alg", HYBRID, "--json"]) == 0

    wait_until(passes, "the workers take the new keys")
    capsys.readouterr()
    assert passes()
    told = json.loads(capsys.readouterr().out)
    signatures = stage.receipt(told["receipt_id"])["proof"]["signatures"]
    assert [each["alg"] for each in signatures] == [ED, PQ]
    assert pch([*request, "--alg", ED]) == 1
    assert pch([*request, "--alg", PQ]) == 1


def test_a_hybrid_whose_classical_half_is_in_a_token_gets_through(
    stage: Stage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """P-256 in a real SoftHSM, ML-DSA-65 in a file."""
    post_quantum, public = str(tmp_path / "pq.jwk"), tmp_path / "public.jwks"
    assert pch(["keygen", "--alg", PQ, "--out", post_quantum]) == 0
    with client_token(tmp_path / "hsm") as token:
        keys = ["--key", key_uri(token, "object=p256"), "--key", post_quantum]
        capsys.readouterr()
        assert pch(["public", *keys]) == 0
        public.write_text(capsys.readouterr().out)
        register(stage, "dave", public)
        request = [
            "request",
            f"https://{stage.authority}/hybrid/token",
            "--cacert",
            str(stage.stack.files.tls / "ca.pem"),
        ]
        wait_until(lambda: pch([*request, *keys, "--json"]) == 0, "the workers take the new keys")
        capsys.readouterr()
        assert pch([*request, *keys, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    proof = stage.receipt(told["receipt_id"])["proof"]
    assert proof["subject"] == "dave"
    assert [each["alg"] for each in proof["signatures"]] == [P256, PQ]
