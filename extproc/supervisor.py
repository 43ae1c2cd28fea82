"""`serve`: start the workers, start them again when they die, pass signals on, stop them all."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client import multiprocess

from extproc.accepted import AcceptedFiles, take
from extproc.config import ConfigError
from extproc.errors import ServerFault
from extproc.reload import needs_restart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LOG: Final = logging.getLogger("signet.supervisor")
MIN_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
STEADY_AFTER_S: Final = 10.0
"""A worker that lived this long starts again without back-off."""
KILL_AFTER_DRAIN_S: Final = 3.0
"""How long past its drain time a worker may take before it is killed."""
POLL_S: Final = 0.05


@dataclass(slots=True)
class _Slot:
    index: int
    process: subprocess.Popen[bytes]
    started_s: float
    backoff_s: float = MIN_BACKOFF_S
    restart_at_s: float | None = None


class Supervisor:
    """Owner of the worker processes. Single-threaded; signals only set flags."""

    def __init__(self, config_path: Path, environ: Mapping[str, str], log_options: Sequence[str] = ()) -> None:
        """Load the configuration and what it names, as workers do. `log_options`: what they are told of logs.

        Raises `ConfigError`.
        """
        self._config_path, self._environ, self._log_options = config_path, environ, log_options
        self._accepted, rules = take(config_path, environ)
        config = self._config = rules.config
        self._files = AcceptedFiles(config.filter.socket_dir)
        self._stopping = False
        self._reload = False
        # The workers hold the read end: it ends when this process does, however it ends, and they drain.
        self._lifeline_read, self._lifeline_write = os.pipe()
        self._metrics_dir = config.filter.socket_dir / "metrics"

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT. Returns the exit status; raises `ServerFault`."""
        self._prepare()
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        slots = [self._start(index) for index in range(self._config.filter.workers)]
        while not self._stopping:
            if self._reload:
                self._reload = False
                self._accept()
                self._signal_all(slots, signal.SIGHUP)
            for slot in slots:
                self._look_after(slot)
            time.sleep(POLL_S)
        return self._stop_all(slots)

    def _prepare(self) -> None:
        folder = self._config.filter.socket_dir
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            # Whoever writes there could put another socket in the place of a worker's.
            raise ServerFault("filter.socket_dir: its group or others may write to it; make it mode 0700")
        self._metrics_dir.mkdir(exist_ok=True, mode=0o700)
        self._files.keep(self._accepted)
        for leftover in self._metrics_dir.glob("*.db"):
            leftover.unlink(missing_ok=True)

    def _accept(self) -> None:
        """Take what the files hold for workers to go on with, if they could; each running one says if not."""
        try:
            accepted, rules = take(self._config_path, self._environ)
        except ConfigError:
            return
        if needs_restart(self._config, rules.config):
            return
        try:
            self._files.keep(accepted)
        except OSError as error:
            LOG.error("what was read cannot be kept, so nothing changes: %s", error.strerror)
            return
        self._config, self._accepted = rules.config, accepted

    def _on_stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _on_reload(self, _number: int, _frame: object) -> None:
        self._reload = True

    def _start(self, index: int) -> _Slot:
        command = [sys.executable, "-m", "extproc", *self._log_options, "worker", "--config", str(self._config_path)]
        command += ["--index", str(index), "--lifeline-fd", str(self._lifeline_read)]
        command += ["--accepted", str(self._files.path)]
        environ = {**self._environ, "PROMETHEUS_MULTIPROC_DIR": str(self._metrics_dir)}
        # Blocked signals stay blocked in the child: a reload while it starts waits until it listens.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            process = subprocess.Popen(command, env=environ, pass_fds=(self._lifeline_read,))  # noqa: S603  our own program
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        return _Slot(index, process, time.monotonic())

    def _look_after(self, slot: _Slot) -> None:
        now_s = time.monotonic()
        if slot.restart_at_s is not None:
            if now_s >= slot.restart_at_s:
                fresh = self._start(slot.index)
                slot.process, slot.started_s, slot.restart_at_s = fresh.process, fresh.started_s, None
            return
        status = slot.process.poll()
        if status is None:
            return
        multiprocess.mark_process_dead(slot.index, path=str(self._metrics_dir))  # type: ignore[no-untyped-call]
        lived_s = now_s - slot.started_s
        slot.backoff_s = MIN_BACKOFF_S if lived_s > STEADY_AFTER_S else min(slot.backoff_s * 2, MAX_BACKOFF_S)
        slot.restart_at_s = now_s + slot.backoff_s
        message = "worker %d ended with %d after %.1f s, starting again in %.1f s"
        LOG.error(message, slot.index, status, lived_s, slot.backoff_s)

    @staticmethod
    def _signal_all(slots: list[_Slot], number: signal.Signals) -> None:
        for slot in slots:
            if slot.restart_at_s is None and slot.process.poll() is None:
                slot.process.send_signal(number)

    def _stop_all(self, slots: list[_Slot]) -> int:
        self._signal_all(slots, signal.SIGTERM)
        deadline_s = time.monotonic() + self._config.filter.drain_timeout_s + KILL_AFTER_DRAIN_S
        for slot in slots:
            try:
                slot.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                LOG.error("worker %d did not drain in time and is killed", slot.index)
                slot.process.kill()
                slot.process.wait()
        os.close(self._lifeline_write)
        self._files.drop()
        return 0
