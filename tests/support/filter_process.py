"""The filter's real processes for tests: started with a folder of their own, ended by their process ids."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from tests.support.check_calls import FilterCalls, challenge_of, check_of, unsigned
from tests.support.filter_parts import KeyPair, signed_message

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 60.0
POLL_S = 0.02
CONFIG = """
[filter]
workers = {workers}
socket_dir = "run"
drain_timeout_s = {drain_timeout_s}
[nonce_store]
timeout_ms = {nonce_timeout_ms}
[keyring]
poll_interval_ms = 50
[admin]
port = {admin_port}
[[route]]
name = "open"
path = "/public/**"
guard = "open"
[[route]]
name = "protected"
path = "/protected/**"
"""


def until(look: Callable[[], T], what: str, *, within_s: float = DEADLINE_S) -> T:
    """Wait until `look` gives something true, and return that. Fails past the deadline."""
    deadline_s = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(POLL_S)
    return found


def running(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


class FilterFolder:
    """A configuration with its keyring, and the processes started on it."""

    def __init__(self, folder: Path, **values: int) -> None:
        self.folder = folder
        self.config = folder / "filter.toml"
        defaults = {"workers": 2, "drain_timeout_s": 5, "nonce_timeout_ms": 250, "admin_port": 8080}
        self.config_text = CONFIG.format(**(defaults | values))
        self.config.write_text(self.config_text)
        self.key = KeyPair.new("alice")
        self.keyring = folder / "keyring.json"
        self.keyring.write_text(json.dumps([self.key.entry()]))
        self.keyring.chmod(0o600)
        (folder / "run").mkdir(mode=0o700)
        self.log = folder / "filter.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._stream = 0

    def start(self, *arguments: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start `python -m extproc ARGUMENTS --config …`; its log is appended to `log`."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "extproc", *arguments, "--config", str(self.config)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=pass_fds,
            )
        self.processes.append(process)
        return process

    def socket(self, index: int = 0) -> Path:
        return self.folder / "run" / f"signet-{index}.sock"

    def status(self, index: int = 0) -> dict[str, Any]:
        """Give a worker's status file; empty when there is none."""
        with contextlib.suppress(FileNotFoundError):
            status: dict[str, Any] = json.loads(self.socket(index).with_suffix(".status.json").read_text())
            return status
        return {}

    def pid(self, index: int = 0) -> int:
        """Wait for a worker's status file and give its process id."""
        status = until(lambda: self.status(index), f"worker {index} is up; its log:\n{self.logged()}")
        return int(status["pid"])

    def logged(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def messages(self) -> list[str]:
        lines = (line for line in self.logged().splitlines() if line.startswith("{"))
        return [json.loads(line)["message"] for line in lines]

    def wait_logged(self, text: str, *, times: int = 1, within_s: float = DEADLINE_S) -> None:
        until(
            lambda: sum(text in message for message in self.messages()) >= times,
            f"{text!r} in the log",
            within_s=within_s,
        )

    def ask(self, calls: FilterCalls, target: str = "/protected") -> CheckResponse:
        """Send an unsigned request."""
        self._stream += 1
        return calls.check(check_of(unsigned(target), stream_id=str(self._stream)))

    def signed(self, challenge: str, target: str = "/protected") -> Any:
        """Make a signed Check with a stream id of its own."""
        self._stream += 1
        message = signed_message(self.key, challenge, target=target, created_s=int(time.time()), lifetime_s=30)
        return check_of(message, stream_id=str(self._stream))

    def pass_once(self, calls: FilterCalls) -> CheckResponse:
        """Get a challenge and send a request that is signed with it."""
        return calls.check(self.signed(challenge_of(self.ask(calls))))

    def end(self) -> None:
        """End what was started here: first asked, then made to; then the workers that a killed supervisor left."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        mark = str(self.config).encode()
        for status_file in (self.folder / "run").glob("*.status.json"):
            pid = int(json.loads(status_file.read_text())["pid"])
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # Ours beyond doubt: its command line names our own folder.
                if mark in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def filter_folder(**values: int) -> Iterator[FilterFolder]:
    # Not tmp_path: a UNIX socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="signet-") as name:
        folder = FilterFolder(Path(name), **values)
        try:
            yield folder
        finally:
            folder.end()
