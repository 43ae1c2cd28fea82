"""The stage of edge A's long runs: one Envoy as shipped or under valgrind, with small and ordinary buffers."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.e2e.edge_certificates import CertificateFiles, write_certificate
from tests.e2e.edge_client import Http1, http1_client
from tests.e2e.edge_envoy import EnvoyProcess, bootstrap, build_module, listener, module_socket, start_envoy
from tests.e2e.edge_upstream import running_upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL_BUFFER_BYTES = 20_000  # neither a whole number of records nor more than two
RELOAD_INTERVAL_MS = 100
VALGRIND = ("valgrind", "--soname-synonyms=somalloc=NONE", "--num-callers=30", "--error-limit=no")
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Edge:
    """A running edge A; `slow` under valgrind: fewer repetitions, the same paths."""

    envoy: EnvoyProcess
    files: CertificateFiles
    slow: bool

    @property
    def port(self) -> int:
        """The listener with ordinary buffers."""
        return self.envoy.ports["edge"]

    def times(self, count: int) -> int:
        """Scale a number of repetitions."""
        return max(1, count // 5) if self.slow else count

    def assert_serving_and_empty(self) -> None:
        """Assert that a request is served right and that no connection or binding is left afterwards."""
        with http1_client(self.port) as wire:
            assert Http1(wire).ask().binding == wire.exporter()
        self.envoy.wait_metric("bindings", 0, timeout_s=30)
        self.envoy.wait_metric("connections", 0, timeout_s=30)


def valgrind_findings(log: str) -> list[str]:
    """Pick the reports in whose stack the module appears; Envoy's own code has some at start-up."""
    reports = re.split(r"^==\d+== ?\n", log, flags=re.MULTILINE)
    return [report for report in reports if "libsignet_tls" in report and re.search(r"==\s+(at|by) 0x", report)]


@contextmanager
def open_edge(folder: Path, *, valgrind: bool) -> Iterator[Edge]:
    """Run an edge for the length of a with block; afterwards assert a clean end, and no finding under valgrind."""
    files = write_certificate(folder / "tls")
    report = folder / "valgrind.log"
    wrapper = (*VALGRIND, f"--log-file={report}") if valgrind else ()
    with running_upstream() as upstream:
        tls = module_socket(files.certificate, files.key, reload_interval_ms=RELOAD_INTERVAL_MS)
        # Small buffers: reading stops and goes on again many times in a large body.
        small = listener("small", tls, upstream_port=upstream, buffer_bytes=SMALL_BUFFER_BYTES)
        config = bootstrap([listener("edge", tls, upstream_port=upstream), small], upstream)
        envoy = start_envoy(folder, config, modules=build_module(), wrapper=wrapper)
        try:
            yield Edge(envoy, files, slow=valgrind)
        finally:
            status = envoy.stop()
    assert status == 0, envoy.log[-2000:]
    if valgrind:
        text = report.read_text()
        assert "ERROR SUMMARY" in text
        assert valgrind_findings(text) == []
