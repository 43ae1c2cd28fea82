#!/usr/bin/env python3
"""Start and stop the whole local stack: Envoy, the filter, its key service and admin process, an example app.

    python tools/stack.py up [--edge a|b|native-none] [--nonce-store sqlite|redis] [--no-kms] [--free-ports] [--var DIR]
    python tools/stack.py down | status | restart PART [--var DIR]

`up` writes DIR/stack.json when everything answers, and names the port in use when it cannot start. Stacks in different
folders run side by side. Tests use `with Stack(StackSettings(var=…, ports=Ports.free())) as stack:`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.stack_config import (
    EDGES,
    NONCE_STORES,
    REPOSITORY,
    Ports,
    StackError,
    StackFiles,
    StackSettings,
    check_ports_free,
)
from tools.stack_process import POLL_S, ProcessIdentity, end, processes_of_run

if TYPE_CHECKING:
    from types import TracebackType

UP_TIMEOUT_S: Final = 360.0
"""Above everything that starting may take: a first build of the TLS module, then each part."""
SPAWN_TIMEOUT_S: Final = 30.0
DOWN_TIMEOUT_S: Final = 60.0
LEFTOVER_GRACE_S: Final = 5.0
CONTROL_TIMEOUT_S: Final = 70.0


@dataclass(slots=True)
class Stack:
    """A stack that runs while the `with` block does; `state` is what stack.json says."""

    settings: StackSettings

    def __enter__(self) -> Stack:
        up(self.settings, quiet=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        down(self.settings.var)

    @property
    def files(self) -> StackFiles:
        """Where everything lies."""
        return StackFiles(self.settings.var)

    @property
    def state(self) -> dict[str, Any]:
        """Read stack.json as it is now."""
        return read_state(self.settings.var)

    def app_requests(self) -> list[dict[str, Any]]:
        """Give every request that reached the app so far."""
        log = self.files.app_log
        # A line that is still being written is not there yet.
        return [json.loads(line) for line in log.read_bytes().rpartition(b"\n")[0].splitlines()] if log.exists() else []

    def stop_part(self, name: str) -> None:
        """Stop one part and leave the others running."""
        control(self.settings.var, "stop", name)

    def start_part(self, name: str) -> None:
        """Start a stopped part again and wait until it is ready."""
        control(self.settings.var, "start", name)

    def restart_part(self, name: str) -> None:
        """Stop and start one part."""
        control(self.settings.var, "restart", name)


def read_state(var: Path) -> dict[str, Any]:
    """Read DIR/stack.json. Raises `StackError` when no stack runs there."""
    try:
        state: dict[str, Any] = json.loads(StackFiles(var).state.read_text())
    except FileNotFoundError as error:
        raise StackError(f"no stack runs in {var}") from error
    return state


def is_running(var: Path) -> bool:
    """Tell whether a supervising process holds DIR; the lock, not a file, is what counts."""
    lock = StackFiles(var).run / "lock"
    if not lock.exists():
        return False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def up(settings: StackSettings, *, quiet: bool = False) -> dict[str, Any]:
    """Start the stack and wait until it is ready. Raises `StackError` with the reason when it cannot."""
    files = StackFiles(settings.var)
    check_ports_free(settings)
    for folder in (files.var, files.run, files.logs):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.settings.write_text(settings.as_json())
    log = files.logs / "stack.log"
    with log.open("ab") as output, log.open() as lines:
        lines.seek(output.tell())
        started = subprocess.run(
            [sys.executable, "-m", "tools.stack_run", str(files.settings)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
            timeout=SPAWN_TIMEOUT_S,
            check=False,
        )
        if started.returncode != 0:
            raise StackError(lines.read().strip())
        try:
            return _wait_ready(lines, settings.var, quiet=quiet)
        except KeyboardInterrupt:
            down(settings.var)
            raise


def _wait_ready(lines: TextIO, var: Path, *, quiet: bool) -> dict[str, Any]:
    deadline = time.monotonic() + UP_TIMEOUT_S
    told: list[str] = []
    while time.monotonic() < deadline:
        ended = not is_running(var)
        for line in lines:
            told.append(line)
            if not quiet:
                print(f"signet: {line}", end="", flush=True)
            if line.startswith("ready"):
                return read_state(var)
        if ended:
            raise StackError("".join(told).strip() or "the supervising process ended without a word")
        time.sleep(POLL_S)
    raise StackError(f"the stack was not ready within {UP_TIMEOUT_S:.0f} s; `tools/stack.py down` ends what there is")


def down(var: Path) -> bool:
    """Stop the stack of `var` and leave nothing of it running; tell whether one ran. Harmless when none does."""
    files = StackFiles(var)
    try:
        owner = json.loads(files.supervisor.read_text())
    except FileNotFoundError:
        return False
    end(ProcessIdentity(**owner["process"]), DOWN_TIMEOUT_S)
    # Whatever the supervising process could not end (it may have been killed) still carries the run's mark.
    for process in processes_of_run(owner["run_id"]):
        end(process, LEFTOVER_GRACE_S)
    for path in (files.state, files.supervisor):
        path.unlink(missing_ok=True)
    return True


def control(var: Path, verb: str, part: str) -> None:
    """Have the supervising process stop, start or restart one part. Raises `StackError`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONTROL_TIMEOUT_S)
        try:
            connection.connect(str(StackFiles(var).run / "control.sock"))
            connection.sendall(f"{verb} {part}".encode())
            answer = connection.recv(65536).decode()
        except OSError as error:
            raise StackError(f"no stack answers in {var}: {error}") from error
    if answer != "ok":
        raise StackError(answer or f"{part}: no answer")


def _settings(options: argparse.Namespace) -> StackSettings:
    return StackSettings(
        var=options.var.resolve(),
        ports=Ports.free() if options.free_ports else Ports(),
        edge=options.edge,
        nonce_store=options.nonce_store,
        kms=options.kms,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "status", "restart"):
        command = commands.add_parser(name)
        command.add_argument("--var", type=Path, default=REPOSITORY / "var", help="folder of all generated files")
        if name == "up":
            command.add_argument("--edge", choices=EDGES, default="a")
            command.add_argument("--nonce-store", choices=NONCE_STORES[:2], default="sqlite")
            command.add_argument(
                "--no-kms", dest="kms", action="store_false", help="keep the filter's keys in files of its own"
            )
            command.add_argument("--free-ports", action="store_true", help="take free ports, not the usual ones")
        if name == "restart":
            command.add_argument("part")
    return parser


def _obey(options: argparse.Namespace) -> None:
    var: Path = options.var.resolve()
    if options.command == "up" and is_running(var):
        print(f"signet: already running at {read_state(var)['https']}")
    elif options.command == "up":
        state = up(_settings(options))
        print(f"signet: {state['https']} (guarded {state['guarded_path']}), admin {state['admin']}, CA {state['ca']}")
    elif options.command == "down":
        print("signet: stopped" if down(var) else "signet: nothing was running")
    elif options.command == "status":
        print(json.dumps(read_state(var), indent=2))
    else:
        control(var, "restart", options.part)


def main() -> int:
    """Obey the command line; 1 with the reason on standard error when it cannot be done."""
    try:
        with contextlib.suppress(BrokenPipeError):
            _obey(_parser().parse_args())
    except StackError as error:
        print(f"signet: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
