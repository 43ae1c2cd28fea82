"""The admin process as the log's one owner: it integrates, waits for what may pass, and stops at what may not."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from extproc.accepted import Accepted, AcceptedFiles
from extproc.config import FilterConfig, load_config
from extproc.log_integrator import LogIntegrator
from extproc.log_section import LogSection
from extproc.log_service import LogService
from extproc.policy_bundle import request_algorithms
from extproc.policy_engine import read_policy_bundle, read_policy_files
from extproc.rules import rules_of
from receipts.checkpoint_jwks import verifier_keys_of
from receipts.cli_places import KEYS_NAME, POLICY_NAME, VERIFIER_KEYS_NAME, open_signer
from receipts.log import LogWriter
from receipts.log_errors import EntryUnknown, LogUnavailable
from receipts.log_notes import LogNotes
from receipts.log_reader import LogReader
from receipts.open_store import open_store
from receipts.receipt_id import WriterId
from receipts.rotation import rotate_keys
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.pack_parts import WRITERS, decision

WAIT_S = 20.0
ORIGIN = "signet.local/receipts"


class Integration:
    """A store, and an integrator of it that tests start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.section = LogSection(dir=folder / "log", max_batch_age_ms=0, poll_interval_ms=1)
        self.policy = b"{}"
        self.url = f"sqlite:{folder / 'receipts.sqlite3'}"
        self.store = SqliteReceiptStore(folder / "receipts.sqlite3")
        self._started: list[LogIntegrator] = []

    def integrator(self, section: LogSection | None = None) -> LogIntegrator:
        made = LogIntegrator(section or self.section, self.url, lambda: self.policy)
        self._started.append(made)
        made.start()
        return made

    def add(self, count: int) -> int:
        tail = self.store.writer_tail(WRITERS[0])
        self.store.append([decision(tail.wseq + number) for number in range(count)], tail)
        return tail.wseq + count

    def close(self) -> None:
        for each in self._started:
            each.stop()
        self.store.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Integration]:
    integration = Integration(tmp_path)
    yield integration
    integration.close()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        threading.Event().wait(0.005)


def test_what_is_stored_comes_under_a_signed_head(made: Integration) -> None:
    integrator = made.integrator()
    for count in (3, 5):
        assert integrator.catch_up(made.add(count), WAIT_S)
    assert LogReader(made.section.dir).head().size == 8
    assert integrator.problem is None
    kept = made.section.dir / POLICY_NAME
    until(lambda: kept.exists() and kept.read_bytes() == b"{}")
    made.policy = b'{"a":[]}'
    until(lambda: kept.read_bytes() == made.policy)
    assert (made.section.dir / KEYS_NAME).stat().st_mode & 0o777 == 0o600


def test_catching_up_has_a_bound(made: Integration) -> None:
    assert not made.integrator().catch_up(made.add(1) + 1, 0.05)


def test_a_second_owner_waits_for_the_first(made: Integration) -> None:
    made.section.dir.mkdir()
    first = LogWriter(made.store, made.section.dir, open_signer(made.section.dir, ORIGIN, create=True), origin=ORIGIN)
    second = made.integrator()
    until(lambda: second.problem == "log_busy")
    first.close()
    assert second.catch_up(made.add(1), WAIT_S)
    until(lambda: second.problem is None)


def test_key_file_that_others_may_read_is_a_problem_until_it_is_private(made: Integration) -> None:
    open_signer(made.section.dir, ORIGIN, create=True)
    path = made.section.dir / KEYS_NAME
    path.chmod(0o644)
    integrator = made.integrator()
    until(lambda: integrator.problem == "key_file")
    path.chmod(0o600)
    assert integrator.catch_up(made.add(1), WAIT_S)


def test_keys_of_another_log_are_a_problem(made: Integration) -> None:
    open_signer(made.section.dir, "other.log", create=True)
    integrator = made.integrator()
    until(lambda: integrator.problem == "key_file")


def test_log_that_contradicts_its_store_is_never_signed_again(made: Integration) -> None:
    first = made.integrator()
    assert first.catch_up(made.add(3), WAIT_S)
    first.stop()
    tile = made.section.dir / "tile/0/000.p/3"
    tile.write_bytes(bytes(96))
    second = made.integrator()
    until(lambda: second.problem in ("log_forked", "store_corrupt"))
    made.add(1)
    assert not second.catch_up(4, 0.05)
    assert LogReader(made.section.dir).head().size == 3


