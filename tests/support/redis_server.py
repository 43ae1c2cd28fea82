"""A real Redis server on a UNIX socket for the key service's bus."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

START_TIMEOUT_S = 10.0


@contextlib.contextmanager
def redis_server(socket_path: Path | None = None) -> Iterator[str]:
    """Run one; give its URL. A UNIX socket's path is limited to 107 bytes: it gets a folder of its own."""
    binary = shutil.which("redis-server")
    assert binary is not None, "redis-server is not installed (tools/parts.sh redis)"
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        path = socket_path or Path(folder) / "redis.sock"
        command = [binary, "--port", "0", "--unixsocket", str(path), "--dir", folder, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait(path, process)
            yield f"unix://{path}"
        finally:
            process.kill()
            process.wait(10)
            path.unlink(missing_ok=True)


def _wait(path: Path, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            return
        assert process.poll() is None, "redis-server ended at once"
        assert time.monotonic() < end_s, "redis-server does not listen"
        time.sleep(0.01)
