"""A small PCH verifier for the client's tests: decides one request by PCH §2–§5."""

from __future__ import annotations

import base64
import email.utils
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pch import proof
from pch.errors import PchError
from pch.httpsig.content_digest import verify_content_digest
from pch.httpsig.verify import verify
from pch.keys import public_jwk, public_key_from_jwk, thumbprint

if TYPE_CHECKING:
    from pch.httpsig.message import RequestMessage


@dataclass(frozen=True)
class Received:
    """One request as the server got it, and what it answered."""

    connection: int
    http_version: str
    message: RequestMessage
    body: bytes
    signed: bool
    status: int
    reason: str | None

    @property
    def nonce(self) -> str:
        return proof.select_proofs(self.message).first.nonce


@dataclass(frozen=True)
class Reply:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    close: bool = False
    drop: bool = False
    reset: int | None = None
    goaway_after: int | None = None


@dataclass
class Forced:
    """An answer to give instead of deciding: a refusal by `reason`, or a whole `reply`."""

    status: int = 401
    reason: str | None = None
    only_signed: bool = True
    reply: Reply | None = None
    close: bool = False
    drop: bool = False


@dataclass
class Verifier:
    """Issues challenges per connection, checks proofs, records everything. Thread-safe by `lock`."""

    key: dict[str, str]
    binding: str = "tls-exporter"
    algs: str = "ed25519 ecdsa-p256-sha256"
    max_age_s: int = 60
    evidence: str = "none"
    challenges_per_answer: int = 1
    clock_ahead_s: float = 0.0
    received: list[Received] = field(default_factory=list)
    forced: deque[Forced] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)
    issued: dict[str, int] = field(default_factory=dict)
    spent: set[str] = field(default_factory=set)

    def answer(
        self, connection: int, http_version: str, binding: bytes | None, message: RequestMessage, body: bytes
    ) -> Reply:
        with self.lock:
            signed = any(name == "signature" for name, _ in message.headers)
            reply, reason = self._decide(connection, binding, message, body, signed=signed)
            self.received.append(Received(connection, http_version, message, body, signed, reply.status, reason))
            return reply

    def _decide(
        self, connection: int, binding: bytes | None, message: RequestMessage, body: bytes, *, signed: bool
    ) -> tuple[Reply, str | None]:
        if self.forced and (signed or not self.forced[0].only_signed):
            forced = self.forced.popleft()
            if forced.reply:
                return forced.reply, forced.reason
            return self._refusal(connection, forced.status, forced.reason, forced), forced.reason
        if not message.target.startswith("/protected"):
            return self._open(message, body), None
        try:
            self._check(connection, binding, message, body)
        except PchError as error:
            status = 403 if error.reason in {"binding_mismatch", "alg_not_allowed"} else 401
            return self._refusal(connection, status, str(error.reason)), str(error.reason)
        headers = [
            self._date(),
            (b"content-type", b"text/plain"),
            (b"pch-receipt", b'"0192f0c1-7e7e-7000-8000-000000000000"'),
            (b"pch-challenge", self._fresh(connection)),
        ]
        return Reply(200, headers, b"app:" + body), None

    def _open(self, message: RequestMessage, body: bytes) -> Reply:
        if message.target.startswith("/redirect/"):
            status, _, location = message.target.removeprefix("/redirect/").partition("/")
            to = base64.urlsafe_b64decode(location)
            return Reply(int(status), [self._date(), (b"location", to)])
        if message.target.startswith("/big/"):
            return Reply(200, [self._date()], b"x" * int(message.target.removeprefix("/big/")))
        return Reply(200, [self._date()], b"open:" + body)

    def _check(self, connection: int, binding: bytes | None, message: RequestMessage, body: bytes) -> None:
        found = proof.select_proofs(message).first
        sent = proof.check_binding_syntax(message)
        if self.binding == "none":
            assert sent is None
        else:
            assert binding is not None
            proof.check_binding(sent, binding)
        assert found.key_id == thumbprint(self.key)
        if self.issued.get(found.nonce) != connection:
            raise _Stale
        now_ms = int((time.time() + self.clock_ahead_s) * 1000)
        proof.check_times(found, now_ms=now_ms, max_age_s=self.max_age_s, skew_s=2)
        bound = self.binding != "none"
        required = proof.required_components(message, bound=bound, has_content=bool(body))
        proof.check_components(found, required)
        verify(message, found.params, found.signature, public_key_from_jwk(public_jwk(self.key)))
        if found.nonce in self.spent:
            raise _Replay
        self.spent.add(found.nonce)
        if body:
            verify_content_digest(message.lines("content-digest"), body)

    def _refusal(self, connection: int, status: int, reason: str | None, forced: Forced | None = None) -> Reply:
        headers = [self._date(), (b"content-type", b"application/problem+json")]
        if reason:
            headers.append((b"pch-reason", reason.encode()))
        if status == 401:
            challenge = self._issue(connection)
            text = (
                f'PCH realm="signet", challenge="{challenge}", algs="{self.algs}", mode="and", '
                f'binding="{self.binding}", max-age={self.max_age_s}, evidence="{self.evidence}"'
            )
            headers.append((b"www-authenticate", text.encode()))
            headers.append((b"pch-challenge", f'"{challenge}"'.encode()))
        close = bool(forced and forced.close)
        if close:
            headers.append((b"connection", b"close"))
        return Reply(status, headers, b"{}", close=close, drop=bool(forced and forced.drop))

    def _fresh(self, connection: int) -> bytes:
        return ", ".join(f'"{self._issue(connection)}"' for _ in range(self.challenges_per_answer)).encode()

    def _issue(self, connection: int) -> str:
        token = bytes([1]) + (1).to_bytes(4) + int(time.time() * 1000).to_bytes(8) + secrets.token_bytes(32)
        text = base64.urlsafe_b64encode(token).decode()
        self.issued[text] = connection
        return text

    def _date(self) -> tuple[bytes, bytes]:
        return b"date", email.utils.formatdate(time.time() + self.clock_ahead_s, usegmt=True).encode()


class _Stale(PchError):
    reason = "stale_challenge"  # type: ignore[assignment]


class _Replay(PchError):
    reason = "nonce_replay"  # type: ignore[assignment]
