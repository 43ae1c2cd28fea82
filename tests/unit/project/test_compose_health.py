"""The health checks of compose.yaml, run as they stand there against servers that are well, unwell and away."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.compose_parts import ROOT, interpolated, services
from tests.support.opa_parts import opa_program
from tools import compose_alive
from tools.stack_config import FILTER_WORKERS, Ports, StackFiles


@contextmanager
def answering(status: int, content: bytes, path: str) -> Iterator[int]:
    """Serve `content` at `path` with `status` on a free port, and 404 anywhere else."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == path
            self.send_response(status if found else 404)
            self.send_header("content-length", str(len(content) if found else 0))
            self.end_headers()
            self.wfile.write(content if found else b"")

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def health_check(name: str, port: int, its_port: str) -> list[str]:
    words = [interpolated(word) for word in services()[name]["healthcheck"]["test"][1:]]
    assert any(its_port in word for word in words)
    return [word.replace(its_port, str(port)) for word in words]


def healthy(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def test_envoy_is_healthy_only_while_it_says_so() -> None:
    with answering(200, b"LIVE\n", "/ready") as port:
        assert healthy(health_check("envoy", port, "9901"))
    with answering(503, b"DRAINING\n", "/ready") as port:
        assert not healthy(health_check("envoy", port, "9901"))
    assert not healthy(health_check("envoy", unused_port(), "9901"))


def test_opa_is_healthy_only_while_it_answers_200() -> None:
    opa = str(opa_program())

    def check(port: int) -> list[str]:
        return [opa, *health_check("opa", port, "8181")[1:]]

    with answering(200, b"{}", "/health") as port:
        assert healthy(check(port))
    with answering(500, b"{}", "/health") as port:
        assert not healthy(check(port))
    assert not healthy(check(unused_port()))


@pytest.mark.parametrize(("part", "member"), [("kms", "kms_metrics"), ("extproc-admin", "admin")])
def test_part_with_a_readiness_is_alive_only_while_it_is_ready(part: str, member: str, tmp_path: Path) -> None:
    def alive(port: int) -> bool:
        return compose_alive.checks(Ports(**{member: port}), StackFiles(tmp_path))[part]()

    with answering(200, b"{}", "/readyz") as port:
        assert alive(port)
    with answering(503, b"{}", "/readyz") as port:
        assert not alive(port)
    assert not alive(unused_port())


def test_app_is_alive_while_it_listens(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert compose_alive.checks(Ports(app=port), StackFiles(tmp_path))["app"]()
    assert not compose_alive.checks(Ports(app=port), StackFiles(tmp_path))["app"]()


def test_filter_is_alive_only_when_every_worker_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compose_alive.FOLDER_VARIABLE, str(tmp_path))
    files = StackFiles(tmp_path)
    files.run.mkdir()
    servers = []
    for worker in range(FILTER_WORKERS):
        assert compose_alive.main(["extproc"]) == compose_alive.EXIT_NOT_ALIVE
        servers.append(socket.socket(socket.AF_UNIX))
        servers[-1].bind(str(files.socket(worker)))
        servers[-1].listen()
    assert compose_alive.main(["extproc"]) == compose_alive.EXIT_ALIVE
    servers[0].close()
    assert compose_alive.main(["extproc"]) == compose_alive.EXIT_NOT_ALIVE
    for each in servers:
        each.close()


@pytest.mark.parametrize("arguments", [[], ["grafana"], ["app", "kms"]])
def test_part_without_a_check_is_refused(arguments: list[str]) -> None:
    assert compose_alive.main(arguments) == compose_alive.EXIT_UNUSABLE


def test_health_check_loads_nothing_but_the_standard_library() -> None:
    """It runs every five seconds in four containers."""
    program = "import sys, tools.compose_alive; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tools" in done.stdout.split()
    assert not {"cryptography", "extproc", "kms", "msgspec", "receipts"} & set(done.stdout.split())
