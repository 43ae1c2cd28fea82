"""What a supervisor accepted: configuration and policy go together, however their readers come."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from extproc import accepted as module
from extproc.accepted import ACCEPTED_FILE, POLICY_FILE, Accepted, AcceptedFiles, read_accepted, take
from extproc.config import ConfigError, load_config
from extproc.policy_bundle import PolicyInForce
from extproc.rules_source import RulesSource
from tests.unit.policy.test_engines import COMPILED

ROUTE = '[[route]]\nname = "all"\npath = "/**"\n'
OWN = '[policy]\nmodule = "own.wasm"\nsource = "own.rego"\n' + ROUTE
WASM = COMPILED.read_bytes()
OTHER_WASM = WASM + b"\x00\x02\x01x"
"""The same rules as another module: a custom section more."""


@pytest.fixture(autouse=True)
def _looks_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_PAUSE_S", 0.0)


class Place:
    """A configuration with a policy of its own, and the folder that its supervisor keeps what it accepted in."""

    def __init__(self, folder: Path) -> None:
        self.config, self.wasm, self.run = folder / "filter.toml", folder / "own.wasm", folder / "run"
        self.run.mkdir()
        self.config.write_text(OWN)
        self.wasm.write_bytes(WASM)
        (folder / "own.rego").write_text("package signet.shield\n")
        self.files = AcceptedFiles(self.run)

    def accept(self) -> Accepted:
        accepted, _ = take(self.config, {})
        self.files.keep(accepted)
        return accepted


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("text", [OWN, ROUTE, '[policy]\nengine = "opa"\n' + ROUTE], ids=["own", "filter's", "opa"])
def test_what_was_kept_is_read_as_it_was_and_by_no_one_else(place: Place, text: str) -> None:
    place.config.write_text(text)
    accepted = place.accept()
    assert (accepted.policy is None) == ("opa" in text)
    assert read_accepted(place.files.path) == accepted
    assert sorted(each.name for each in place.run.iterdir()) == [POLICY_FILE, ACCEPTED_FILE]
    assert {stat.S_IMODE(each.stat().st_mode) for each in place.run.iterdir()} == {0o600}


def test_rules_are_of_the_policy_that_was_accepted_and_not_of_the_file_of_now(place: Place) -> None:
    accepted, rules = take(place.config, {})
    place.wasm.write_bytes(OTHER_WASM)
    place.config.with_name("own.rego").write_text("package other\n")
    assert accepted.rules(place.config, {}).policy.bundle == rules.policy.bundle
    assert take(place.config, {})[1].policy.digest != rules.policy.digest
    place.wasm.unlink()
    assert accepted.rules(place.config, {}).policy.digest == rules.policy.digest


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"{}", b'{"content_sha256":"","files":null,"more":1}', None])
def test_what_is_not_whole_is_an_error(place: Place, left: bytes | None) -> None:
    place.accept()
    policy = place.run / POLICY_FILE
    policy.unlink()
    if left is not None:
        policy.write_bytes(left)
    with pytest.raises(ConfigError, match=POLICY_FILE):
        read_accepted(place.files.path)


def test_a_policy_beyond_its_bound_is_an_error(place: Place) -> None:
    place.accept()
    with (place.run / POLICY_FILE).open("ab") as file:
        file.truncate(module.MAX_POLICY_BYTES + 1)
    with pytest.raises(ConfigError, match=POLICY_FILE):
        read_accepted(place.files.path)


def test_who_reads_between_two_replacements_looks_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.accept()
    old = place.files.path.read_bytes()
    place.config.write_text(OWN + "subjects = ['alice']\n")
    new = place.accept()
    place.files.path.write_bytes(old)
    with pytest.raises(ConfigError, match=POLICY_FILE):
        read_accepted(place.files.path)
    monkeypatch.setattr("extproc.accepted.time.sleep", lambda _: place.files.path.write_bytes(new.content))
    assert read_accepted(place.files.path) == new


def test_what_cannot_be_written_whole_replaces_nothing(place: Place) -> None:
    before = place.accept()
    (place.run / f"{ACCEPTED_FILE}.tmp").mkdir()
    place.config.write_text(ROUTE)
    with pytest.raises(OSError, match=ACCEPTED_FILE):
        place.accept()
    assert read_accepted(place.files.path) == before


def test_a_successors_files_stay(place: Place) -> None:
    place.accept()
    AcceptedFiles(place.run).keep(take(place.config, {})[0])
    place.files.drop()
    assert len(list(place.run.iterdir())) == 2


# Who reads it: a worker


def test_a_worker_starts_with_the_policy_that_the_others_run(place: Place) -> None:
    place.accept()
    digest = take(place.config, {})[1].policy.digest
    place.wasm.write_bytes(OTHER_WASM)
    assert RulesSource(place.config, {}, place.files.path).first().policy.digest == digest
    assert RulesSource(place.config, {}, None).first().policy.digest != digest


def test_a_worker_loads_what_was_accepted_and_nothing_that_was_not(place: Place) -> None:
    place.accept()
    source = RulesSource(place.config, {}, place.files.path)
    first = source.first()
    assert source.again(first.config).policy.digest == first.policy.digest
    place.wasm.write_bytes(OTHER_WASM)
    with pytest.raises(ConfigError, match="load it again"):
        source.again(first.config)
    place.accept()
    place.wasm.unlink()
    second = source.again(first.config)
    assert second.policy.digest != first.policy.digest
    with pytest.raises(ConfigError, match=r"own\.wasm"):
        source.again(second.config)
    place.config.write_text("[filter]\nworkers = 3\n" + ROUTE)
    with pytest.raises(ConfigError, match=r"filter\.workers needs a restart"):
        source.again(second.config)


def test_a_worker_without_a_supervisor_loads_the_file(place: Place) -> None:
    source = RulesSource(place.config, {}, None)
    first = source.first()
    place.wasm.write_bytes(OTHER_WASM)
    assert source.again(first.config).policy.digest != first.policy.digest
    place.config.write_text("[filter]\nmax_age_s = 61\n" + OWN)
    with pytest.raises(ConfigError, match=r"filter\.max_age_s needs a restart"):
        source.again(first.config)


# Who reads it: the admin process


def test_the_admin_process_packs_the_policy_that_decides(place: Place) -> None:
    accepted = place.accept()
    place.wasm.write_bytes(OTHER_WASM)
    in_force = PolicyInForce(load_config(place.config, {}), {})
    deciding = accepted.rules(place.config, {}).policy.bundle
    assert in_force.bundle() == deciding
    place.accept()
    assert in_force.bundle() == take(place.config, {})[1].policy.bundle != deciding
    place.files.drop()
    place.wasm.unlink()
    assert json.loads(in_force.bundle())["engine"] == "wasm", "the last one known"


def test_without_a_supervisor_the_admin_process_goes_by_the_file(place: Place) -> None:
    assert PolicyInForce(load_config(place.config, {}), {}).bundle() == take(place.config, {})[1].policy.bundle
