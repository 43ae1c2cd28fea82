"""The filter's real parts on temporary files, with a clock and randomness that tests set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from extproc.challenge import issue
from extproc.challenge_supply import ChallengeSupply
from extproc.config import FilterConfig, load_config
from extproc.decision import Answer
from extproc.evidence import EvidenceDesk, EvidenceParts
from extproc.evidence_log import EvidenceLog
from extproc.keyring import KeyringFile
from extproc.nonce_store.memory import MemoryNonceStore
from extproc.pipeline import Parts, Pipeline
from extproc.plan import Plan
from extproc.request import EdgeRequest
from extproc.rules import Rules, rules_of
from extproc.sealing_keys import FileSealingKeys
from extproc.stress_desk import StressDesk, StressTelemetry
from extproc.telemetry import Telemetry
from pch.algorithms import Signer
from pch.httpsig.content_digest import content_digest
from pch.httpsig.message import RequestMessage
from pch.httpsig.sign import sign
from pch.httpsig.signature_field import serialise_signature
from pch.httpsig.signature_input import make_signature_params, serialise_signature_input
from pch.keys import generate, private_key_from_jwk, public_jwk
from pch.proof import binding_header
from receipts.open_store import open_store
from receipts.receipt_id import WriterId
from receipts.refusals import RefusalLimiter
from receipts.writer import ReceiptWriter

NOW_MS = 1_790_000_000_000
BINDING = bytes(range(32))
OTHER_BINDING = bytes(range(1, 33))
AUTHORITY = "app.example"
CONFIG = """
[filter]
workers = 1
socket_dir = "run"
[nonce_store]
kind = "memory"
[[route]]
name = "open"
path = "/public/**"
guard = "open"
[[route]]
name = "unbound"
path = "/unbound/**"
binding = "none"
[[route]]
name = "upgrade"
path = "/socket"
permit_upgrade = true
[[route]]
name = "small"
path = "/small"
max_body_bytes = 8
[[route]]
name = "alice-only"
path = "/alice"
subjects = ["alice"]
[[route]]
name = "p256-only"
path = "/p256"
algorithms = ["ecdsa-p256-sha256"]
[[route]]
name = "protected"
path = "/protected/**"
"""


@dataclass
class SetClock:
    """A clock that stands until it is set."""

    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


class CountingRandom:
    """Distinct bytes without chance."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_128(self._count.to_bytes(8, "big")).digest(length)


@dataclass
class KeyPair:
    """A registered key with its private half."""

    subject: str
    signer: Signer
    jwk: dict[str, Any]
    status: str = "active"
    not_before: str | None = None
    not_after: str | None = None
    partner: str | None = None

    @classmethod
    def new(cls, subject: str, algorithm: str = "ed25519", **extra: Any) -> KeyPair:
        private = generate(algorithm)
        return cls(subject, private_key_from_jwk(private), dict(public_jwk(private)), **extra)

    def entry(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "jwk": self.jwk,
            "not_before": self.not_before,
            "not_after": self.not_after,
            "status": self.status,
            "partner": self.partner,
        }


