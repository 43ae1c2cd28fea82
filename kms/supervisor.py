"""`serve`: owns the listening sockets, keeps one serving process alive, reloads it, replaces it, ends it.

Because the sockets live here, a process that died or is replaced refuses nobody: connections wait in the sockets'
queues until its successor takes them (CONCURRENCY.md §2). gRPC alone binds for itself and is away for that moment.

A new configuration never costs the service: what it names is tried before the process ends that serves, and when its
successor dies before it serves, the next one gets the last configuration that did (CONFIG.md §5).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from kms.config import ConfigError, load_config
from kms.config_keys import KEYS
from kms.config_reload import changed_keys, needs_restart
from kms.config_snapshot import write_snapshot
from kms.listeners import Listeners, bind_all, rebind, remove_unix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kms.config import KmsConfig, LoadedConfig
    from kms.logs import LogWriter

MIN_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
JITTER: Final = 0.25
MAX_RESTARTS: Final = 10
RESTART_WINDOW_S: Final = 60.0
STEADY_AFTER_S: Final = 10.0
"""A process that served this long starts again without back-off."""
KILL_AFTER_S: Final = 4.0
"""How long past its drain the process may take for its last checkpoint and for closing, before it is killed."""
PROOF_TIMEOUT_S: Final = 10.0
FAILED_FOR_S: Final = 30.0
"""A configuration that did not serve is not tried again for this long, however often a reload is asked for."""
POLL_S: Final = 0.02
EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2


class Backoff:
    """When a process that died may start again. `monotonic_s`: a clock; `jitter`: gives a number from 0 to 1."""

    def __init__(self, monotonic_s: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._monotonic_s, self._jitter = monotonic_s, jitter
        self._delay_s = MIN_BACKOFF_S
        self._deaths: deque[float] = deque(maxlen=MAX_RESTARTS)

    def after_death(self, lived_s: float) -> float | None:
        """Tell how long to wait in seconds; None when it died too often to be started again."""
        now_s = self._monotonic_s()
        if len(self._deaths) == MAX_RESTARTS and now_s - self._deaths[0] < RESTART_WINDOW_S:
            return None
        self._deaths.append(now_s)
        if lived_s >= STEADY_AFTER_S:
            self._delay_s = MIN_BACKOFF_S
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, MAX_BACKOFF_S)
        return min(delay_s * (1 + JITTER * self._jitter()), MAX_BACKOFF_S)


class Supervisor:
    """Owner of the sockets and of the serving process. Single-threaded; signals only set flags."""

    def __init__(
        self, loaded: LoadedConfig, flags: Mapping[str, str], environ: Mapping[str, str], log: LogWriter
    ) -> None:
        """Bind every address. Raises ConfigError."""
        self._config, self._flags, self._environ, self._log = loaded.config, flags, environ, log
        self._listeners: Listeners = bind_all(loaded.config)
        self._backoff = Backoff(time.monotonic, random.random)
        # The process holds the other end: it says there that it serves, and when this process ends, however it ends,
        # it reads the end of the stream and drains.
        self._lifeline, self._childs_end = socket.socketpair()
        self._lifeline.setblocking(False)  # noqa: FBT003 - its only name
        self._serves = False  # the process that runs now has said so
        self._served: KmsConfig | None = None  # the last configuration that a process served with
        self._went_back = False  # processes are handed that one; what the file says did not serve
        self._failed: tuple[KmsConfig | None, float] = (None, 0.0)  # the last that did not serve, and when
        self._restarts = 0
        self._stopping = self._reload = False

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        try:
            return self._supervise()
        finally:
            self._listeners.close()
            self._lifeline.close()
            self._childs_end.close()
            remove_unix(self._config)

    def _supervise(self) -> int:
        process, began_s = self._start(), time.monotonic()
        while not self._stopping:
            if self._reload:
                self._reload = False
                if self._take_over(process):
                    self._end(process)
                    process, began_s = self._start(), time.monotonic()
            status = process.poll()
            self._look_whether_it_serves()
            if status is None:
                time.sleep(POLL_S)
                continue
            if self._go_back(status):
                process, began_s = self._start(), time.monotonic()
                continue
            if status == EXIT_UNUSABLE:
                return EXIT_UNUSABLE
            delay_s = self._backoff.after_death(time.monotonic() - began_s)
            if delay_s is None:
                self._log.event("error", "service_given_up", exit_status=status, count=MAX_RESTARTS)
                return EXIT_FAILED
            self._log.event("error", "service_died", exit_status=status, delay_ms=round(delay_s * 1000))
            self._wait(delay_s)
            if not self._stopping:
                self._restarts += 1
                process, began_s = self._start(), time.monotonic()
        return self._end(process)

    def _wait(self, delay_s: float) -> None:
        until_s = time.monotonic() + delay_s
        while not self._stopping and time.monotonic() < until_s:
            time.sleep(POLL_S)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "kms", "service", *as_arguments(self._flags)]
        lifeline_fd = self._childs_end.fileno()
        command += ["--listeners", self._listeners.describe(), "--lifeline-fd", str(lifeline_fd)]
        command += ["--restarts", str(self._restarts)]
        descriptors = [*self._listeners.descriptors(), lifeline_fd]
        handed_down = write_snapshot(self._config) if self._went_back else None
        if handed_down is not None:
            command += ["--config-fd", str(handed_down)]
            descriptors.append(handed_down)
        self._heard()  # what its predecessor said is not its own
        self._serves = False
        # Blocked signals stay blocked in the child: a reload while it starts waits until it listens for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            return subprocess.Popen(command, env=dict(self._environ), pass_fds=descriptors)  # noqa: S603  our own program
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            if handed_down is not None:
                os.close(handed_down)

    def _heard(self) -> bool:
        try:
            return bool(self._lifeline.recv(64))
        except BlockingIOError:
            return False

    def _look_whether_it_serves(self) -> None:
        if self._heard():
            self._serves, self._served = True, self._config

    def _go_back(self, status: int) -> bool:
        """After a process that died before it served: tell whether the next one gets what served before."""
        served = self._served
        if self._serves or served is None or self._went_back:
            return False
        if served == self._config and status != EXIT_UNUSABLE:
            return False  # the configuration is not what ended it
        self._log.event(
            "error", "config_refused", exit_status=status, message="no process served with it: the last one is back"
        )
        try:
            self._listeners = rebind(self._listeners, self._config, served)
        except ConfigError as error:
            self._log.event("error", "config_refused", message=str(error))
            return False
        self._failed = (self._config, time.monotonic())
        self._config, self._went_back = served, True
        return True

    def _take_over(self, process: subprocess.Popen[bytes]) -> bool:
        """Look at the configuration anew; returns whether the process must be replaced for it (CONFIG.md §5)."""
        self._look_whether_it_serves()
        try:
            fresh = load_config(self._flags, self._environ).config
            waits = needs_restart(changed_keys(self._config, fresh))
            if waits:
                self._prove(fresh)
            self._listeners = rebind(self._listeners, self._config, fresh)
        except ConfigError as error:
            self._log.event("error", "config_refused", message=str(error))
            process.send_signal(signal.SIGHUP)  # it says so in its readiness
            return False
        self._config, self._went_back = fresh, False
        if waits:
            self._log.event("info", "config_replaces_service", changed=waits)
            return True
        if self._serves:
            self._served = fresh
        process.send_signal(signal.SIGHUP)
        return False

    def _prove(self, fresh: KmsConfig) -> None:
        """Try what a configuration names, in a process of its own: root keys are not for this one's memory.

        Raises ConfigError.
        """
        failed, failed_s = self._failed
        if failed == fresh and time.monotonic() - failed_s < FAILED_FOR_S:
            raise ConfigError("no process served with this configuration a moment ago")
        command = [sys.executable, "-m", "kms", "check", "--open", *as_arguments(self._flags)]
        try:
            proof = subprocess.run(  # noqa: S603  our own program
                command, env=dict(self._environ), capture_output=True, timeout=PROOF_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError("the configuration could not be tried in time") from error
        if proof.returncode != 0:
            said = proof.stderr.decode(errors="replace").strip().splitlines()
            raise ConfigError(said[-1].removeprefix("configuration: ") if said else "the configuration cannot be used")

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Tell the process to drain and wait for it."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(self._config.deadlines.drain_ms / 1000 + KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self._log.event("error", "service_killed", pid=process.pid)
            process.kill()
            process.wait()
            return EXIT_FAILED

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _on_reload(self, _number: int, _frame: object) -> None:
        self._reload = True


def as_arguments(flags: Mapping[str, str]) -> Sequence[str]:
    """Write flags as a command line that gives them back; a switch takes no value."""
    switches = {key.flag for key in KEYS if key.switch}
    arguments: list[str] = []
    for name, text in flags.items():
        arguments += [f"--{name}"] if name in switches else [f"--{name}={text}"]
    return arguments
