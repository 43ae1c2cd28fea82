"""The stage of the attacks: a whole stack with known keys, its receipts, and everything that its app ever saw."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from extproc.challenge import issue
from extproc.sealing_keys import FileSealingKeys
from tests.e2e.attack_request import Request, sign_request
from tests.e2e.attack_wire import SESSIONS, Answer
from tests.support.filter_parts import KeyPair
from tools.stack import Stack
from tools.stack_certs import write_private
from tools.stack_config import DEMO_ROUTES, Ports, StackSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.attack_wire import Session

WAIT_S: Final = 10.0
POLL_S: Final = 0.02
ROUTES: Final = (
    {"name": "small", "path": "/small/**", "max_body_bytes": 8},
    {"name": "held", "path": "/held/**", "max_body_bytes": 1 << 20},
    {"name": "big", "path": "/big/**", "max_body_bytes": 16 << 20},
    {"name": "p256-only", "path": "/p256/**", "algorithms": ["ecdsa-p256-sha256"]},
    {"name": "alice-only", "path": "/alice/**", "subjects": ["alice"]},
    {"name": "get-only", "path": "/get-only/**", "methods": ["GET"]},
    {
        "name": "wide",
        "path": "/wide/**",
        **dict.fromkeys(("max_header_bytes", "max_field_bytes", "max_signature_bytes"), 49_152),
    },
    *DEMO_ROUTES,
)
_OWN_BINDING: Final = b""
T = TypeVar("T")
_numbers = itertools.count(1)


def wait_until(probe: Callable[[], T | None], what: str, within_s: float = WAIT_S) -> T:
    """Poll until `probe` gives something true; fail with `what` when it does not in time."""
    deadline = time.monotonic() + within_s
    while not (found := probe()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(POLL_S)
    return found


@dataclass
class Stage:
    """A running stack. One test at a time."""

    stack: Stack
    keys: dict[str, KeyPair]
    accepted: int = 0
    _app_offset: int = 0
    _receipts: http.client.HTTPConnection | None = field(default=None, repr=False)

    @property
    def var(self) -> Path:
        return self.stack.settings.var

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.stack.settings.ports.https)

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.stack.settings.ports.https}"

    def connect(self, protocol: str) -> Session:
        return SESSIONS[protocol](self.address, self.stack.files.tls / "ca.pem")

    def seen_by_app(self) -> list[dict[str, Any]]:
        """Give what reached the app since the last call."""
        with self.stack.files.app_log.open("rb") as log:
            log.seek(self._app_offset)
            lines = log.read().split(b"\n")[:-1]
        self._app_offset += sum(len(line) + 1 for line in lines)
        return [json.loads(line) for line in lines]

    def receipt(self, receipt_id: str) -> dict[str, Any]:
        """Fetch a receipt as an operator does. Fails when the store has none of this id."""
        found: dict[str, Any] = self.admin(f"/receipts/{receipt_id}")
        return found

    def receipts_of(self, marker: str) -> list[dict[str, Any]]:
        """Give those of the newest 100 receipts whose path holds `marker`, newest first."""
        latest = [each["receipt"] for each in self.admin("/receipts/latest?limit=100")["receipts"]]
        return [each for each in latest if each.get("request") and marker in each["request"]["path"]]

    def admin(self, path: str) -> Any:
        return json.loads(self.admin_text(path))

    def admin_text(self, path: str) -> bytes:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.stack.settings.ports.admin, timeout=WAIT_S)
        ) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (path, answer.status, body)
        return body

    def mint(
        self,
        binding: bytes,
        *,
        issued_ms: int | None = None,
        authority: str | None = None,
        realm: str = "signet",
        keys: FileSealingKeys | None = None,
        relax_grant: bool = False,
    ) -> str:
        """Issue a challenge with the stack's own sealing key, as no attacker could: only for what time would take."""
        now_ms = time.time_ns() // 1_000_000
        return issue(
            keys or FileSealingKeys(self.var / "sealing.json", lambda: now_ms, 60),
            realm=realm,
            authority=authority or self.authority,
            binding32=binding,
            now_ms=now_ms if issued_ms is None else issued_ms,
            random16=os.urandom(16),
            relax_grant=relax_grant,
        )

    def foreign_sealing_keys(self) -> FileSealingKeys:
        """Sealing keys of another installation."""
        now_ms = time.time_ns() // 1_000_000
        return FileSealingKeys(self.var / "foreign-sealing.json", lambda: now_ms, 60)


@contextlib.contextmanager
def open_stage(var: Path, **settings: Any) -> Iterator[Stage]:
    """Start a stack whose keyring holds one key of each kind."""
    keys = {
        "demo": KeyPair.new("demo"),
        "alice": KeyPair.new("alice"),
        "p256": KeyPair.new("demo", "ecdsa-p256-sha256"),
        "revoked": KeyPair.new("mallory", status="revoked"),
        "future": KeyPair.new("demo", not_before="2099-01-01T00:00:00Z"),
        "past": KeyPair.new("demo", not_after="2020-01-01T00:00:00Z"),
    }
    write_private(var / "keyring.json", json.dumps([key.entry() for key in keys.values()]).encode())
    keys["stranger"] = KeyPair.new("stranger")
    with Stack(StackSettings(var, Ports.free(), routes=ROUTES, **settings)) as stack:
        yield Stage(stack, keys)


@dataclass
class Attacker:
    """One client with a fresh connection; `marker` is in the path of every request it makes."""

    stage: Stage
    protocol: str
    marker: str = field(default_factory=lambda: f"case-{next(_numbers)}-{os.urandom(4).hex()}")
    _sessions: list[Session] = field(default_factory=list)

    @property
    def session(self) -> Session:
        return self._sessions[0] if self._sessions else self.connect()

    def connect(self) -> Session:
        """Open a further connection; the first one is `session`."""
        self._sessions.append(self.stage.connect(self.protocol))
        return self._sessions[-1]

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def target(self, prefix: str = "/protected", rest: str = "") -> str:
        return f"{prefix}/{self.marker}{rest}"

    def request(self, target: str | None = None, method: str = "GET", **changes: Any) -> Request:
        """An unsigned request."""
        return Request(method, target or self.target(), self.stage.authority, **changes)

    def challenge(self, session: Session | None = None) -> str:
        """Ask for a challenge as any client does: by an unsigned request."""
        answer = (session or self.session).send(self.request())
        assert (answer.status, answer.reason) == (401, "missing_signature")
        return answer.challenges[0]

    def signed(
        self,
        request: Request | None = None,
        key: str = "demo",
        *,
        challenge: str | None = None,
        binding: bytes | None = _OWN_BINDING,
        **options: Any,
    ) -> Request:
        """Sign a request for this attacker's connection, or for whatever the options say instead."""
        return sign_request(
            request or self.request(),
            self.stage.keys[key],
            challenge=self.challenge() if challenge is None else challenge,
            binding=self.session.binding if binding == _OWN_BINDING else binding,
            **options,
        )

    def send(self, request: Request) -> Answer:
        return self.session.send(request)


@contextlib.contextmanager
def attack(stage: Stage, protocol: str) -> Iterator[Attacker]:
    """An attacker whose connections end with the block. What reached the app earlier is read before."""
    attacker = Attacker(stage, protocol)
    stage.seen_by_app()
    try:
        yield attacker
    finally:
        attacker.close()


def body_of(record: dict[str, Any]) -> bytes:
    """Give the content that the app logged."""
    return base64.b64decode(record["body_base64"])
