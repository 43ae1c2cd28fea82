"""curl, with the fields that `pch sign` prints, gets through to a route without binding, on the real stack."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pch.keys import thumbprint
from tests.e2e.attack_stage import Stage, body_of
from tests.support.filter_parts import KeyPair
from tools.stack import Stack
from tools.stack_certs import write_private
from tools.stack_config import Ports, StackSettings

pytestmark = pytest.mark.e2e

PCH = Path(sys.executable).with_name("pch")
ALGORITHMS = ["ed25519", "ecdsa-p256-sha256", "ml-dsa-65", "ed25519+ml-dsa-65"]
ROUTES = (
    {"name": "unbound", "path": "/unbound/**", "binding": "none", "algorithms": ALGORITHMS},
    {"name": "protected", "path": "/protected/**", "algorithms": ALGORITHMS},
)
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    var = tmp_path_factory.mktemp("curl")
    entries = []
    for alg in ALGORITHMS:
        run(str(PCH), "keygen", "--alg", alg, "--out", str(var / f"{alg}.jwk"), "--public-out", str(var / f"{alg}.pub"))
        public = json.loads((var / f"{alg}.pub").read_text())
        entries += entries_of(public.get("keys", [public]))
    write_private(var / "keyring.json", json.dumps(entries).encode())
    with Stack(StackSettings(var, Ports.free(), routes=ROUTES)) as stack:
        yield Stage(stack, {})


def entries_of(jwks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    partners = [thumbprint(jwk) for jwk in reversed(jwks)] if len(jwks) == 2 else [None]
    return [KeyPair("demo", None, jwk, partner=each).entry() for jwk, each in zip(jwks, partners, strict=True)]  # type: ignore[arg-type]


def run(*command: str, given: str = "") -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout


def curl(stage: Stage, *arguments: str, given: str = "") -> tuple[int, dict[str, str]]:
    """Give the status and the fields of curl's answer."""
    certificate = str(stage.stack.files.tls / "ca.pem")
    told = run("curl", "-sS", "-o", "/dev/null", "-D", "-", "--cacert", certificate, *arguments, given=given)
    head, *lines = told.strip().splitlines()
    fields = [line.partition(":") for line in lines]
    return int(head.split()[1]), {name.lower(): value.strip() for name, _, value in fields}


def signed_fields(stage: Stage, alg: str, url: str, *arguments: str) -> str:
    """Ask for a challenge by curl, and have `pch sign` print the fields that curl is to send."""
    status, fields = curl(stage, url)
    assert (status, fields["pch-reason"]) == (401, "missing_signature")
    challenge = fields["pch-challenge"].split('"')[1]
    key = str(stage.var / f"{alg}.jwk")
    return run(str(PCH), "sign", url, "--key", key, "--challenge", challenge, *arguments)


def test_curl_is_here() -> None:
    assert shutil.which("curl"), "curl is missing: run `make parts`"
    assert PCH.exists()


@pytest.mark.parametrize("http", ["--http1.1", "--http2"])
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_curl_passes_with_the_fields_that_pch_sign_prints_once(stage: Stage, alg: str, http: str) -> None:
    url = f"https://{stage.authority}/unbound/curl?q=1"
    printed = signed_fields(stage, alg, url)
    stage.seen_by_app()
    status, fields = curl(stage, http, "-H", "@-", url, given=printed)
    assert (status, fields.get("pch-reason")) == (200, None)
    (record,) = stage.seen_by_app()
    told = {name.lower(): value for name, value in record["headers"]}
    assert (told["x-signet-alg"], told["x-signet-binding"], told["x-signet-subject"]) == (alg, "none", "demo")
    replayed = curl(stage, http, "-H", "@-", url, given=printed)
    assert (replayed[0], replayed[1]["pch-reason"]) == (401, "nonce_replay")
    assert stage.seen_by_app() == []


def test_curl_passes_with_content_and_not_with_other_content(stage: Stage) -> None:
    url = f"https://{stage.authority}/unbound/curl"
    printed = signed_fields(stage, "ed25519", url, "-d", "a=1")
    status, fields = curl(stage, "-H", "@-", "--data-binary", "a=2", url, given=printed)
    assert (status, fields["pch-reason"]) == (400, "bad_content_digest")
    printed = signed_fields(stage, "ed25519", url, "-d", "a=1")
    stage.seen_by_app()
    assert curl(stage, "-H", "@-", "--data-binary", "a=1", url, given=printed)[0] == 200
    (record,) = stage.seen_by_app()
    assert (record["method"], body_of(record)) == ("POST", b"a=1")


@pytest.mark.parametrize(
    ("path", "arguments", "reason"),
    [
        ("/unbound/other", (), "bad_signature"),
        ("/unbound/curl?q=2", (), "bad_signature"),
        ("/unbound/curl", ("-X", "DELETE"), "bad_signature"),
        ("/protected/curl", (), "missing_component"),
    ],
)
def test_curl_with_another_request_than_was_signed_is_refused(
    stage: Stage, path: str, arguments: tuple[str, ...], reason: str
) -> None:
    printed = signed_fields(stage, "ed25519", f"https://{stage.authority}/unbound/curl")
    stage.seen_by_app()
    status, fields = curl(stage, "-H", "@-", *arguments, f"https://{stage.authority}{path}", given=printed)
    assert (status, fields["pch-reason"]) == (401, reason)
    assert stage.seen_by_app() == []