@dataclass
class FilterParts:
    """A pipeline with real stores in `directory`."""

    directory: Path
    keys: dict[str, KeyPair]
    config_text: str = CONFIG
    clock: SetClock = field(default_factory=SetClock)
    random: CountingRandom = field(default_factory=CountingRandom)

    def __post_init__(self) -> None:
        keyring = self.directory / "keyring.json"
        keyring.write_text(json.dumps([key.entry() for key in self.keys.values()]))
        keyring.chmod(0o600)
        path = self.directory / "filter.toml"
        path.write_text(self.config_text)
        self.config: FilterConfig = load_config(path, {})
        self.rules: Rules = rules_of(self.config)
        self.keyring = KeyringFile(keyring)
        self.sealing_keys = FileSealingKeys(self.config.sealing.path, self.clock, self.config.filter.max_age_s)
        # The store's contents begin one minute before the clock's first reading.
        self.nonce_store = MemoryNonceStore(max_age_s=60, clock_ms=lambda: NOW_MS - 60_000, max_entries=1000)
        self.store = open_store(self.config.receipts.url)
        self.writer = ReceiptWriter(self.store, writer_id=WriterId("11111111-1111-4111-8111-111111111111"))
        self.refusals = RefusalLimiter(self.config.receipts.max_refusal_receipts_per_s)
        self.registry = CollectorRegistry()
        self.telemetry = Telemetry(self.registry)
        self.evidence_log = EvidenceLog(self.config.log.dir, self.config.log.origin)
        self.stress = StressDesk(
            self.config, StressTelemetry(self.registry), index=0, now_ms=self.clock, random_below=lambda _: 0
        )
        self.parts = Parts(
            rules=lambda: self.rules,
            keyring=lambda: self.keyring.current,
            sealing_keys=self.sealing_keys,
            nonce_store=self.nonce_store,
            writer=self.writer,
            refusals=self.refusals,
            supply=ChallengeSupply(Plan(), self.clock),
            telemetry=self.telemetry,
            evidence=EvidenceDesk(
                EvidenceParts(
                    nonce_store=self.nonce_store,
                    sealing_keys=self.sealing_keys,
                    log=self.evidence_log,
                    writer=self.writer,
                    telemetry=self.telemetry,
                    random_bytes=self.random,
                )
            ),
            clock_ms=self.clock,
            random_bytes=self.random,
            stress=self.stress,
        )
        self.pipeline = Pipeline(self.parts)

    async def start(self) -> None:
        self.writer.start()
        await self.nonce_store.start()

    async def stop(self) -> None:
        await self.writer.aclose(5.0)
        await self.nonce_store.close()
        self.evidence_log.close()
        self.store.close()

    async def answer(self, request: EdgeRequest) -> Answer:
        return await self.pipeline.answer(request)

    def challenge(self, *, binding: bytes = BINDING, authority: str = AUTHORITY, realm: str = "signet") -> str:
        return issue(
            self.sealing_keys,
            realm=realm,
            authority=authority,
            binding32=binding,
            now_ms=self.clock.now_ms,
            random16=self.random(16),
        )


def edge_request(message: RequestMessage, **changes: Any) -> EdgeRequest:
    """Wrap `message` as the edge would hand it over."""
    length = message.lines("content-length")
    values: dict[str, Any] = {
        "message": message,
        "stream_id": "1001",
        "edge_instance": "edge-1",
        "binding": BINDING,
        "body": b"",
        "body_cut": False,
        "content_length": int(length[0]) if length else None,
        "header_bytes": sum(len(name) + len(value) + 4 for name, value in message.headers),
        "trace_id": None,
        "is_grpc": False,
    }
    return EdgeRequest(**(values | changes))


DEFAULT_COMPONENTS = ("@method", "@authority", "@path", "@query")


def signed_message(
    key: KeyPair,
    challenge: str,
    *,
    method: str = "GET",
    target: str = "/protected",
    body: bytes = b"",
    binding: bytes | None = BINDING,
    created_s: int = NOW_MS // 1000,
    lifetime_s: int = 60,
    headers: tuple[tuple[str, bytes], ...] = (),
    components: tuple[str, ...] | None = None,
    **overrides: Any,
) -> RequestMessage:
    """Sign a request as PCH §3 wants it; `overrides` replace signature parameters."""
    fields = list(headers)
    covered = list(DEFAULT_COMPONENTS)
    if body:
        fields += [("content-length", str(len(body)).encode()), ("content-digest", content_digest(body).encode())]
        covered.append("content-digest")
    if binding is not None:
        fields.append(("pch-channel-binding", binding_header(binding)))
        covered.append("pch-channel-binding")
    message = RequestMessage(method, "https", AUTHORITY, target, tuple(fields))
    values = {
        "created": created_s,
        "expires": created_s + lifetime_s,
        "keyid": key.signer.key_id,
        "alg": key.signer.algorithm.name,
        "nonce": challenge,
        "tag": "pch",
    } | overrides
    params = make_signature_params(covered if components is None else components, **values)
    signature = sign(message, params, key.signer)
    fields += [
        ("signature-input", serialise_signature_input({"pch": params}).encode()),
        ("signature", serialise_signature({"pch": signature}).encode()),
    ]
    return RequestMessage(method, "https", AUTHORITY, target, tuple(fields))
