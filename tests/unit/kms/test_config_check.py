"""The rules between settings and the world, which fail closed (CONFIG.md §4); the matrix of CONFIG.md §11 by name."""

import os

import pytest

from kms import config_check
from kms.config import ConfigError, load_config

MEMORY = {"backend": "inmem", "amnesia": "true"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "pass"
    path.write_text("correct horse battery")
    path.chmod(0o600)
    return {"RON_KMS_FILE_PASSPHRASE_FILE": str(path)}


def refused(why, flags=MEMORY, environ=()):
    with pytest.raises(ConfigError, match=why):
        load_config(flags, dict(environ))


def test_matrix_missing_config_toml_starts_with_defaults_and_says_so():
    loaded = load_config(MEMORY, {})
    assert loaded.path is None
    assert loaded.notes == ("no Config.toml here: built-in defaults are used",)


@pytest.mark.parametrize("key", ["RON_KMS_BIND_ADDR", "RON_KMS_METRICS_ADDR", "RON_KMS_GRPC_ADDR"])
def test_matrix_an_invalid_address_fails_fast_with_an_explicit_error(key):
    path = key.removeprefix("RON_KMS_").lower()
    refused(f"must be <ip>:<port>.*{path}", environ={key: "nowhere"})


@pytest.mark.parametrize(
    ("granted", "listeners", "told"),
    [(3328, {}, False), (3327, {}, True), (3327, {"RON_KMS_GRPC_ADDR": ""}, False), (-1, {}, False)],
)
def test_more_connections_than_descriptors_are_told(monkeypatch, granted, listeners, told):
    monkeypatch.setattr(config_check.resource, "getrlimit", lambda _: (1, granted))
    warnings = load_config(MEMORY, listeners).warnings
    assert any("max_conns: may need 3328 descriptors" in each for each in warnings) is told


def test_matrix_tls_without_its_files_fails_fast(tmp_path):
    refused("tls.cert_path: is required", environ={"RON_KMS_TLS_ENABLED": "1"})
    both = {"RON_KMS_TLS_ENABLED": "1", "RON_KMS_TLS_CERT_PATH": "cert.pem", "RON_KMS_TLS_KEY_PATH": "key.pem"}
    refused("tls.cert_path: cert.pem: No such file", environ=both)
    (tmp_path / "cert.pem").write_text("x")
    (tmp_path / "cert.pem").chmod(0o640)
    refused("tls.key_path: key.pem: No such file", environ=both)
    (tmp_path / "key.pem").write_text("x")
    (tmp_path / "key.pem").chmod(0o644)
    refused("tls.key_path: key.pem: others may read", environ=both)
    (tmp_path / "key.pem").chmod(0o600)
    assert load_config(MEMORY, both).config.tls.enabled
    refused("client_ca_path: is not a file", environ=both | {"RON_KMS_TLS_CLIENT_CA_PATH": "ca.pem"})
    refused("client_ca_path: means nothing", environ={"RON_KMS_TLS_CLIENT_CA_PATH": "cert.pem"})
    (tmp_path / "key.pem").unlink()
    (tmp_path / "key.pem").mkdir()
    refused("key.pem: is not a file", environ=both)


@pytest.mark.parametrize("backend", ["file", "pkcs11", "tpm", "cloud"])
def test_matrix_amnesia_with_a_persistent_backend_fails_to_start(backend, passphrase, tmp_path):
    (tmp_path / "module.so").write_bytes(b"")
    environ = passphrase | {
        "RON_KMS_PKCS11_MODULE_PATH": "module.so",
        "RON_KMS_PKCS11_PIN_ENV": "PIN",
        "PIN": "1",
        "RON_KMS_CLOUD_KEY_ID": "k",
    }
    assert load_config({"backend": backend}, environ).config.service.backend == backend
    refused("service.amnesia: keys may be in memory only", {"backend": backend, "amnesia": "true"}, environ)
    both = MEMORY | {"multi-backends": f"inmem,{backend}"}
    refused("service.amnesia: keys may be in memory only", both, environ)


def test_matrix_pkcs11_without_its_pin_variable_fails_to_start(tmp_path):
    flags = {"backend": "pkcs11"}
    refused("module_path: must exist", flags)
    refused("module_path: must exist", flags, {"RON_KMS_PKCS11_MODULE_PATH": "module.so"})
    (tmp_path / "module.so").write_bytes(b"")
    environ = {"RON_KMS_PKCS11_MODULE_PATH": "module.so"}
    refused("pin_env: must name", flags, environ)
    refused("pin_env: the variable that it names is not set", flags, environ | {"RON_KMS_PKCS11_PIN_ENV": "PIN"})
    refused("pin_env: the variable", flags, environ | {"RON_KMS_PKCS11_PIN_ENV": "PIN", "PIN": ""})
    assert load_config(flags, environ | {"RON_KMS_PKCS11_PIN_ENV": "PIN", "PIN": "1"})


def test_the_file_backend_needs_a_private_passphrase_file_and_a_folder_that_takes_files(tmp_path, passphrase):
    refused("passphrase_file: is required", {})
    refused("passphrase_file: nowhere: No such", {}, {"RON_KMS_FILE_PASSPHRASE_FILE": "nowhere"})
    (tmp_path / "pass").chmod(0o604)
    refused("others may read", {}, passphrase)
    (tmp_path / "pass").chmod(0o600)
    (tmp_path / "blocked").write_text("")
    refused("backends.file.dir: blocked: cannot be made", {}, passphrase | {"RON_KMS_FILE_DIR": "blocked"})
    load_config({}, passphrase)
    assert (tmp_path / "kms-sealed").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "kms-sealed").iterdir()) == []
    refused("age is not supported", {}, passphrase | {"RON_KMS_FILE_KDF": "age"})


