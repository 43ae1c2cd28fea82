"""A real Toxiproxy between two parts of a stack: started here, told over its HTTP interface, ended with the block."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests.support.go_programs import build

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

REPOSITORY: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 10.0
CALL_TIMEOUT_S: Final = 5.0
DOWN_MARKER: Final = "down"


class ToxiproxyError(RuntimeError):
    """Toxiproxy did not do as asked."""


def toxiproxy_program() -> Path:
    """Build the server, once for each state of its pinned sources. Raises GoMissing."""
    return build("toxiproxy", REPOSITORY / "tools/go_parts/toxiproxy", "github.com/Shopify/toxiproxy/v2/cmd/server")


@dataclass
class Toxiproxy:
    """A server on `port` of the loopback. Use as a context manager."""

    port: int
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        command = [toxiproxy_program(), "-host", "127.0.0.1", "-port", str(self.port)]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._call("GET", "/version")
            except (OSError, ToxiproxyError) as error:
                if time.monotonic() > until or self._process.poll() is not None:
                    self._end()
                    raise ToxiproxyError("Toxiproxy does not answer") from error
                time.sleep(0.05)
            else:
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def proxy(self, name: str, listen_port: int, upstream_port: int) -> None:
        """Stand between `listen_port` and `upstream_port`, both on the loopback."""
        self._call(
            "POST",
            "/proxies",
            {
                "name": name,
                "listen": f"127.0.0.1:{listen_port}",
                "upstream": f"127.0.0.1:{upstream_port}",
                "enabled": True,
            },
        )

    def inject(self, proxy: str, kind: str, attributes: Mapping[str, int], *, toxicity: float = 1.0) -> None:
        """Add one toxic on the way back from upstream; `down` takes the proxy away altogether."""
        if kind == DOWN_MARKER:
            self._call("POST", f"/proxies/{proxy}", {"enabled": False})
            return
        self._call(
            "POST",
            f"/proxies/{proxy}/toxics",
            {"type": kind, "stream": "downstream", "toxicity": toxicity, "attributes": dict(attributes)},
        )

    def heal(self) -> None:
        """Take every toxic away and bring every proxy back."""
        self._call("POST", "/reset")

    def _call(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_TIMEOUT_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise ToxiproxyError(f"{method} {path}: {response.status}")
        return json.loads(text) if text else None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
