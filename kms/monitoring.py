"""The metrics port: `/metrics`, `/healthz`, `/readyz`, `/version` (OBSERVABILITY.md §1, §2); it asks for no key."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from kms.metrics_text import MetricsText
from kms.openapi import API_VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kms.readiness import Readiness
    from kms.telemetry import Telemetry

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON: Final = b"application/json"
METRICS_PATH: Final = "/metrics"


class Monitoring:
    """The ASGI application of the metrics port."""

    def __init__(self, telemetry: Telemetry, readiness: Readiness) -> None:
        self._metrics, self._readiness = MetricsText(telemetry.registry), readiness
        self._version = msgspec.json.encode(
            {"service": "ron-kms", "version": metadata.version("signet"), "api_version": API_VERSION}
        )
        self._paths: dict[str, Callable[[], tuple[int, bytes, bytes]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/version": lambda: (200, JSON, self._version),
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        handler = self._paths.get(path)
        headers: list[tuple[bytes, bytes]] = []
        if handler is None and path != METRICS_PATH:
            status, kind, body = 404, JSON, b'{"error":"there is nothing here"}'
        elif scope["method"] not in ("GET", "HEAD"):
            status, kind, body = 405, JSON, b'{"error":"only GET is answered"}'
            headers.append((b"allow", b"GET"))
        elif handler is None:
            status, kind, body = 200, CONTENT_TYPE_LATEST.encode(), await self._metrics.get()
        else:
            status, kind, body = handler()
            if status == 503:
                headers.append((b"retry-after", b"%d" % self._readiness.payload.retry_after))
        headers += [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _healthz(self) -> tuple[int, bytes, bytes]:
        """Say that the process lives, and what is degraded in it as the last look found (SECURITY.md §5)."""
        return 200, JSON, msgspec.json.encode({"ok": True, "degraded": self._readiness.payload.degraded})

    def _readyz(self) -> tuple[int, bytes, bytes]:
        payload = self._readiness.payload
        return 200 if payload.ready else 503, JSON, msgspec.json.encode(payload)
