"""The admin HTTP server on port 8080: health, readiness, metrics, receipts.

The one process beside the workers. It reads what they wrote (status files, metric files, the receipt store) and never
stands in a request's way. Loopback only, unless TLS and a bearer token are configured (`extproc.config` refuses
anything else).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from extproc.admin_connection import AdminConnection
from extproc.config import load_config
from extproc.errors import ServerFault
from extproc.log_api import log_routes
from extproc.log_service import LogService
from extproc.log_telemetry import LogTelemetry
from extproc.outcome_watch import OutcomeWatch
from extproc.problems import problem
from extproc.readiness import degraded_because, not_ready_because, store_problem
from receipts.errors import StoreError
from receipts.open_store import open_store
from receipts.receipt_id import ReceiptId
from receipts.store import PrunedReceipt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from starlette.requests import Request

    from extproc.config import FilterConfig
    from receipts.store import ReceiptStore, StoredReceipt

    Handler = Callable[[Request], Awaitable[Response]]

MAX_RECEIPTS_PER_ANSWER: Final = 100
DEFAULT_RECEIPTS_PER_ANSWER: Final = 10
MAX_CONNECTIONS: Final = 64
MAX_HEADER_BYTES: Final = 16 << 10
KEEP_ALIVE_S: Final = 15
GRACE_S: Final = 5
MIN_TOKEN_BYTES: Final = 16
_LIMIT: Final = re.compile(r"[0-9]{1,3}")
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class AdminApp:
    """The handlers. `now_ms`: milliseconds since the epoch."""

    def __init__(
        self,
        config: FilterConfig,
        store: ReceiptStore,
        token: bytes | None,
        now_ms: Callable[[], int],
        watch: OutcomeWatch,
        log: LogService,
    ) -> None:
        self._config, self._store, self._token, self._now_ms, self._watch = config, store, token, now_ms, watch
        self._log, self._log_telemetry = log, LogTelemetry(log, store)
        host = config.admin.host
        self._names = {*_LOCAL_NAMES, f"[{host}]" if ":" in host else host}

    def routes(self) -> list[Route]:
        """List the paths served."""
        return [
            Route("/healthz", self.guard(self.healthz, public=True)),
            Route("/readyz", self.guard(self.readyz)),
            Route("/metrics", self.guard(self.metrics)),
            Route("/receipts/latest", self.guard(self.latest)),
            Route("/receipts/{receipt_id}", self.guard(self.receipt)),
        ]

    def guard(self, handler: Handler, *, public: bool = False) -> Handler:
        """Refuse what may not ask: without the bearer token, or on loopback under a foreign name (DNS rebinding)."""

        async def guarded(request: Request) -> Response:
            if self._token is not None and not public:
                sent = request.headers.get("authorization", "").encode()
                if not hmac.compare_digest(sent, b"Bearer " + self._token):
                    return problem(401, "A bearer token is required.", {"WWW-Authenticate": "Bearer"})
            if self._token is None and _host_name(request) not in self._names:
                return problem(421, "This server answers to loopback names only.")
            try:
                return await handler(request)
            except StoreError:
                return problem(503, "The receipt store is not available.", {"Retry-After": "1"})

        return guarded

    async def healthz(self, _request: Request) -> Response:
        """Say that this process runs."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _request: Request) -> Response:
        """Say whether every worker can decide and record, why not, and what serves without something it needs."""
        reasons = await asyncio.to_thread(not_ready_because, self._config, self._now_ms())
        if (problem_text := await asyncio.to_thread(store_problem, self._store)) is not None:
            reasons["admin.receipts"] = problem_text
        if (log_problem := self._log.problem) is not None:
            reasons["admin.log"] = log_problem
        status = 503 if reasons else 200
        degraded = await asyncio.to_thread(degraded_because, self._config)
        if (log_degraded := self._log.degraded) is not None:
            degraded["admin.log"] = log_degraded
        document: dict[str, object] = {"ready": not reasons, "reasons": reasons}
        if degraded:
            document["degraded"] = degraded
        return JSONResponse(document, status)

    async def metrics(self, _request: Request) -> Response:
        """Give the metrics of all workers, merged, and what this process counts itself."""
        return Response(await asyncio.to_thread(self._collect), media_type=CONTENT_TYPE_LATEST)

    def _collect(self) -> bytes:
        registry = CollectorRegistry()
        directory = self._config.filter.socket_dir / "metrics"
        if directory.is_dir():
            multiprocess.MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
        registry.register(self._watch)
        registry.register(self._log_telemetry)
        return generate_latest(registry)

    async def receipt(self, request: Request) -> Response:
        """Give one receipt: the stored bytes themselves."""
        wanted = ReceiptId(request.path_params["receipt_id"])
        stored = await asyncio.to_thread(self._store.get, wanted)
        if stored is None:
            return problem(404, "No receipt has this id.")
        if isinstance(stored, PrunedReceipt):
            return problem(410, "The payload was pruned; its leaf hash and proof remain.")
        headers = {"ETag": f'"{stored.id}"', "Signet-Receipt-Seq": str(stored.seq)}
        return Response(stored.raw, media_type="application/json", headers=headers)

    async def latest(self, request: Request) -> Response:
        """Give the newest receipts, newest first; `?limit=` up to 100."""
        text = request.query_params.get("limit", str(DEFAULT_RECEIPTS_PER_ANSWER))
        if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MAX_RECEIPTS_PER_ANSWER:
            return problem(400, f"limit is a number from 1 to {MAX_RECEIPTS_PER_ANSWER}.")
        stored = await asyncio.to_thread(self._store.latest, int(text))
        return Response(_envelope(stored), media_type="application/json")


