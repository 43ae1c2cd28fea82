"""tools/stack.py: it starts what it says, names the port in use, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kms.mint import Grant, mint
from kms.root_key import read_roots
from tests.e2e.stack_client import AUTHZ, double_stack
from tools.stack import Stack, down, is_running, read_state, up
from tools.stack_config import REPOSITORY, Ports, StackError, StackFiles, StackSettings
from tools.stack_process import ProcessIdentity, end, processes_of_run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


def double(var: Path, **settings: Any) -> StackSettings:
    command = ("{python}", str(AUTHZ), "{var}")
    ports = settings.pop("ports", None) or Ports.free()
    return StackSettings(var, ports, filter_command=command, admin_command=(), edge="native-none", **settings)


@pytest.fixture
def var(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    down(tmp_path)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(REPOSITORY / "tools" / "stack.py"), *words]
    return subprocess.run(program, capture_output=True, text=True, timeout=120)


def examples(files: StackFiles) -> subprocess.CompletedProcess[str]:
    """Run the key service's documented examples against the stack's own, with a capability of tenant `core`."""
    addresses = tomllib.loads(files.kms_toml.read_text())
    scopes = tuple(f"kms:{scope}" for scope in ("read", "sign", "verify", "wrap", "unwrap", "rotate"))
    now_s = int(time.time())
    token, _ = mint(
        read_roots(files.kms_root)[-1], Grant(scopes, ("core",), expires_at_s=now_s + 600), now_s, os.urandom
    )
    environ = {
        **os.environ,
        "MACAROON": token,
        "KMS_URL": f"http://{addresses['bind_addr']}",
        "KMS_GRPC": addresses["grpc_addr"],
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
    }
    script = REPOSITORY / "docs" / "reference" / "kms-examples.sh"
    return subprocess.run([script], env=environ, capture_output=True, text=True, timeout=60)


def test_command_line_starts_a_whole_stack_once_and_stops_it(var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RON_KMS_DEADLINE_AUDIT_APPEND", "2s")  # the examples are not about the disk
    started = command("up", "--free-ports", "--var", str(var))
    assert started.returncode == 0, started.stderr
    state = json.loads((var / "stack.json").read_text())
    assert state["state"] == "ready"
    assert state["https"].startswith("https://127.0.0.1:")
    for name in ("ca", "config", "demo_key", "keyring", "envoy_config"):
        assert Path(state[name]).is_file(), name
    assert {"app", "kms", "filter", "admin", "envoy"} == set(state["pids"]) == set(state["logs"])
    done = examples(StackFiles(var))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all examples hold\n")
    again = command("up", "--free-ports", "--var", str(var))
    assert again.returncode == 0
    assert "already running" in again.stdout
    assert command("status", "--var", str(var)).returncode == 0
    mine = list(processes_of_run(state["run_id"]))
    assert len(mine) >= 8, "supervisor, app, key service and its worker, filter and its workers, admin, envoy"
    stopped = command("down", "--var", str(var))
    assert stopped.stdout == "signet: stopped\n"
    assert not [each for each in mine if each.alive()]
    assert not list(processes_of_run(state["run_id"]))
    assert not (var / "stack.json").exists()
    assert command("down", "--var", str(var)).stdout == "signet: nothing was running\n"


def test_private_files_are_their_owners_alone(var: Path) -> None:
    up(double(var), quiet=True)
    for name in ("demo-key.jwk.json", "tls/server.key", "tls/server-with-key.pem"):
        assert (var / name).stat().st_mode & 0o777 == 0o600, name
    assert (var / "run").stat().st_mode & 0o777 == 0o700


def test_second_start_keeps_keys_and_certificates(var: Path) -> None:
    kept = ("demo-key.jwk.json", "keyring.json", "tls/ca.pem", "tls/server.key")
    up(double(var), quiet=True)
    before = [(var / name).read_bytes() for name in kept]
    down(var)
    up(double(var), quiet=True)
    assert [(var / name).read_bytes() for name in kept] == before


@pytest.mark.parametrize("name", ["https", "envoy_admin", "app"])
def test_port_in_use_is_named_and_nothing_is_left(var: Path, name: str) -> None:
    settings = double(var)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", getattr(settings.ports, name)))
        taken.listen()
        with pytest.raises(StackError, match=rf"port {getattr(settings.ports, name)} \({name}\) is in use"):
            up(settings, quiet=True)
    assert not is_running(var)


def test_part_that_cannot_start_is_named_with_its_last_words_and_nothing_is_left(var: Path) -> None:
    settings = StackSettings(
        var, Ports.free(), filter_command=("{python}", "-c", "raise SystemExit('no such luck')"), admin_command=()
    )
    with pytest.raises(StackError, match=r"filter ended with 1(.|\n)*no such luck"):
        up(settings, quiet=True)
    assert not is_running(var)
    assert not (var / "stack.json").exists()


def test_part_that_ends_is_reported_and_can_be_started_again(tmp_path: Path) -> None:
    with double_stack(tmp_path) as running:
        os.kill(running.stack.state["pids"]["app"], signal.SIGKILL)
        deadline = time.monotonic() + 5
        while running.stack.state["state"] != "degraded":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert running.stack.state["ended"] == {"app": -signal.SIGKILL}
        assert running.get("/protected").status == 503
        running.stack.start_part("app")
        assert running.stack.state["state"] == "ready"
        assert running.get("/protected").status == 200


def test_unknown_part_is_refused(var: Path) -> None:
    up(double(var), quiet=True)
    done = command("restart", "everything", "--var", str(var))
    assert done.returncode == 1
    assert "app, filter, envoy" in done.stderr


def test_killed_supervisor_leaves_nothing_running_after_down(var: Path) -> None:
    state = up(double(var), quiet=True)
    everything = list(processes_of_run(state["run_id"]))
    os.kill(state["supervisor"], signal.SIGKILL)
    assert down(var)
    # One that has given its memory back carries no mark any more, and runs until the kernel is through with it.
    deadline = time.monotonic() + 2
    while any(each.alive() for each in everything):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not is_running(var)


def test_stack_that_is_still_starting_can_be_stopped(var: Path) -> None:
    never_ready = StackSettings(
        var, Ports.free(), filter_command=("{python}", "-c", "import time; time.sleep(60)"), admin_command=()
    )
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(up, never_ready, quiet=True)
        deadline = time.monotonic() + 20
        while "starting filter" not in _log(var):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert down(var)
        with pytest.raises(StackError, match="told to stop"):
            starting.result(20)
    assert not is_running(var)


def _log(var: Path) -> str:
    log = var / "log" / "stack.log"
    return log.read_text() if log.exists() else ""


def test_process_that_took_over_a_pid_is_never_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        try:
            mine = ProcessIdentity.of(bystander.pid)
            earlier = ProcessIdentity(mine.pid, mine.start_ticks - 1, mine.boot_id)
            other_boot = ProcessIdentity(mine.pid, mine.start_ticks, "another")
            for stranger in (earlier, other_boot):
                assert not stranger.alive()
                end(stranger, 0.1)
            assert bystander.poll() is None
            end(mine, 2.0)
            assert bystander.wait(5) == -signal.SIGTERM
        finally:
            bystander.kill()


def test_two_stacks_run_side_by_side(tmp_path: Path) -> None:
    with double_stack(tmp_path / "one") as one, double_stack(tmp_path / "two") as two:
        assert one.get("/protected").status == two.get("/protected").status == 200
        assert len(one.checks()) == len(two.checks()) == 1


def test_stack_on_redis_with_the_real_filter(var: Path) -> None:
    with Stack(StackSettings(var, Ports.free(), nonce_store="redis")) as stack:
        assert "redis" in stack.state["pids"]
        assert 'kind = "redis"' in stack.files.toml.read_text()


def test_without_a_stack_there_is_no_state(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no stack runs"):
        read_state(tmp_path)


@pytest.mark.parametrize("bad", [{"edge": "c"}, {"nonce_store": "disk"}, {"upstream": "http3"}])
def test_settings_outside_their_choices_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(StackError, match="is not"):
        StackSettings(tmp_path, **bad)


def test_folder_too_deep_for_unix_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="too long a path"):
        StackSettings(tmp_path / ("x" * 100))


def test_parts_script_says_one_line_per_part_and_takes_no_odd_names() -> None:
    script = str(REPOSITORY / "tools" / "parts.sh")
    done = subprocess.run([script, "haproxy", "redis", "go", "../x", "-y"], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "haproxy: present",
        "redis: present",
        "go: present",
        "../x: could not (not a package name)",
        "-y: could not (not a package name)",
    ]
    assert done.returncode == 1
