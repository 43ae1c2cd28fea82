"""The interfaces of the key service in this process, over a dispatcher and a capability check that tests set."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kms.api_call import ApiCalls
from kms.clock import SYSTEM_CLOCK
from kms.config_sections import KmsConfig
from kms.correlation import IdSource
from kms.errors import Unauthenticated
from kms.http_api import HttpApi
from kms.logs import LogWriter
from kms.messages import Message
from kms.openapi import openapi_json
from kms.principal import CallContext, Principal, Scope
from kms.telemetry import Telemetry

KID = "core/audit/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v3"
DIGEST = "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"


def principal(*scopes: Scope) -> Principal:
    """Make what a capability of tenant `core` verifies to."""
    empty: frozenset[str] = frozenset()
    return Principal("t", "r", frozenset({"core"}), frozenset(scopes or Scope), empty, empty, empty, None, 2**40)


@dataclass
class SetAuthority:
    """Takes one value of Authorization and gives one principal."""

    value: str = "Bearer good"
    principal: Principal = field(default_factory=principal)

    def authenticate(self, authorization_value: str | None, now_s: int) -> Principal:
        if authorization_value != self.value:
            raise Unauthenticated("a capability is required")
        return self.principal


@dataclass
class ScriptedDispatcher:
    """Answers with `answer`, raises it when it is an exception, and keeps what it was asked."""

    answer: Message | Exception | Callable[[Message], Awaitable[Message]]
    asked: list[tuple[str, Message, CallContext]] = field(default_factory=list)

    async def call(self, op: str, request: Message, context: CallContext) -> Message:
        self.asked.append((op, request, context))
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, Message):
            return self.answer
        return await self.answer(request)


@dataclass
class EdgeParts:
    """Both interfaces over a scripted dispatcher."""

    answer: Message | Exception | Callable[[Message], Awaitable[Message]]
    config: KmsConfig = field(default_factory=KmsConfig)

    def __post_init__(self) -> None:
        self.dispatcher = ScriptedDispatcher(self.answer)
        self.authority = SetAuthority()
        self.telemetry = Telemetry()
        self.stream = io.StringIO()
        self.log = LogWriter(self.stream, SYSTEM_CLOCK.wall_ms, "debug")
        self.calls = ApiCalls(
            self.authority,
            self.dispatcher,
            self.telemetry,
            self.log,
            IdSource(SYSTEM_CLOCK.wall_ms),
            SYSTEM_CLOCK,
            lambda: self.config,
        )
        self.api = HttpApi(self.calls, openapi_json())

    def set(self, section: str, **values: Any) -> None:
        """Change settings of one section."""
        changed = msgspec.structs.replace(getattr(self.config, section), **values)
        self.config = msgspec.structs.replace(self.config, **{section: changed})

    def lines(self) -> list[dict[str, Any]]:
        """Give the log lines, once the writer has written them."""
        self.log.close()
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def counted(self, name: str, **labels: str) -> float:
        """Give a metric's value."""
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0

    async def ask(
        self,
        method: str = "POST",
        path: str = "/v1/kms/sign",
        body: Any = b"",
        *,
        query: bytes = b"",
        chunks: list[bytes] | None = None,
        authorization: str | None = "Bearer good",
        **headers: str,
    ) -> Answer:
        """Ask as uvicorn would. Fields: `_` stands for `-`; a JSON content type is added to a body."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        pieces = chunks if chunks is not None else [raw]
        fields = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
        if raw or chunks:
            fields.setdefault(b"content-type", b"application/json")
        if authorization is not None:
            fields[b"authorization"] = authorization.encode()
        sent: list[dict[str, Any]] = []
        reads = 0

        async def receive() -> dict[str, Any]:
            nonlocal reads
            reads += 1
            if reads > len(pieces):
                return {"type": "http.disconnect"}
            more = reads < len(pieces)
            return {"type": "http.request", "body": pieces[reads - 1], "more_body": more}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "raw_path": path.encode(),
            "path": path,
            "query_string": query,
            "headers": list(fields.items()),
            "client": ("192.0.2.1", 1234),
            "scheme": "http",
        }
        await self.api(scope, receive, send)
        if not sent:
            return Answer(0, {}, b"", reads)
        names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], names, sent[1]["body"], reads)


@dataclass(frozen=True)
class Answer:
    """What came back. `reads`: how often the body was asked for."""

    status: int
    headers: dict[str, str]
    body: bytes
    reads: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error
