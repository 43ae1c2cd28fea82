"""A real OPA for the tests: the program, and servers of it on free ports of the loopback."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.go_programs import build_or_skip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 20


def opa_program() -> Path:
    return build_or_skip("opa", ROOT / "tools/go_parts/opa", "github.com/open-policy-agent/opa")


@contextlib.contextmanager
def opa_server(*files: Path, options: Sequence[str] = ()) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a server with `files` loaded; gives its port and its process. `options`: more words of its command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [opa_program(), "run", "--server", "--addr", f"127.0.0.1:{port}", "--disable-telemetry", *options, *files]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_until_healthy(port, server)
            yield port, server
        finally:
            server.kill()


def _wait_until_healthy(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError("the OPA server ended")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise RuntimeError("the OPA server does not answer")
