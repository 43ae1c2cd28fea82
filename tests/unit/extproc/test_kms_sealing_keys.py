"""The filter's keys with a real key service, which is killed and started again."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from extproc.config import ConfigError, load_config
from extproc.custody import LOG_KEYS_NAME, degraded_text, open_log_signer, open_sealing_keys, rotate_sealing_key
from extproc.errors import ServerFault
from extproc.kms_sealing_keys import KmsSealingKeys, SealingKeysAway
from extproc.sealing_keys import FileSealingKeys, SealingKeyError
from extproc.wrapped_keys import read_wrapped, rotate_wrapped
from kms.checkpoint_signer import KmsCheckpointSigner
from kms.errors import BadRequest, Conflict, KmsError, NotFound, StoreUnavailable
from kms.kid import parse_key_name
from kms.messages import UnwrapResponse
from kms.mint import Grant
from pch.errors import StaleChallenge
from receipts.checkpoint_keys import FileCheckpointSigner, KeyFileError
from receipts.cli_places import open_signer
from tests.support.kms_process import KmsProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from extproc.config import FilterConfig
    from kms.messages import UnwrapRequest

MAX_AGE_S = 60


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def until(holds: Callable[[], object], timeout_s: float = 15.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "did not come about in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmsProcess]:
    with KmsProcess(tmp_path_factory.mktemp("kms") / "kms") as service:
        yield service


@pytest.fixture(scope="module")
def sealing_key(service: KmsProcess) -> str:
    return service.create("ml-kem", "sealing").partition("#")[0]


class Opened:
    """Keys of several workers over one file; closed at the end."""

    def __init__(self, folder: Path, service: KmsProcess, key: str) -> None:
        self.path, self.service, self.key = folder / "wrapped.json", service, key
        self.keys: list[KmsSealingKeys] = []

    def worker(self, *, clock_ms: Callable[[], int] = now_ms, wait_s: float = 5.0) -> KmsSealingKeys:
        client = self.service.client(timeout_s=1.0, name=f"worker-{uuid.uuid4()}")
        keys = KmsSealingKeys(self.path, client, self.key, clock_ms, MAX_AGE_S)
        self.keys.append(keys)
        keys.start(wait_s)
        return keys


@pytest.fixture
def opened(tmp_path: Path, service: KmsProcess, sealing_key: str) -> Iterator[Opened]:
    opened = Opened(tmp_path, service, sealing_key)
    yield opened
    close(opened)


def close(opened: Opened) -> None:
    for keys in opened.keys:
        keys.close()
        keys._thread.join(10)


def test_workers_share_one_history_of_epochs_and_no_key_is_in_the_file(opened: Opened) -> None:
    first, second = opened.worker(), opened.worker()
    assert first.current() == second.current()
    assert first.current().epoch == 1
    assert (first.problem, first.degraded) == (None, None)
    text = opened.path.read_text()
    assert "key_b64" not in text
    assert first.current().key.hex() not in text
    client = opened.service.client(name="rotating")
    assert rotate_wrapped(opened.path, client, opened.key, now_ms, MAX_AGE_S) == 2
    until(lambda: first.current().epoch == second.current().epoch == 2)
    assert first.current() == second.current()
    assert first.by_epoch(1) == second.by_epoch(1)
    assert first.by_epoch(1) != first.by_epoch(2)
    with pytest.raises(StaleChallenge):
        first.by_epoch(3)


def test_workers_that_start_at_once_end_with_one_file(opened: Opened) -> None:
    threads = [threading.Thread(target=opened.worker) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: all(keys._keys is not None for keys in opened.keys))
    assert len({keys.current() for keys in opened.keys}) == 1
    assert len(read_wrapped(opened.path)) == 1


def test_a_retired_epoch_opens_for_max_age_and_is_then_forgotten(opened: Opened) -> None:
    now = [now_ms()]
    keys = opened.worker(clock_ms=lambda: now[0])
    client = opened.service.client(name="rotating")
    rotate_wrapped(opened.path, client, opened.key, lambda: now[0], MAX_AGE_S)
    until(lambda: keys.current().epoch == 2)
    now[0] += MAX_AGE_S * 1000
    assert keys.by_epoch(1)
    now[0] += 1
    with pytest.raises(StaleChallenge):
        keys.by_epoch(1)
    rotate_wrapped(opened.path, client, opened.key, lambda: now[0], MAX_AGE_S)
    assert [each.epoch for each in read_wrapped(opened.path)] == [2, 3]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(epochs=[]),
        lambda document: document["epochs"][0].update(retired_ms=1),
        lambda document: document["epochs"].append(document["epochs"][0]),
        lambda document: document["epochs"][0].update(epoch=-1),
        lambda document: document["epochs"][0].update(wrapped_b64=""),
        lambda document: document["epochs"][0].update(x=1),
        lambda document: document.update(x=1),
    ],
)
def test_a_file_that_cannot_be_used_keeps_the_keys_of_before(
    opened: Opened, change: Callable[[dict[str, Any]], None]
) -> None:
    keys = opened.worker()
    before = keys.current()
    good = opened.path.read_text()
    document = json.loads(good)
    change(document)
    opened.path.write_text(json.dumps(document))
    with pytest.raises(SealingKeyError):
        read_wrapped(opened.path)
    until(lambda: keys.problem is not None)
    assert keys.current() == before
    opened.path.write_text(good)
    until(lambda: keys.problem is None)


def test_an_altered_envelope_is_never_a_key(opened: Opened) -> None:
    keys = opened.worker()
    before = keys.current()
    document = json.loads(opened.path.read_text())
    wrapped = document["epochs"][0]["wrapped_b64"]
    document["epochs"][0]["wrapped_b64"] = wrapped[:-8] + ("AAAAAAAA" if wrapped[-8:] != "AAAAAAAA" else "BBBBBBBB")
    opened.path.write_text(json.dumps(document))
    until(lambda: keys.degraded is not None)
    assert keys.current() == before
    other = opened.worker(wait_s=0.5)
    with pytest.raises(SealingKeysAway):
        other.current()
    assert other.problem is not None


def test_through_an_outage_the_keys_serve_and_afterwards_all_is_well_again(tmp_path: Path) -> None:
    with KmsProcess(tmp_path / "kms") as service:
        opened = Opened(tmp_path, service, service.create("ml-kem", "sealing").partition("#")[0])
        try:
            keys = opened.worker()
            before = keys.current()
            service.kill()
            until(lambda: keys.degraded is not None)
            assert (keys.current(), keys.by_epoch(1), keys.problem) == (before, before, None)
            # A worker that starts now has no key: it says so, refuses, and waits for nobody.
            late = opened.worker(wait_s=0.1)
            with pytest.raises(SealingKeysAway):
                late.current()
            with pytest.raises(SealingKeysAway):
                late.by_epoch(1)
            assert late.problem is not None
            with pytest.raises(Exception, match="not reached"):
                rotate_wrapped(opened.path, service.client(name="rotating"), opened.key, now_ms, MAX_AGE_S)
            service.start()
            until(lambda: keys.degraded is None and late.problem is None)
            assert late.current() == before
            client = service.client(name="rotating")
            rotate_wrapped(opened.path, client, opened.key, now_ms, MAX_AGE_S)
            until(lambda: keys.current().epoch == late.current().epoch == 2)
        finally:
            close(opened)


# What anyone may cause, and what an older epoch may spoil

KEY = "core/sealing/ml-kem/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"


class Counting:
    """A key service that counts; `refused` says what it answers for a version of the key."""

    def __init__(self, refused: dict[str, KmsError] | None = None) -> None:
        self.refused = refused or {}
        self.asked: list[str] = []

    def unwrap(self, request: UnwrapRequest) -> UnwrapResponse:
        self.asked.append(request.kid[-3:])
        if request.kid[-2:] in self.refused:
            raise self.refused[request.kid[-2:]]
        return UnwrapResponse(base64.b64encode(b"k" * 32).decode(), "ml-kem", request.kid)

    def get_key(self, request: object) -> None:
        self.asked.append("key")


def counted(tmp_path: Path, client: Counting, epochs: int = 1, wait_s: float = 5.0) -> KmsSealingKeys:
    retired = [None if number == epochs else now_ms() for number in range(1, epochs + 1)]
    entries = [
        {"epoch": n, "kid": f"{KEY}#v{n}", "wrapped_b64": "AAAA", "created_ms": now_ms(), "retired_ms": retired[n - 1]}
        for n in range(1, epochs + 1)
    ]
    path = tmp_path / "wrapped.json"
    path.touch(0o600)
    path.write_text(json.dumps({"epochs": entries}))
    keys = KmsSealingKeys(path, client, KEY, now_ms, MAX_AGE_S)  # type: ignore[arg-type]
    keys.start(wait_s)
    return keys


def test_forged_epochs_cost_the_service_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, looks = Counting(), []
    keys = counted(tmp_path, client)

    def look(*_: object) -> bool:
        looks.append(1)
        return True

    monkeypatch.setattr("extproc.kms_sealing_keys.unchanged", look)
    until_s = time.monotonic() + 0.8
    while time.monotonic() < until_s:
        with pytest.raises(StaleChallenge):
            keys.by_epoch(999)
        time.sleep(0.001)
    keys.close()
    keys._thread.join(10)
    assert client.asked == ["#v1"], "less than ASK_EVERY_S went by"
    assert 1 <= len(looks) <= 6, "a look each quarter of a second, and one more that was forced"


def test_a_look_that_comes_early_counts_for_the_time_that_went_by(tmp_path: Path) -> None:
    keys = KmsSealingKeys(tmp_path / "none", Counting(), KEY, now_ms, MAX_AGE_S, lambda: 7.0)  # type: ignore[arg-type]
    keys.reload()
    keys._pause(60.0)
    assert keys._unasked_s == 0.0


@pytest.mark.parametrize("error", [Conflict, NotFound, BadRequest])
def test_a_retired_epoch_that_opens_nothing_keeps_no_other_from_being_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: type[KmsError]
) -> None:
    client = Counting({"v1": error("not this one", reason="version_fenced")})
    keys = counted(tmp_path, client, epochs=3)
    try:
        assert keys.problem is None
        assert keys.current().epoch == 3
        assert keys.by_epoch(2).epoch == 2
        with pytest.raises(StaleChallenge):
            keys.by_epoch(1)
        assert client.asked[:3] == ["#v3", "#v1", "#v2"]
        keys._seen = None  # As when the file changes.
        keys.reload()
        until(lambda: client.asked.count("#v1") == 2)
        until(lambda: keys._seen is not None)
        told = [each.getMessage() for each in caplog.records if "opens nothing" in each.getMessage()]
        assert told == ["sealing keys: epoch 1, retired, opens nothing: version_fenced"]
    finally:
        keys.close()
        keys._thread.join(10)


@pytest.mark.parametrize(
    "refused",
    [{"v2": Conflict("fenced")}, {"v1": StoreUnavailable("away")}],
    ids=["the current one", "the service is away"],
)
def test_what_is_needed_or_may_come_yet_is_asked_for_again(tmp_path: Path, refused: dict[str, KmsError]) -> None:
    client = Counting(refused)
    keys = counted(tmp_path, client, epochs=2, wait_s=0.05)
    try:
        until(lambda: client.asked.count("#v2") >= 2)
        assert keys.problem is not None
        client.refused = {}
        until(lambda: keys.problem is None)
        assert keys.by_epoch(1).epoch == 1
        assert keys.current().epoch == 2
    finally:
        keys.close()
        keys._thread.join(10)


# What the TOML file chooses

ROUTE = '[[route]]\nname = "a"\npath = "/**"\n'


def configured(tmp_path: Path, service: KmsProcess | None = None, **kms: str) -> FilterConfig:
    lines = ["[kms]"]
    if service is not None:
        scopes = ("kms:read", "kms:sign", "kms:wrap", "kms:unwrap", "kms:rotate")
        token = service.token_file(Grant(scopes, ("core",), expires_at_s=int(time.time()) + 600), tmp_path.name)
        lines += [f'url = "{service.url}"', f'token_file = "{token}"']
    lines += [f'{name} = "{value}"' for name, value in kms.items()]
    (tmp_path / "signet.toml").write_text("\n".join(lines) + "\n" + ROUTE)
    return load_config(tmp_path / "signet.toml", {})


@pytest.mark.parametrize(
    "kms",
    [
        {"url": "http://example.com:1"},
        {"url": "unix:relative"},
        {"sealing_key": "x"},
        {"sealing_key": "core/a/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"},
        {"sealing_key": "core/a/ml-kem/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v1"},
        {"log_key": "core/audit/hybrid/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"},
        {"sealing_key": "core/a/ml-kem/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"},
        {"log_key": "core/tlog/hybrid/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"},
    ],
    ids=str,
)
def test_a_configuration_that_could_not_work_is_refused(tmp_path: Path, kms: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="kms"):
        configured(tmp_path, **kms)


def test_without_the_section_everything_is_in_files(tmp_path: Path) -> None:
    config = configured(tmp_path)
    keys = open_sealing_keys(config, now_ms)
    assert isinstance(keys, FileSealingKeys)
    assert degraded_text(keys) is None
    assert rotate_sealing_key(config, now_ms) == 2
    assert isinstance(open_log_signer(config, create=True), FileCheckpointSigner)


def test_with_the_section_both_kinds_of_keys_are_the_services(
    tmp_path: Path, service: KmsProcess, sealing_key: str
) -> None:
    log_key = service.create("hybrid", "tlog").partition("#")[0]
    config = configured(tmp_path, service, sealing_key=sealing_key, log_key=log_key)
    keys = open_sealing_keys(config, now_ms)
    assert isinstance(keys, KmsSealingKeys)
    assert keys.current().epoch == 1
    assert rotate_sealing_key(config, now_ms) == 2
    until(lambda: keys.current().epoch == 2)
    assert degraded_text(keys) is None
    keys.close()
    keys._thread.join(10)
    with pytest.raises(KeyFileError, match="no keys yet"):
        open_log_signer(config, create=False)
    signer = open_log_signer(config, create=True)
    assert isinstance(signer, KmsCheckpointSigner)
    assert open_log_signer(config, create=False).verifier_keys() == signer.verifier_keys()
    assert parse_key_name(log_key)
    assert (config.log.dir / LOG_KEYS_NAME).exists()
    with pytest.raises(KeyFileError, match="key service"):
        open_log_signer(configured(tmp_path), create=True)
    (config.log.dir / LOG_KEYS_NAME).unlink()
    open_signer(config.log.dir, config.log.origin, create=True)
    with pytest.raises(KeyFileError, match="another log"):
        open_log_signer(config, create=True)


def test_a_missing_token_stops_the_worker_with_its_reason(tmp_path: Path, sealing_key: str) -> None:
    config = configured(tmp_path, url="unix:/nonexistent", sealing_key=sealing_key)
    with pytest.raises(ServerFault, match="token"):
        open_sealing_keys(config, now_ms)
    with pytest.raises(ServerFault, match="token"):
        rotate_sealing_key(config, now_ms)


def test_a_rotation_without_the_service_is_a_fault_that_says_so(tmp_path: Path, sealing_key: str) -> None:
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("abc")
    config = configured(tmp_path, url="unix:/nonexistent", token_file=str(tmp_path / "token"), sealing_key=sealing_key)
    (tmp_path / "sealing-wrapped.json").write_text(
        '{"epochs":[{"epoch":1,"kid":"k","wrapped_b64":"AA==","created_ms":0,"retired_ms":null}]}'
    )
    (tmp_path / "sealing-wrapped.json").chmod(0o600)
    with pytest.raises(ServerFault, match="kms_unreachable"):
        rotate_sealing_key(config, now_ms)