@pytest.mark.parametrize(
    ("flags", "environ", "why"),
    [
        ({"backend": "floppy"}, {}, "service.backend"),
        (MEMORY | {"multi-backends": "file,inmem"}, {}, "the first is the sign authority"),
        (MEMORY | {"multi-backends": "inmem,inmem"}, {}, "names a backend twice"),
        (MEMORY | {"allowed-algs": "ed25519,ed25519"}, {}, "names an algorithm twice"),
        (MEMORY | {"allowed-algs": "hybrid"}, {}, "allowed_algs"),
        (MEMORY | {"allow-sign-fallback": "true"}, {}, "means nothing with one backend"),
        (MEMORY | {"attest": "required"}, {}, "inmem has no attestation to give"),
        (MEMORY | {"audit-sealing": "attested"}, {}, "inmem has no attestation to bind"),
        (MEMORY | {"audit-checkpoint-ops": "0"}, {}, "checkpoint_interval_ops"),
        (MEMORY | {"pq-verify": "xor"}, {}, "verify_mode"),
        (MEMORY | {"pq-rollout": "101"}, {}, "rollout_percent"),
        (MEMORY, {"RON_KMS_DECOMPRESS_RATIO_CAP": "0"}, "decompress_ratio_cap"),
        (MEMORY, {"RON_KMS_MAX_BODY_BYTES": "1023"}, "max_body_bytes: must be from 1KiB"),
        (MEMORY, {"RON_KMS_MAX_BODY_BYTES": "2MiB"}, "max_body_bytes: must be from 1KiB"),
        (MEMORY, {"RON_KMS_LOG_INPUTS": "1"}, "inputs are never logged"),
        (MEMORY, {"RON_KMS_REDACT_LEVEL": "none"}, "redact_level"),
        (MEMORY | {"unix-path": "s.sock"}, {}, "allowed_uids: at least one"),
        (MEMORY | {"unix-path": "s" * 200, "unix-allowed-uids": "0"}, {}, "longer than 107 bytes"),
        (MEMORY | {"grpc": "127.0.0.1:9446"}, {}, "grpc_addr: is the same as bind_addr"),
        ({"backend": "cloud"}, {}, "cloud.key_id: is required"),
    ],
)
def test_a_rule_that_is_broken_is_an_explicit_error(flags, environ, why):
    refused(why, flags, environ)


def test_twins_of_those_rules_that_keep_them_are_accepted():
    environ = {"RON_KMS_MAX_BODY_BYTES": "1KiB", "RON_KMS_DECOMPRESS_RATIO_CAP": "1", "RON_KMS_REDACT_LEVEL": "lengths"}
    flags = MEMORY | {
        "unix-path": "s.sock",
        "unix-allowed-uids": "0,1000",
        "grpc": "127.0.0.1:0",
        "bind": "127.0.0.1:0",
    }
    config = load_config(flags | {"pq-rollout": "0", "attest": "never"}, environ).config
    assert config.unix.allowed_uids == (0, 1000)


def test_a_privileged_port_needs_privileges(monkeypatch, tmp_path):
    start = tmp_path / "start"
    start.write_text("1024\n")
    monkeypatch.setattr(config_check, "_UNPRIVILEGED_PORT_START", start)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused("a port below 1024 needs privileges", MEMORY | {"bind": "127.0.0.1:443"})
    assert load_config(MEMORY | {"bind": "127.0.0.1:1024"}, {})
    start.unlink()
    refused("a port below 1024", MEMORY | {"bind": "127.0.0.1:443"})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load_config(MEMORY | {"bind": "127.0.0.1:443"}, {})


def test_under_amnesia_the_audit_log_is_in_memory_or_nowhere(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nram {tmp_path}/ram\\040disk tmpfs rw 0 0\n")
    monkeypatch.setattr(config_check, "_MOUNTS", mounts)
    assert load_config(MEMORY, {}).config.audit.dir is None
    refused("audit.dir: must be unset or in memory", MEMORY | {"audit-dir": str(tmp_path / "audit")})
    assert load_config(MEMORY | {"audit-dir": str(tmp_path / "ram disk" / "audit")}, {}).config.audit.dir is not None
    assert str(load_config({"backend": "inmem"}, {}).config.audit.dir) == "kms-audit"


@pytest.mark.parametrize(
    ("flags", "about"),
    [
        ({"bind": "0.0.0.0:9446"}, "bind_addr"),
        ({"grpc": "0.0.0.0:9445"}, "grpc_addr"),
        ({"metrics": "0.0.0.0:9909"}, "metrics_addr"),
        ({"pq-verify": "pq_only"}, "pq.verify_mode"),
        ({"allowed-algs": "ed25519,x25519,ml-kem"}, "pq.verify_mode"),
    ],
)
def test_what_is_allowed_but_dangerous_is_warned_of(flags, about):
    assert [warning.partition(":")[0] for warning in load_config(MEMORY | flags, {}).warnings] == [about]
    assert load_config(MEMORY, {}).warnings == ()


@pytest.mark.parametrize(
    "flags",
    [{"pq-verify": "or"}, {"pq-rollout": "0"}, {"allowed-algs": "ed25519,ml-dsa-44"}],
)
def test_a_phase_that_can_be_kept_is_not_warned_of(flags):
    assert load_config(MEMORY | {"allowed-algs": "ed25519"} | flags, {}).warnings == ()