def _envelope(stored: list[StoredReceipt]) -> bytes:
    """Wrap stored bytes, unchanged, in a JSON list with their place in the log; null where they were pruned."""
    members = (b'{"seq":%d,"receipt":%b}' % (each.seq, each.raw or b"null") for each in stored)
    return b'{"receipts":[' + b",".join(members) + b"]}"


def _host_name(request: Request) -> str:
    host = request.headers.get("host", "").lower()
    return host if host.endswith("]") else host.rpartition(":")[0] or host


@contextlib.asynccontextmanager
async def _followed(watch: OutcomeWatch, log: LogService) -> AsyncIterator[None]:
    """Keep the watch and the log going while the server serves."""
    stop = threading.Event()
    thread = threading.Thread(target=watch.follow, args=(stop,), name="outcome-watch", daemon=True)
    thread.start()
    try:
        with log.running():
            yield
    finally:
        stop.set()
        await asyncio.to_thread(thread.join, GRACE_S)


async def _not_found(_request: Request, _error: Exception) -> Response:
    return problem(404, "There is nothing here.")


async def _not_so(_request: Request, error: Exception) -> Response:
    return problem(405, "What is here answers to other methods.", dict(getattr(error, "headers", None) or {}))


async def _failed(_request: Request, _error: Exception) -> Response:
    """Answer for what nobody expected; the server logs it."""
    return problem(500, "The server failed.")


def build_app(config: FilterConfig, store: ReceiptStore, token: bytes | None, now_ms: Callable[[], int]) -> Starlette:
    """Build the ASGI application."""
    watch = OutcomeWatch(store, clock_ms=now_ms)
    log = LogService(config, store, now_ms)
    admin = AdminApp(config, store, token, now_ms, watch, log)
    app = Starlette(
        routes=[*admin.routes(), *log_routes(log.api, admin.guard)],
        exception_handlers={404: _not_found, 405: _not_so, 500: _failed},
        lifespan=lambda _app: _followed(watch, log),
    )
    # A redirect would quote the Host that the client sent.
    app.router.redirect_slashes = False
    return app


def _read_token(path: Path) -> bytes:
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ServerFault(f"admin.bearer_token_file: cannot be read: {error.strerror}") from error
    if len(token) < MIN_TOKEN_BYTES:
        raise ServerFault(f"admin.bearer_token_file: the token is shorter than {MIN_TOKEN_BYTES} bytes")
    return token


def run_admin(config_path: Path) -> int:
    """Serve until SIGTERM. Returns the exit status; raises `ConfigError`, `ServerFault`."""
    from extproc.worker import now_ms

    config = load_config(config_path, os.environ)
    settings = config.admin
    token = None
    if settings.bearer_token_file is not None:
        token = _read_token(settings.bearer_token_file)
    app = build_app(config, open_store(config.receipts.url), token, now_ms)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=AdminConnection,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            access_log=False,
            log_config=None,
            server_header=False,
        )
    )
    # uvicorn raises the signal that stopped it once more when all is closed: told to stop is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    server.run()
    return 0


def _exit(_number: int, _frame: object) -> None:
    sys.exit(0)
