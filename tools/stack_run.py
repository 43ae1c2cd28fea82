"""The process that owns a running stack: it starts the parts, tells what becomes of them, and ends them.

Envoy dies with the thread that started it, so this is one process with one thread, apart from the command that
asked for it. A part that ends by itself is reported in stack.json and stays ended: without it Envoy fails closed,
and a fault under study is not hidden by a restart.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from tools.stack_config import FILTER_WORKERS, StackError, StackFiles, StackSettings, check_ports_free
from tools.stack_parts import PlannedPart, planned_parts, prepare
from tools.stack_process import POLL_S, RUN_ID_VARIABLE, ProcessIdentity

if TYPE_CHECKING:
    from pathlib import Path

START_TIMEOUT_S: Final = 45.0
"""How long one part may take to become ready."""
STOP_GRACE_S: Final = 12.0
"""How long a part may drain; above the filter's drain_timeout_s."""
MAX_COMMAND_BYTES: Final = 256
LOG_LINES_ON_FAILURE: Final = 15


class StackRun:
    """A stack from its first process to its last."""

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        self._files = StackFiles(settings.var)
        self._run_id = uuid.uuid4().hex
        self._parts: list[PlannedPart] = []
        self._gone: dict[str, int] = {}
        self._stopping = False

    def main(self) -> int:
        """Run until told to stop; the exit status says whether the stack ever stood."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._stop)
        began = time.monotonic()
        try:
            self._start()
            with self._listen() as listener:
                self._write_state()
                # Only now: whoever reads this may tell it something at once.
                print(f"ready after {time.monotonic() - began:.1f} s", flush=True)
                self._serve_control(listener)
        except StackError as error:
            print(f"failed: {error}", flush=True)
            return 1
        finally:
            self._end()
        return 0

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _start(self) -> None:
        owner = {"process": asdict(ProcessIdentity.of(os.getpid())), "run_id": self._run_id}
        self._files.supervisor.write_text(json.dumps(owner))
        check_ports_free(self._settings)
        prepare(self._settings)
        os.environ[RUN_ID_VARIABLE] = self._run_id
        self._parts = planned_parts(self._settings, self._run_id)
        for planned in self._parts:
            self._start_part(planned)

    def _start_part(self, planned: PlannedPart) -> None:
        part = planned.part
        print(f"starting {part.name}", flush=True)
        part.start()
        self._gone.pop(part.name, None)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not planned.ready():
            if self._stopping:
                raise StackError("told to stop while starting")
            if part.exit_status is not None or time.monotonic() > deadline:
                how = f"ended with {part.exit_status}" if part.exit_status is not None else "was not ready in time"
                raise StackError(f"{part.name} {how}; end of {part.log}:\n{part.log_tail(LOG_LINES_ON_FAILURE)}")
            time.sleep(POLL_S)
        planned.then()

    def _listen(self) -> socket.socket:
        path = self._files.run / "control.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(8)
        return listener

    def _serve_control(self, listener: socket.socket) -> None:
        """Answer `stop NAME`, `start NAME` and `restart NAME`, and notice parts that end."""
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._stopping:
                if selector.select(timeout=0.1):
                    connection = listener.accept()[0]
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(1.0)
                        words = connection.recv(MAX_COMMAND_BYTES).decode().split()
                        connection.sendall(self._obey(words).encode())
                self._notice_ended_parts()

    def _obey(self, words: list[str]) -> str:
        planned = {each.part.name: each for each in self._parts}
        if len(words) != 2 or words[0] not in {"stop", "start", "restart"} or words[1] not in planned:
            return f"say stop, start or restart and one of {', '.join(planned)}"
        verb, chosen = words[0], planned[words[1]]
        try:
            if verb in {"stop", "restart"}:
                chosen.part.stop(STOP_GRACE_S)
            if verb in {"start", "restart"} and chosen.part.pid is None:
                self._start_part(chosen)
        except StackError as error:
            return str(error)
        finally:
            self._notice_ended_parts()
            self._write_state()
        return "ok"

    def _notice_ended_parts(self) -> None:
        gone: dict[str, int] = {}
        for planned in self._parts:
            status = planned.part.exit_status
            if status is not None:
                gone[planned.part.name] = status
        for name in gone.keys() - self._gone.keys():
            print(f"{name} ended with {gone[name]}", flush=True)
        if gone != self._gone:
            self._gone = gone
            self._write_state()

    def _write_state(self) -> None:
        temporary = self._files.state.with_suffix(".new")
        temporary.write_text(json.dumps(self._state(), indent=2) + "\n")
        temporary.rename(self._files.state)

    def _state(self) -> dict[str, object]:
        files, ports = self._files, self._settings.ports
        return {
            "state": "degraded" if self._gone else "ready",
            "ended": self._gone,
            "https": f"https://127.0.0.1:{ports.https}",
            "admin": f"http://127.0.0.1:{ports.admin}",
            "envoy_admin": f"http://127.0.0.1:{ports.envoy_admin}",
            "ca": str(files.tls / "ca.pem"),
            "config": str(files.toml),
            "envoy_config": str(files.envoy),
            "guarded_path": "/protected",
            "open_path": "/public",
            "demo_key": str(files.demo_key),
            "demo_subject": "demo",
            "keyring": str(files.keyring),
            "edge": self._settings.edge,
            "nonce_store": self._settings.nonce_store,
            "app_log": str(files.app_log),
            "sockets": [str(files.socket(worker)) for worker in range(FILTER_WORKERS)],
            "ports": asdict(ports),
            "pids": {each.part.name: each.part.pid for each in self._parts if each.part.pid is not None},
            "logs": {each.part.name: str(each.part.log) for each in self._parts},
            "kms": self._kms(),
            "run_id": self._run_id,
            "supervisor": os.getpid(),
        }

    def _kms(self) -> dict[str, str] | None:
        """Say where the key service is, and what mints its capabilities."""
        files, ports = self._files, self._settings.ports
        if not self._settings.kms:
            return None
        return {
            "http": f"http://127.0.0.1:{ports.kms}",
            "grpc": f"127.0.0.1:{ports.kms_grpc}",
            "metrics": f"http://127.0.0.1:{ports.kms_metrics}",
            "socket": str(files.kms_socket),
            "config": str(files.kms_toml),
            "root_key_file": str(files.kms_root),
        }

    def _end(self) -> None:
        """End the parts, the edge first, so that nothing is let in while the rest goes."""
        for planned in reversed(self._parts):
            planned.part.stop(STOP_GRACE_S)
        for path in (self._files.state, self._files.supervisor, self._files.run / "control.sock"):
            path.unlink(missing_ok=True)
        print("stopped", flush=True)


def run(settings_file: Path) -> int:
    """Run the stack that `settings_file` describes, detached: the caller gets 0 once the folder is ours.

    The lock is taken first and the forked process keeps it (one open file description), so whoever finds it free
    knows that no stack runs here.
    """
    settings = StackSettings.from_json(settings_file.read_text())
    with (StackFiles(settings.var).run / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("failed: a stack runs here already", flush=True)
            return 1
        if os.fork() > 0:
            os._exit(0)
        return StackRun(settings).main()


if __name__ == "__main__":
    from pathlib import Path

    sys.exit(run(Path(sys.argv[1])))
