"""Requests signed by code that no one here wrote pass our verifier, and theirs take ours (classical algorithms).

PyPI http-message-signatures, npm http-message-signatures and npm http-message-sig. All they need is our binding header
and a challenge for the nonce.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import http_message_signatures
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, InvalidSignature

from pch.client.challenge import parse_challenge_text
from pch.client.signing import sign_request
from pch.httpsig.content_digest import content_digest
from pch.httpsig.message import RequestMessage
from pch.keys import generate, private_key_from_jwk, public_jwk
from pch.proof import binding_header
from pch.reasons import Reason
from tests.support.filter_parts import AUTHORITY, BINDING, FilterParts, KeyPair, SetClock, edge_request

ROOT = Path(__file__).resolve().parents[2]
INSTALL = Path(__file__).with_name("npm") / "install.sh"
INSTALLED = ROOT / "build" / "npm-interop"
NPM = ("http-message-signatures", "http-message-sig")
ALGORITHMS = ("ed25519", "ecdsa-p256-sha256")
TIMEOUT_S = 60
PRIVATE = {name: generate(name) for name in ALGORITHMS}
LINE = ("@method", "@authority", "@path", "@query", "pch-channel-binding")
REQUESTS = {
    "plain": ("GET", "/protected/a", b"", ()),
    "query": ("GET", "/protected/a?x=1&y=%2F&z", b"", ()),
    "content": ("POST", "/protected/a", b'{"hello": "world"}\n', (("content-type", b"application/json"),)),
    "further": ("PUT", "/protected/a%20b", b"x" * 3000, (("x-note", b"a"), ("x-note", b"b, c"))),
}


def test_node_and_npm_are_here() -> None:
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    assert not missing or os.environ.get("CI") != "true", f"{missing} missing: run `make parts`"


@pytest.fixture(scope="module")
def npm() -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is missing: run `make parts` (CI fails without it)")
    subprocess.run([str(INSTALL)], check=True, timeout=240, capture_output=True)
    return INSTALLED


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    """A verifier whose clock is now: their verifiers know no other."""
    keys = {name: KeyPair("alice", private_key_from_jwk(jwk), dict(public_jwk(jwk))) for name, jwk in PRIVATE.items()}
    built = FilterParts(tmp_path, keys, clock=SetClock(int(time.time()) * 1000))
    await built.start()
    yield built
    await built.stop()


def bare(kind: str) -> tuple[RequestMessage, bytes, tuple[str, ...]]:
    """Give a request with our binding header, its content, and what a signature has to cover."""
    method, target, body, headers = REQUESTS[kind]
    fields, covered = [*headers, ("pch-channel-binding", binding_header(BINDING))], list(LINE)
    if body:
        fields.append(("content-digest", content_digest(body).encode()))
        covered.append("content-digest")
    covered += sorted({name for name, _ in headers})
    return RequestMessage(method, "https", AUTHORITY, target, tuple(fields)), body, tuple(covered)


def with_fields(message: RequestMessage, headers: dict[str, str]) -> RequestMessage:
    return dataclasses.replace(
        message, headers=(*message.headers, *((name, value.encode()) for name, value in headers.items()))
    )


async def check_theirs(parts: FilterParts, message: RequestMessage, body: bytes) -> None:
    """A request that they signed passes once, and no change of it does."""
    good = edge_request(message, body=body)
    for change in ({"method": "PATCH"}, {"target": message.target + "x"}):
        spoilt = dataclasses.replace(good, message=dataclasses.replace(message, **change))
        assert (await parts.answer(spoilt)).reason in {Reason.BAD_SIGNATURE, Reason.NO_ROUTE}
    assert (await parts.answer(dataclasses.replace(good, binding=bytes(32)))).reason is Reason.BINDING_MISMATCH
    assert (await parts.answer(good)).reason is Reason.ALLOWED
    replay = await parts.answer(dataclasses.replace(good, stream_id="another"))
    assert replay.reason is Reason.NONCE_REPLAY


def ours(parts: FilterParts, alg: str, kind: str) -> tuple[RequestMessage, tuple[str, ...]]:
    """Give a request as our client signs it, and what has to be covered."""
    method, target, body, headers = REQUESTS[kind]
    signed = sign_request(
        RequestMessage(method, "https", AUTHORITY, target, headers),
        body,
        signers=(parts.keys[alg].signer,),
        challenge=parse_challenge_text(parts.challenge()),
        binding=BINDING,
        created_s=int(time.time()),
        max_age_s=60,
        cover=tuple({name for name, _ in headers}),
    )
    return signed.message, bare(kind)[2]


# PyPI http-message-signatures ------------------------------------------------------------------------------------


class Resolver(HTTPSignatureKeyResolver):  # type: ignore[misc]  # the package has no types
    """Their way to our keys."""

    def __init__(self, parts: FilterParts) -> None:
        self._names = {pair.signer.key_id: name for name, pair in parts.keys.items()}

    def resolve_private_key(self, key_id: str) -> Any:
        secret = PRIVATE[self._names[key_id]]["d"]
        value = base64.urlsafe_b64decode(secret + "=")
        if self._names[key_id] == "ed25519":
            return ed25519.Ed25519PrivateKey.from_private_bytes(value)
        return ec.derive_private_key(int.from_bytes(value), ec.SECP256R1())

    def resolve_public_key(self, key_id: str) -> Any:
        return self.resolve_private_key(key_id).public_key()


THEIR_ALGORITHM = {
    "ed25519": http_message_signatures.algorithms.ED25519,
    "ecdsa-p256-sha256": http_message_signatures.algorithms.ECDSA_P256_SHA256,
}


def as_theirs(message: RequestMessage) -> Any:
    """Their form of a request: lines of one name are joined, as their message class has one value a name."""
    headers: dict[str, str] = {}
    for name, value in message.headers:
        headers[name] = f"{headers[name]}, {value.decode()}" if name in headers else value.decode()
    return SimpleNamespace(method=message.method, url=f"https://{message.authority}{message.target}", headers=headers)


@pytest.mark.parametrize("kind", sorted(REQUESTS))
@pytest.mark.parametrize("alg", ALGORITHMS)
async def test_what_pypi_http_message_signatures_signs_we_accept(parts: FilterParts, alg: str, kind: str) -> None:
    message, body, covered = bare(kind)
    theirs = as_theirs(message)
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    HTTPMessageSigner(signature_algorithm=THEIR_ALGORITHM[alg], key_resolver=Resolver(parts)).sign(
        theirs,
        key_id=parts.keys[alg].signer.key_id,
        created=now,
        expires=now + dt.timedelta(seconds=60),
        nonce=parts.challenge(),
        label="theirs",
        tag="pch",
        covered_component_ids=covered,
        use_existing_digest=bool(body),
    )
    added = {name: theirs.headers[name] for name in ("Signature-Input", "Signature")}
    await check_theirs(parts, with_fields(message, {name.lower(): value for name, value in added.items()}), body)


@pytest.mark.parametrize("kind", sorted(REQUESTS))
@pytest.mark.parametrize("alg", ALGORITHMS)
async def test_pypi_http_message_signatures_accepts_what_we_sign(parts: FilterParts, alg: str, kind: str) -> None:
    message, covered = ours(parts, alg, kind)
    verifier = HTTPMessageVerifier(signature_algorithm=THEIR_ALGORITHM[alg], key_resolver=Resolver(parts))
    (result,) = verifier.verify(as_theirs(message), expect_tag="pch", require_components=covered)
    assert result.parameters["tag"] == "pch"
    for changed in (
        dataclasses.replace(message, method="PATCH"),
        dataclasses.replace(message, target=message.target + "x"),
    ):
        with pytest.raises(InvalidSignature):
            verifier.verify(as_theirs(changed), expect_tag="pch")


# npm -------------------------------------------------------------------------------------------------------------


def run_npm(folder: Path, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    command = ["node", str(Path(__file__).with_name("npm") / "interop.cjs"), str(folder)]
    ran = subprocess.run(
        command, input=json.dumps(tasks), capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    answers: list[dict[str, Any]] = json.loads(ran.stdout)
    return answers


def task(
    library: str, do: str, parts: FilterParts, alg: str, message: RequestMessage, covered: tuple[str, ...]
) -> dict[str, Any]:
    created = int(time.time())
    return {
        "library": library,
        "do": do,
        "alg": alg,
        "keyid": parts.keys[alg].signer.key_id,
        "jwk": PRIVATE[alg] if do == "sign" else parts.keys[alg].jwk,
        "request": {
            "method": message.method,
            "url": f"https://{message.authority}{message.target}",
            "headers": [[name, value.decode()] for name, value in message.headers],
        },
        "components": list(covered),
        "created": created,
        "expires": created + 60,
        "nonce": parts.challenge(),
        "tag": "pch",
    }


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("library", NPM)
async def test_what_npm_signs_we_accept(npm: Path, parts: FilterParts, library: str, alg: str) -> None:
    requests = {kind: bare(kind) for kind in REQUESTS}
    tasks = [task(library, "sign", parts, alg, message, covered) for message, _, covered in requests.values()]
    for (message, body, _), answer in zip(requests.values(), run_npm(npm, tasks), strict=True):
        assert "headers" in answer, answer
        await check_theirs(parts, with_fields(message, answer["headers"]), body)


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("library", NPM)
async def test_npm_accepts_what_we_sign(npm: Path, parts: FilterParts, library: str, alg: str) -> None:
    tasks, expected = [], []
    for kind in REQUESTS:
        message, covered = ours(parts, alg, kind)
        spoilt = (
            dataclasses.replace(message, method="PATCH"),
            dataclasses.replace(message, target=message.target + "x"),
        )
        for each in (message, *spoilt):
            tasks.append(task(library, "verify", parts, alg, each, covered))
            expected.append(each is message)
    answers = run_npm(npm, tasks)
    assert [answer["verified"] for answer in answers] == expected, answers
