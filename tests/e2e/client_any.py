"""Both clients behind one blocking face, so that one scenario tests them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from pch.client import AsyncClient, Client, Response
from tests.e2e.client_certificates import TestCa, make_ca
from tests.e2e.client_server import TestServer
from tests.e2e.client_verifier import Verifier

SANS = ["localhost", "127.0.0.1"]
TIMEOUT_S = 15.0


class AnyClient:
    """A `Client`, or an `AsyncClient` on its own loop of the asyncio or uvloop kind."""

    def __init__(self, kind: str, **settings: Any) -> None:
        settings = {"timeout_s": TIMEOUT_S} | settings
        factories = {"async": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
        self._runner = asyncio.Runner(loop_factory=factories[kind]) if kind in factories else None
        self._client: Any = AsyncClient(**settings) if self._runner else Client(**settings)

    def request(self, method: str, url: str, **parts: Any) -> Response:
        if self._runner is None:
            response = self._client.request(method, url, **parts)
        else:
            response = self._runner.run(self._client.request(method, url, **parts))
        assert isinstance(response, Response)
        return response

    def get(self, url: str, **parts: Any) -> Response:
        return self.request("GET", url, **parts)

    def close(self) -> None:
        if self._runner is None:
            self._client.close()
        else:
            self._runner.run(self._client.aclose())
            self._runner.close()


class Bench:
    """A CA, a key, and servers and clients made for them."""

    def __init__(self, folder: Path, key: dict[str, str]) -> None:
        self.folder = folder
        self.key = key
        self.ca: TestCa = make_ca(folder)
        self.certificate = self.ca.issue(folder, "server", SANS)

    def server(self, *, http2: bool = True, verifier: Verifier | None = None, **options: Any) -> TestServer:
        return TestServer(verifier or Verifier(self.key), self.certificate, http2=http2, **options)

    @contextmanager
    def client(self, kind: str, **settings: Any) -> Iterator[AnyClient]:
        client = AnyClient(kind, **({"key": self.key, "verify": self.ca.path} | settings))
        try:
            yield client
        finally:
            client.close()