def test_keys_rotate_when_they_are_old(made: Integration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.log_integrator.LOOK_AT_KEYS_EVERY_S", 0.0)
    monkeypatch.setattr("extproc.log_integrator.DAY_S", -1)
    integrator = made.integrator(replace(made.section, max_key_age_days=90))
    until(lambda: len(open_signer(made.section.dir, ORIGIN, create=True).verifier_keys()) >= 4)
    integrator.stop()


# -- the service


@pytest.fixture
def config(tmp_path: Path) -> FilterConfig:
    path = tmp_path / "filter.toml"
    path.write_text(
        '[[route]]\nname = "b"\npath = "/b/**"\nsubjects = ["zoe", "adam"]\nalgorithms = ["ed25519"]\n'
        '[[route]]\nname = "a"\npath = "/a/**"\nguard = "open"\n'
    )
    return load_config(path, {})


def routes_of(bundle: bytes) -> list[str]:
    return list(json.loads(bundle)["data"]["signet"]["routes"])


def test_bundle_is_what_receipts_carry_the_digest_of(config: FilterConfig) -> None:
    bundle = read_policy_bundle(config)
    routes = json.loads(bundle)["data"]["signet"]["routes"]
    assert {name: route["subjects"] for name, route in routes.items()} == {"b": ["adam", "zoe"]}
    assert json.loads(bundle)["modules"]["shield.rego"].startswith("# What a verified request")
    assert hashlib.sha256(bundle).hexdigest() == rules_of(config).policy.digest
    assert request_algorithms(config) == ("ed25519",)


def test_service_without_a_log_says_so_and_with_one_has_its_keys(config: FilterConfig) -> None:
    store = open_store(config.receipts.url)
    service = LogService(config, store, lambda: time.time_ns() // 1_000_000)
    with pytest.raises(EntryUnknown):
        service.source()
    with service.running():
        until(lambda: (config.log.dir / "checkpoint").exists())
        source = service.source()
        assert source.keys == open_signer(config.log.dir, config.log.origin, create=False).verifier_keys()
        assert service.source().reader is source.reader
        assert service.problem is None
    (config.log.dir / KEYS_NAME).chmod(0o644)
    with pytest.raises(LogUnavailable):
        service.source()
    store.close()


def test_the_policy_is_that_of_the_configuration_that_the_supervisor_accepted_last(config: FilterConfig) -> None:
    store = open_store(config.receipts.url)
    service = LogService(config, store, lambda: time.time_ns() // 1_000_000)
    config.filter.socket_dir.mkdir(parents=True)
    kept, policy = AcceptedFiles(config.filter.socket_dir), read_policy_files(config)

    def accept(text: str) -> None:
        kept.keep(Accepted(text.encode(), policy))

    with service.running():
        until(lambda: (config.log.dir / "checkpoint").exists())
        assert service.source().policy == read_policy_bundle(config)
        accept('[[route]]\nname = "c"\npath = "/c/**"\nsubjects = ["eve"]\nalgorithms = ["ecdsa-p256-sha256"]\n')
        assert routes_of(service.source().policy) == ["c"]
        assert service.source().request_algorithms == ("ecdsa-p256-sha256",)
        until(lambda: routes_of((config.log.dir / POLICY_NAME).read_bytes()) == ["c"])
        # What is not there, or is no configuration, is nothing that the workers decide by.
        accept("[[route]]")
        assert routes_of(service.source().policy) == ["c"]
        kept.drop()
        assert routes_of(service.source().policy) == ["c"]
    store.close()


def test_the_public_keys_are_kept_beside_the_log_and_follow_a_rotation(made: Integration) -> None:
    made.add(3)
    integrator = made.integrator()
    assert integrator.catch_up(3, WAIT_S)
    path = made.folder / "log" / VERIFIER_KEYS_NAME

    def published() -> set[str]:
        return {key.text for key in verifier_keys_of(json.loads(path.read_bytes()), ORIGIN)}

    signer = open_signer(made.folder / "log", ORIGIN, create=False)
    first = {key.text for key in signer.verifier_keys()}
    assert published() == first
    assert b'"d"' not in path.read_bytes()
    rotate_keys(
        made.store,
        LogNotes(made.folder / "log"),
        signer,
        writer=WriterId(str(uuid.uuid4())),
        now_ms=time.time_ns() // 1_000_000,
        random_bytes=os.urandom,
    )
    assert integrator.catch_up(4, WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while published() == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert published() > first
