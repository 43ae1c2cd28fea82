"""Whether a part answers: a port, a UNIX socket, a GET. Standard library alone, for health checks run often."""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK: Final = "127.0.0.1"
PROBE_TIMEOUT_S: Final = 2.0


def listens(port: int) -> bool:
    """Tell whether something listens on a port of the loopback."""
    try:
        socket.create_connection((LOOPBACK, port), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def accepts(path: Path) -> bool:
    """Tell whether something listens on a UNIX socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def get(port: int, path: str) -> bytes | None:
    """Give what a GET on a port of the loopback answers with 200, else None."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
