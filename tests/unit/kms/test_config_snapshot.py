"""A configuration of before, handed to a process (CONFIG.md §5)."""

import os

import pytest

from kms.config import ConfigError, load_config
from kms.config_snapshot import read_snapshot, write_snapshot

MEMORY = {"backend": "inmem", "amnesia": "true"}
FILES = [
    "",
    "max_conns = 7\nread_timeout = '1h'\ngrpc_addr = ''\n[limits]\nmax_body_bytes = '4KiB'\n",
    "[deadlines]\nsign = '9ms'\n[service]\nallowed_algs = ['ed25519', 'hkdf']\n",
    "[unix]\npath = 'kms.sock'\nallowed_uids = [0, 7]\n[policy]\npath = 'p.toml'\n[bus]\nredis_url = 'redis://h/0'\n",
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_a_configuration_comes_out_as_it_went_in(tmp_path, file):
    (tmp_path / "Config.toml").write_text(file)
    config = load_config(MEMORY, {}).config
    loaded = read_snapshot(write_snapshot(config), MEMORY, {})
    assert loaded.config == config
    assert loaded.current


@pytest.mark.parametrize("file", ["max_conns = 8\n", "max_conns = [\n"])
def test_it_is_told_apart_from_what_its_sources_say_by_now(tmp_path, file):
    (tmp_path / "Config.toml").write_text("max_conns = 7\n")
    handed_down = write_snapshot(load_config(MEMORY, {}).config)
    (tmp_path / "Config.toml").write_text(file)
    loaded = read_snapshot(handed_down, MEMORY, {})
    assert (loaded.config.max_conns, loaded.current) == (7, False)


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"max_conns": 0}', b'{"maxconns": 1}'])
def test_what_is_no_configuration_is_refused(raw):
    descriptor = os.memfd_create("x")
    os.write(descriptor, raw)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with pytest.raises(ConfigError, match="--config-fd"):
        read_snapshot(descriptor, MEMORY, {})


def test_its_rules_are_checked_again(tmp_path):
    (tmp_path / "pass").write_text("correct horse battery")
    (tmp_path / "pass").chmod(0o600)
    environ = {"RON_KMS_FILE_PASSPHRASE_FILE": "pass"}
    handed_down = [write_snapshot(load_config({}, environ).config) for _ in range(2)]
    assert read_snapshot(handed_down[0], {}, environ).current
    (tmp_path / "pass").chmod(0o644)
    with pytest.raises(ConfigError, match=r"passphrase_file: .* others may read"):
        read_snapshot(handed_down[1], {}, environ)
