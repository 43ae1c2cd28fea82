"""Where settings come from and which of them wins (CONFIG.md §1 to §3)."""

import json

import pytest

from kms.config import ConfigError, config_digest, load_config
from kms.config_keys import KEYS, KEYS_BY_ALIAS
from kms.config_reload import changed_keys, needs_restart, value_at
from kms.config_sections import KmsConfig

MEMORY = {"backend": "inmem", "amnesia": "true"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def in_force(flags=MEMORY, environ=(), file=None, tmp_path=None):
    if file is not None:
        (tmp_path / "Config.toml").write_text(file)
    return load_config(flags, dict(environ)).config


def test_without_any_source_the_documents_defaults_hold_but_custody_asks_for_its_passphrase():
    with pytest.raises(ConfigError, match="passphrase_file: is required"):
        load_config({}, {})
    config = in_force()
    assert (config.bind_addr, config.grpc_addr, config.metrics_addr) == (
        "127.0.0.1:9446",
        "127.0.0.1:9445",
        "127.0.0.1:9909",
    )
    assert (config.read_timeout_ms, config.write_timeout_ms, config.idle_timeout_ms) == (5000, 5000, 60_000)
    assert (config.max_conns, config.limits.max_body_bytes, config.limits.decompress_ratio_cap) == (1024, 1 << 20, 10)
    assert (config.queues.sign, config.queues.audit) == (512, 2048)
    assert (config.deadlines.sign_ms, config.deadlines.attest_ms, config.deadlines.checkpoint_ms) == (2000, 3000, 1000)
    assert config.service.allowed_algs == ("ed25519", "ml-dsa", "x25519", "ml-kem")
    assert (config.pq.produce_hybrid, config.pq.verify_mode, config.pq.rollout_percent) == (True, "and", 100)
    assert (config.security.sign_rate_limit_rps, config.security.attest_require) == (500, "if-available")
    assert (config.audit.checkpoint_interval_ops, config.audit.verify_cache_ttl_ms) == (5000, 300_000)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    file = "max_conns = 10\nread_timeout = '1s'\nwrite_timeout = '1s'\n"
    environ = {"RON_KMS_READ_TIMEOUT": "2s", "RON_KMS_WRITE_TIMEOUT": "2s"}
    config = in_force(MEMORY | {"write-timeout": "3s"}, environ, file, tmp_path)
    timeouts = (config.read_timeout_ms, config.write_timeout_ms, config.idle_timeout_ms)
    assert (config.max_conns, timeouts) == (10, (2000, 3000, 60_000))


@pytest.mark.parametrize("alias", sorted(KEYS_BY_ALIAS))
def test_a_documents_other_spelling_sets_the_key_with_a_warning_and_yields_to_the_real_name(alias):
    key = KEYS_BY_ALIAS[alias]
    text, other = {
        "service.backend": ("inmem", "inmem"),
        "service.amnesia": ("1", "true"),
        "service.allowed_algs": ("ed25519", "ml-dsa"),
        "pq.verify_mode": ("or", "pq_only"),
        "pq.produce_hybrid": ("0", "1"),
        "security.attest_require": ("never", "if-available"),
        "backends.pkcs11.module_path": ("/one", "/other"),
        "limits.max_body_bytes": ("2KiB", "3KiB"),
        "limits.tenant_share_min": ("0.1", "0.2"),
    }.get(key.path, ("127.0.0.1:1234", "127.0.0.1:1235") if key.path.endswith("addr") else ("7", "8"))
    flags = {name: value for name, value in MEMORY.items() if name != key.flag}
    if key.path == "service.backend":
        flags = {"amnesia": "true"}
    loaded = load_config(flags, {alias: text})
    assert any(alias in warning and key.env in warning for warning in loaded.warnings)
    real = load_config(flags, {alias: text, key.env: other})
    assert value_at(real.config, key.path) == value_at(load_config(flags, {key.env: other}).config, key.path)
    assert value_at(loaded.config, key.path) == value_at(load_config(flags, {key.env: text}).config, key.path)


def test_two_aliases_that_disagree_are_refused():
    with pytest.raises(ConfigError, match="another alias"):
        load_config(MEMORY, {"KMS_BIND": "127.0.0.1:1", "KMS_API_ADDR": "127.0.0.1:2"})


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"RON_KMS_MAX_CONS": "1"}, "RON_KMS_MAX_CONS: unknown key"),
        ({"RON_KMS_MAX_CONNS": "many"}, "max_conns: must be a number"),
        ({"RON_KMS_MAX_CONNS": "1_000"}, "max_conns: must be a number"),
        ({"RON_KMS_MAX_CONNS": "0"}, ">= 1"),
        ({"RON_KMS_AMNESIA": "yes"}, "service.amnesia: must be 1, 0, true or false"),
        ({"RON_KMS_UNIX_ALLOWED_UIDS": "0,root"}, "unix.allowed_uids: must be a number"),
        ({"RON_KMS_READ_TIMEOUT": "x" * 5000}, "read_timeout: is too long"),
        ({"RON_KMS_ALLOWED_ALGS": "ed25519,rsa"}, "allowed_algs"),
    ],
)
def test_an_environment_that_is_not_understood_is_refused(environ, why):
    with pytest.raises(ConfigError, match=why):
        load_config(MEMORY, environ)


def test_an_unrelated_variable_and_the_one_that_holds_the_pin_are_let_be(tmp_path):
    (tmp_path / "module.so").write_bytes(b"")
    (tmp_path / "Config.toml").write_text('[backends.pkcs11]\npin_env = "RON_KMS_MY_PIN"\nmodule_path = "module.so"\n')
    loaded = load_config({"backend": "pkcs11"}, {"RON_KMS_MY_PIN": "1234", "KMS_OTHER": "x"})
    assert loaded.config.backends.pkcs11.pin_env == "RON_KMS_MY_PIN"
    assert "1234" not in repr(loaded)


