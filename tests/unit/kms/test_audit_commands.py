"""Damage to a real service's stores: what it refuses and serves, and how an operator accepts it (G-13)."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from kms.errors import StoreUnavailable
from kms.messages import KidSelector, SignRequest, VerifyRequest
from tests.support.kms_process import REPOSITORY, KmsProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIGEST = blake3(b"hello world").hexdigest()


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kms", *argv], capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False
    )


def probe(service: KmsProcess, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", service.metrics_port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def drop_last_records(service: KmsProcess, copy: Path) -> None:
    del copy
    path = service.folder / "audit" / "00000000.records"
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:-2]))


def put_audit_back(service: KmsProcess, copy: Path) -> None:
    shutil.rmtree(service.folder / "audit")
    shutil.copytree(copy / "audit", service.folder / "audit")


def put_keys_back(service: KmsProcess, copy: Path) -> None:
    shutil.rmtree(service.folder / "state")
    shutil.copytree(copy / "state", service.folder / "state")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop_last_records, "truncated"),
        (put_audit_back, "audit_rolled_back"),
        (put_keys_back, "key_store_rolled_back"),
    ],
)
def test_a_rollback_stops_signing_not_verifying_until_an_operator_accepts_it(
    tmp_path: Path, damage: Callable[[KmsProcess, Path], None], reason: str
) -> None:
    with KmsProcess(tmp_path / "kms") as service:
        kid = service.create("ed25519", "audit")
        service.stop()
        shutil.copytree(service.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
        service.start()
        client = service.client()
        sign = SignRequest(kid_or_set=KidSelector(kid=kid), payload_b3=DIGEST)
        signed = client.sign(sign)
        for _ in range(2):
            service.create("ed25519", "later")
        service.stop()
        damage(service, tmp_path / "copy")
        service.start(wait=False)
        service.wait_until_it_answers()
        with pytest.raises(StoreUnavailable):
            client.sign(sign)
        with pytest.raises(StoreUnavailable):
            service.create("ed25519", "more")
        verified = client.verify(VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs, kid_or_set=KidSelector(kid=kid)))
        assert verified.ok
        status, body = probe(service, "/readyz")
        assert status == 503
        assert "audit_ready" in json.loads(body)["missing"]
        metrics = probe(service, "/metrics")[1]
        assert "kms_audit_integrity_failed_total 1.0" in metrics
        accept = ("restore", "--accept-rollback", "--config", str(service.folder / "kms.toml"))
        if damage is drop_last_records:
            assert command(*accept).returncode == 1, "the service is running"
        service.stop()
        if damage is drop_last_records:
            assert command(*accept[:1], *accept[2:]).returncode == 1, "the operator has not said so"
        told = command(*accept)
        assert told.returncode == 0, told.stderr
        assert f"fault: {reason}" in told.stdout
        if damage is drop_last_records:
            assert command(*accept).returncode == 1, "there is nothing more to accept"
        service.start()
        assert client.sign(sign).kid == kid
        assert probe(service, "/readyz")[0] == 200
        service.stop()
        whole = command("audit", "verify", "--dir", str(service.folder / "audit"))
        assert whole.returncode == 0, whole.stderr
        assert "epoch 2" in whole.stdout


def test_verifying_tells_what_is_damaged(tmp_path: Path) -> None:
    assert command("audit", "verify", "--dir", str(tmp_path)).returncode == 1
    with KmsProcess(tmp_path / "kms") as service:
        service.create("ed25519", "audit")
        service.stop()
        path = service.folder / "audit" / "00000000.records"
        path.write_bytes(path.read_bytes().replace(b"create_key", b"create_kez", 1))
        told = command("audit", "verify", "--dir", str(service.folder / "audit"))
    assert told.returncode == 1
    assert told.stderr.startswith(("damaged: chain", "damaged: root"))


def test_commands_tell_of_their_mistakes_without_a_trace(tmp_path: Path) -> None:
    for argv, status in (
        (("mint", "--root-key-file", str(tmp_path / "none"), "--scope", "kms:read", "--tenant", "a", "--out", "-"), 1),
        (("revoke", "--revocations-file", str(tmp_path / "x")), 1),
        (("audit", "verify", "--config", str(tmp_path / "none.toml")), 2),
        (("restore", "--accept-rollback", "--config", str(tmp_path / "none.toml")), 2),
    ):
        told: Any = command(*argv)
        assert told.returncode == status, told.stderr
        assert "Traceback" not in told.stderr
        assert told.stderr
