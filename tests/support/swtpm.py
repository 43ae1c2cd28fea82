"""A software TPM of the test's own: its process, its state, and ways to kill and roll it back."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

START_TIMEOUT_S = 10.0
PORT_TRIES = 50


def is_there() -> bool:
    """Tell whether swtpm and the Python package of the TSS are installed."""
    try:
        import tpm2_pytss  # noqa: F401
    except ImportError:
        return False
    return shutil.which("swtpm") is not None


class SwTpm:
    """One TPM whose state lives in a folder. It listens on a port of the loopback, its control channel on the next."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "tpm-state"
        self.state.mkdir(parents=True)
        self.port = _free_pair()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def tcti(self) -> str:
        """How the TSS finds it."""
        return f"swtpm:host=127.0.0.1,port={self.port}"

    def start(self) -> None:
        """Start it on its state and wait until it listens."""
        listen = "type=tcp,bindaddr=127.0.0.1,port="
        self.process = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self.state}",
                "--server",
                f"{listen}{self.port}",
                "--ctrl",
                f"{listen}{self.port + 1}",
                "--flags",
                "not-need-init,startup-clear",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _listens(self.port + 1):
            assert self.process.poll() is None, "swtpm ended at its start"
            assert time.monotonic() < deadline_s, "swtpm does not listen"
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=10)
        self.process = None

    def stop(self) -> None:
        """End it if it runs."""
        if self.process is not None:
            self.kill()


def _listens(port: int) -> bool:
    """Look whether a port is taken without connecting to it: swtpm serves one connection and then no other."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _free_pair() -> int:
    for _ in range(PORT_TRIES):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise RuntimeError("no two free ports side by side")