@pytest.mark.parametrize("text", ["ed25519,ml-dsa", " ed25519 , ml-dsa "])
def test_lists_in_the_environment_have_commas(text):
    assert in_force(environ={"RON_KMS_ALLOWED_ALGS": text}).service.allowed_algs == ("ed25519", "ml-dsa")


def test_an_empty_text_takes_a_key_back_to_its_default(tmp_path):
    config = in_force(environ={"RON_KMS_MAX_CONNS": ""}, file="max_conns = 5\n", tmp_path=tmp_path)
    assert config.max_conns == 1024


def test_grpc_is_switched_off_by_an_empty_address(tmp_path):
    assert in_force(environ={"RON_KMS_GRPC_ADDR": ""}).grpc_addr is None
    assert in_force(file='grpc_addr = ""\n', tmp_path=tmp_path).grpc_addr is None


def test_the_documents_own_file_is_understood(tmp_path):
    (tmp_path / "pkcs11.so").write_bytes(b"")
    (tmp_path / "pass").write_text("x" * 16)
    (tmp_path / "pass").chmod(0o600)
    (tmp_path / "given.toml").write_text(
        """
bind_addr = "0.0.0.0:7441"
metrics_addr = "127.0.0.1:0"
max_conns = 2048
read_timeout = "5s"
[service]
backend = "pkcs11"
multi_backends = ["pkcs11","file"]
[tls]
enabled = false
cert_path = ""
[limits]
max_body_bytes = "1MiB"
[security]
attest_require = "required"
[entropy_time]
rng_reseed_interval_ops = 200000
[audit]
dir = "./kms-audit"
sealing = "attested"
[observability]
redact_level = "hashes"
[backends.pkcs11]
module_path = "pkcs11.so"
slot_label = "RON-KMS"
pin_env = "KMS_PKCS11_PIN_ENV"
[backends.file]
dir = "./kms-sealed"
kdf = "scrypt"
aead = "chacha20poly1305"
passphrase_file = "pass"
"""
    )
    loaded = load_config({"config": "given.toml"}, {"KMS_PKCS11_PIN_ENV": "secret-pin"})
    assert loaded.config.service.multi_backends == ("pkcs11", "file")
    assert loaded.path is not None
    assert loaded.path.name == "given.toml"
    assert any("TLS is off" in warning for warning in loaded.warnings)


def test_json_says_the_same_as_toml(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"max_conns": 9, "service": {"backend": "inmem", "amnesia": True}}))
    (tmp_path / "c.toml").write_text('max_conns = 9\n[service]\nbackend = "inmem"\namnesia = true\n')
    from_json, from_toml = load_config({"config": "c.json"}, {}), load_config({}, {"RON_KMS_CONFIG": "c.toml"})
    assert from_json.config == from_toml.config
    assert config_digest(from_json.config) == config_digest(from_toml.config)
    assert load_config({}, {"RON_CONFIG": "c.json"}).warnings == ("RON_CONFIG is an alias of RON_KMS_CONFIG",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max_cons = 1\n", "unknown field `max_cons`"),
        ("[service]\nbackends = 'file'\n", "unknown field `backends`"),
        ("[pq]\nmode = 'hybrid'\n", "unknown field `mode`"),
        ("max_conns = '7'\n", "Expected `int`"),
        ("read_timeout = 5\n", "must be a number with one of"),
        ("service = 3\n", "service: must be a table"),
        ("max_conns = \n", "neither TOML nor JSON"),
        ("\xff", "neither TOML nor JSON"),
        ("x" * 1_048_577, "is larger than"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(tmp_path, text, why):
    (tmp_path / "Config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=why):
        load_config(MEMORY, {})


def test_a_file_that_is_named_must_be_there():
    with pytest.raises(ConfigError, match=r"elsewhere\.toml: cannot be read"):
        load_config(MEMORY | {"config": "elsewhere.toml"}, {})


def test_json_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a table"):
        load_config(MEMORY | {"config": "c.json"}, {})


def test_every_key_has_one_place_one_variable_and_is_in_the_schema():
    assert len({key.env for key in KEYS}) == len({key.path for key in KEYS}) == len(KEYS)
    for key in KEYS:
        value_at(KmsConfig(), key.path)


def test_a_change_is_told_by_key_and_only_sockets_tls_backends_and_stores_wait_for_a_restart():
    former = in_force()
    fresh = in_force(environ={"RON_KMS_SIGN_RATE_LIMIT": "9", "RON_KMS_BIND_ADDR": "127.0.0.1:1"})
    assert changed_keys(former, fresh) == ["bind_addr", "security.sign_rate_limit_rps"]
    assert needs_restart(changed_keys(former, fresh)) == ["bind_addr"]
    assert changed_keys(former, former) == []
    reloading = {key.path for key in KEYS if key.reloads}
    assert {"read_timeout", "limits.max_body_bytes", "observability.log_level", "pq.verify_mode"} <= reloading
    assert not reloading & {"bind_addr", "tls.cert_path", "service.backend", "backends.pkcs11.module_path"}
    # What is handed to the audit log and to the attestations when they are made.
    assert not reloading & {"deadlines.attest", "deadlines.checkpoint", "deadlines.audit_append"}


def test_the_digest_tells_settings_apart_and_leaves_out_the_bus():
    former = in_force()
    assert config_digest(former) != config_digest(in_force(environ={"RON_KMS_MAX_CONNS": "7"}))
    assert config_digest(former) == config_digest(in_force(environ={"RON_KMS_BUS_REDIS_URL": "redis://:pw@h/0"}))
