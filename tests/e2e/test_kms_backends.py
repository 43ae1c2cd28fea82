"""The whole service on a real token, a real TPM and the cloud's API: outages are told, and it recovers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import moto_kms, softhsm
from tests.support.kms_service import DIGEST, KmsProcess
from tests.support.provider_parts import running_softhsm, running_swtpm

RECOVERS_WITHIN_S = 20.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., KmsProcess]]:
    started = []

    def begin(**settings: str) -> KmsProcess:
        started.append(KmsProcess(tmp_path, settings))
        return started[-1].start()

    yield begin
    for service in started:
        service.stop()


def signed(service: KmsProcess, kid: str) -> int:
    body = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}
    return service.ask("POST", "/v1/kms/sign", body).status


def until(service: KmsProcess, kid: str, status: int) -> None:
    end_s = time.monotonic() + RECOVERS_WITHIN_S
    while (found := signed(service, kid)) != status:
        assert time.monotonic() < end_s, found
        time.sleep(0.05)


def test_keys_in_a_token_sign_only_while_it_is_there(tmp_path: Path, start: Callable[..., KmsProcess]) -> None:
    with running_softhsm(tmp_path / "hsm") as hsm:
        settings = {
            "BACKEND": "pkcs11",
            "PKCS11_MODULE_PATH": str(softhsm.MODULE),
            "PKCS11_SLOT_LABEL": softhsm.LABEL,
            "PKCS11_PIN_ENV": "RON_KMS_TEST_PIN",
            "PQ_PRODUCE_HYBRID": "0",
            "PQ_VERIFY_MODE": "or",
            "ATTEST_REQUIRE": "required",
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RON_KMS_TEST_PIN", softhsm.PIN)
            service = start(**settings)
            kid = service.create("ed25519")
            body = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}
            answer = service.ask("POST", "/v1/kms/sign", body)
            assert answer.status == 200, answer.body
            check = {"payload_b3": DIGEST, "sigs": answer.json["sigs"], "kid_or_set": {"kid": kid}}
            refused = {"tenant": "core", "purpose": "app", "alg": "ml-dsa"}
            assert service.ask("POST", "/v1/kms/keys", refused).code == "Unsupported"
            hsm.lose()
            until(service, kid, 503)
            assert service.ask("POST", "/v1/kms/verify", check).json["ok"] is True
            hsm.bring_back()
            until(service, kid, 200)
            service.stop()
            service.log_file.unlink()
            again = start(**settings)
            until(again, kid, 200)
            again.stop()


def test_keys_under_a_tpm_survive_a_restart_and_a_folder_put_back_does_not_start(
    tmp_path: Path, start: Callable[..., KmsProcess]
) -> None:
    with running_swtpm(tmp_path) as tpm:
        settings = {
            "BACKEND": "tpm",
            "TPM_TCTI": tpm.tcti,
            "TPM_DIR": str(tmp_path / "tpm"),
            "ATTEST_REQUIRE": "required",
        }
        service = start(**settings)
        kid = service.create("hybrid")
        assert signed(service, kid) == 200
        service.stop()
        old_list = (tmp_path / "tpm" / "keys.list").read_bytes()
        service.log_file.unlink()
        again = start(**settings)
        assert signed(again, kid) == 200
        again.create("ed25519")
        again.stop()
        (tmp_path / "tpm" / "keys.list").write_bytes(old_list)
        again.log_file.unlink()
        with pytest.raises(AssertionError, match="tpm_folder_rolled_back"):
            start(**settings)


def test_the_cloud_wraps_and_does_not_sign(tmp_path: Path, start: Callable[..., KmsProcess]) -> None:
    with moto_kms.credentials():
        service = start(
            BACKEND="cloud",
            CLOUD_ENDPOINT_URL=moto_kms.url(),
            CLOUD_REGION=moto_kms.REGION,
            CLOUD_KEY_ID=moto_kms.new_key(),
        )
        kid = service.create("x25519")
        secret = "c2l4dGVlbiBieXRlcyE9MzIgYnl0ZXMgYWxsIHRvbGQ="
        wrapped = service.ask("POST", "/v1/kms/wrap", {"kid": kid, "plaintext_key_b64": secret})
        assert wrapped.status == 200, wrapped.body
        back = service.ask("POST", "/v1/kms/unwrap", {"kid": kid, "wrapped_b64": wrapped.json["wrapped_b64"]})
        assert back.json["plaintext_key_b64"] == secret
        refused = {"tenant": "core", "purpose": "app", "alg": "ed25519"}
        assert service.ask("POST", "/v1/kms/keys", refused).code == "Unsupported"
        service.stop()
