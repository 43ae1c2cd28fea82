"""Opening what the configuration names: the first is the authority, and one that cannot be opened stops the start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kms.clock import SYSTEM_CLOCK
from kms.config_sections import BackendsSection, KmsConfig
from kms.errors import StoreUnavailable, Unsupported
from kms.primitive import Primitive
from kms.providers.open_provider import ProviderSet, open_providers
from kms.telemetry import Telemetry
from tests.support import moto_kms, softhsm
from tests.support.provider_parts import kid_of, running_softhsm, running_swtpm, write_passphrase


def config_of(*names: str, **backends: dict[str, Any]) -> KmsConfig:
    config = KmsConfig()
    service = msgspec.structs.replace(config.service, backend=names[0], multi_backends=names)
    sections = {
        name: msgspec.structs.replace(getattr(config.backends, name), **values) for name, values in backends.items()
    }
    return msgspec.structs.replace(config, service=service, backends=BackendsSection(**sections))


def opened(config: KmsConfig, environ: dict[str, str] | None = None, telemetry: Telemetry | None = None) -> ProviderSet:
    return open_providers(config, telemetry or Telemetry(), SYSTEM_CLOCK, environ or {})


def file_settings(folder: Path) -> dict[str, Any]:
    return {"dir": folder / "sealed", "passphrase_file": write_passphrase(folder)}


def test_one_backend_is_its_own_authority(tmp_path: Path) -> None:
    providers = opened(config_of("file", file=file_settings(tmp_path)))
    assert providers.authority is providers.by_name["file"]
    assert list(providers.by_name) == ["file"]
    assert providers.rollback_counter is None
    providers.authority.generate(Primitive.ED25519, kid_of(Primitive.ED25519))
    providers.close()
    with pytest.raises(StoreUnavailable):
        providers.authority.check()


def test_an_empty_list_means_the_backend_alone() -> None:
    config = config_of("inmem")
    config = msgspec.structs.replace(config, service=msgspec.structs.replace(config.service, multi_backends=()))
    assert list(opened(config).by_name) == ["inmem"]


def test_the_first_of_several_is_the_authority_and_keys_stay_where_they_are(tmp_path: Path) -> None:
    with running_softhsm(tmp_path / "hsm") as hsm, running_swtpm(tmp_path) as tpm, moto_kms.credentials():
        config = config_of(
            *("pkcs11", "tpm", "file", "cloud"),
            pkcs11={"module_path": softhsm.MODULE, "slot_label": softhsm.LABEL, "pin_env": softhsm.PIN_ENV},
            tpm={"tcti": tpm.tcti, "dir": tmp_path / "tpm-sealed"},
            file=file_settings(tmp_path),
            cloud={"endpoint_url": moto_kms.url(), "region": moto_kms.REGION, "key_id": moto_kms.new_key()},
        )
        telemetry = Telemetry()
        providers = opened(config, hsm.environ, telemetry)
        assert providers.authority is providers.by_name["pkcs11"]
        assert [(name, each.name) for name, each in providers.by_name.items()] == [
            (name, name) for name in ("pkcs11", "tpm", "file", "cloud")
        ]
        for name in ("pkcs11", "tpm"):
            labels = {"backend": name, "state": "connected"}
            assert telemetry.registry.get_sample_value("kms_backend_sessions", labels) == 1
        made = providers.authority.generate(Primitive.ED25519, kid_of(Primitive.ED25519))
        # No two of these can hold one key: a handle of one is unknown to every other, whatever its class (I-20).
        for name in ("tpm", "file"):
            with pytest.raises(Exception, match="no such key"):
                providers.by_name[name].sign(made.handle, Primitive.ED25519, bytes(32))
        classes = {name: each.attestation_class for name, each in providers.by_name.items()}
        assert classes == {"pkcs11": "pkcs11-attributes", "tpm": "tpm-2.0", "file": None, "cloud": None}
        # The counter that guards the audit log is the authority's alone.
        assert providers.rollback_counter is None
        providers.close()


def test_a_tpm_as_the_authority_guards_the_audit_log(tmp_path: Path) -> None:
    with running_swtpm(tmp_path) as tpm:
        providers = opened(config_of("tpm", tpm={"tcti": tpm.tcti, "dir": tmp_path / "tpm-sealed"}))
        assert providers.rollback_counter is not None
        before = providers.rollback_counter.read()
        assert providers.rollback_counter.increment() == before + 1
        providers.close()


def test_a_backend_that_cannot_be_opened_stops_the_start_and_frees_the_others(tmp_path: Path) -> None:
    settings = file_settings(tmp_path)
    token = {"module_path": tmp_path / "none.so", "pin_env": softhsm.PIN_ENV}
    config = config_of("file", "pkcs11", file=settings, pkcs11=token)
    with pytest.raises(StoreUnavailable):
        opened(config, {softhsm.PIN_ENV: "1"})
    opened(config_of("file", file=settings)).close()


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("file", {"kdf": "age"}, "unsupported_kdf"),
        ("file", {}, "passphrase_file_unset"),
        ("pkcs11", {}, "token_module_unset"),
        ("pkcs11", {"module_path": Path("none.so"), "pin_env": "NONE"}, "token_pin_unset"),
        ("cloud", {"endpoint_url": "http://example.com", "key_id": "x"}, "cloud_endpoint"),
        ("tpm", {"tcti": "swtpm:host=127.0.0.1,port=1"}, "token_lost"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((StoreUnavailable, Unsupported)) as caught:
        opened(config_of(name, **{name: settings}))
    assert caught.value.reason == reason


@pytest.mark.parametrize(("name", "package"), [("pkcs11", "pkcs11"), ("tpm", "tpm2_pytss"), ("cloud", "boto3")])
def test_a_backend_whose_packages_are_not_installed_is_unsupported(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    modules = {"pkcs11": ("pkcs11", "token_session"), "tpm": ("tpm", "tpm_session"), "cloud": ("cloud",)}
    for module in modules[name]:
        monkeypatch.delitem(sys.modules, f"kms.providers.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unsupported) as caught:
        opened(config_of(name))
    assert caught.value.reason == "backend_not_installed"
