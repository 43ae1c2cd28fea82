"""What a new configuration names is tried before anything ends for it (CONFIG.md §5)."""

import msgspec
import pytest

from kms.__main__ import main
from kms.config_proof import prove_openable
from kms.config_sections import KmsConfig, PolicySection, SecuritySection, TlsSection
from kms.config_values import ConfigError
from kms.root_key import create_root_file
from tests.support.kms_certificates import make_certificate, pem


@pytest.fixture
def config(tmp_path):
    create_root_file(tmp_path / "root.json", 1_760_000_000, bytes)
    for name in ("one", "other"):
        key, certificate = make_certificate(name, None)
        (tmp_path / f"{name}.pem").write_bytes(pem(certificate))
        (tmp_path / f"{name}.key").write_bytes(pem(key))
    (tmp_path / "policy.toml").write_text("[tenants.core]\nrate_per_s = 5\n")
    return msgspec.structs.replace(
        KmsConfig(),
        tls=TlsSection(enabled=True, cert_path=tmp_path / "one.pem", key_path=tmp_path / "one.key"),
        security=SecuritySection(root_key_file=tmp_path / "root.json", revocations_file=tmp_path / "revoked.json"),
        policy=PolicySection(path=tmp_path / "policy.toml"),
    )


def test_what_can_be_opened_is(config):
    prove_openable(config)
    prove_openable(msgspec.structs.replace(config, tls=TlsSection(), policy=PolicySection()))


@pytest.mark.parametrize(
    ("section", "key", "name", "content", "why"),
    [
        ("tls", "key_path", "other.key", None, "tls: .* cannot be used together"),
        ("tls", "cert_path", "absent.pem", None, "tls: .* cannot be used together"),
        ("tls", "client_ca_path", "root.json", None, "tls: .* cannot be used together"),
        ("security", "root_key_file", "absent.json", None, "security: .*no root key file"),
        ("security", "root_key_file", "broken.json", "{}", "security: .*not a root key file"),
        ("security", "revocations_file", "broken.json", "{", "security: .*not a file of revocations"),
        ("policy", "path", "absent.toml", None, "policy.path"),
        ("policy", "path", "broken.toml", "[tenants.core]\nrate = 5\n", "policy.path"),
    ],
)
def test_what_cannot_be_opened_is_told_with_its_key(config, tmp_path, section, key, name, content, why):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    changed = msgspec.structs.replace(getattr(config, section), **{key: path})
    with pytest.raises(ConfigError, match=why):
        prove_openable(msgspec.structs.replace(config, **{section: changed}))


def test_check_opens_only_what_it_is_told_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RON_KMS_ROOT_KEY_FILE", str(tmp_path / "root.json"))
    memory = ["check", "--backend", "inmem", "--amnesia"]
    assert main(memory) == 0
    monkeypatch.setattr("kms.process_hardening.harden_process", lambda: None)  # not for the whole test run
    assert main([*memory, "--open"]) == 2
    assert "no root key file" in capsys.readouterr().err
    create_root_file(tmp_path / "root.json", 1_760_000_000, bytes)
    assert main([*memory, "--open"]) == 0
