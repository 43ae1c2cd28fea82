from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from receipts.facts import (
    EventFacts,
    OutcomeFacts,
    PolicyFacts,
    ProofFacts,
    SignatureFacts,
    WindowFacts,
    request_facts,
)
from receipts.receipt import ReceiptDraft, idempotency_key
from receipts.receipt_id import ReceiptId, WriterId, new_receipt_id
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.store_fixtures import (  # noqa: F401
    _postgres_session,
    any_store,
    own_postgres,
    postgres,
    postgres_url,
    store_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

WRITER = WriterId("7c9e6679-7425-40de-944b-e07fc1f90ae7")
TIME_MS = 1_763_712_000_123


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def example_id(number: int) -> ReceiptId:
    return new_receipt_id(TIME_MS, hashlib.sha256(b"id %d" % number).digest()[:10])


def _examples() -> dict[str, ReceiptDraft]:
    """One draft of every kind: the examples of docs/reference/receipt.md and tests/vectors/receipts."""
    key = idempotency_key(TIME_MS - 1500, hashlib.sha256(b"token").digest())
    request = request_facts(
        method="POST",
        authority="api.example.com",
        target="/protected/orders?draft=1",
        content="verified",
        content_sha256=sha256_hex('{"item":7}'),
        edge_request_id="8217943017724931153",
    )
    proof = ProofFacts(
        subject="build-robot",
        signatures=(
            SignatureFacts(
                tag="pch",
                key_id="kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
                alg="ed25519",
                base_sha256=sha256_hex("signature base"),
                signature_sha256=sha256_hex("signature"),
            ),
        ),
        binding="tls-exporter",
        binding_sha256=sha256_hex("binding"),
        challenge_sha256=sha256_hex("challenge"),
        created_s=1_763_712_000,
        expires_s=1_763_712_060,
        covered=('"@method"', '"@authority"', '"@path"', '"@query"', '"content-digest"', '"pch-channel-binding"'),
        content_sha256=sha256_hex('{"item":7}'),
        evidence_sha256=None,
        spend_key=key.hex(),
    )
    policy = PolicyFacts(
        sha256_hex("policy"),
        {
            "route": "protected",
            "subject": "build-robot",
            "method": "POST",
            "path": "/protected/orders",
            "time_ms": TIME_MS,
        },
    )
    common: dict[str, Any] = {"time_ms": TIME_MS, "trace_id": "0af7651916cd43dd8448eb211c80319c"}
    return {
        "decision": ReceiptDraft(
            kind="decision",
            id=example_id(1),
            request=request,
            decision="allow",
            reason="allowed",
            route="protected",
            proof=proof,
            plan_digest=sha256_hex("plan"),
            policy=policy,
            idempotency_key=key,
            **common,
        ),
        "body_verdict": ReceiptDraft(
            kind="body_verdict",
            id=example_id(2),
            request=request_facts(
                method="POST", authority="api.example.com", target="/protected/big", content="unchecked"
            ),
            decision="deny",
            reason="bad_content_digest",
            status=400,
            route="protected",
            refers_to=example_id(1),
            **common,
        ),
        "outcome": ReceiptDraft(
            kind="outcome",
            id=example_id(3),
            refers_to=example_id(1),
            outcome=OutcomeFacts(status=201, duration_us=18_250, flags=()),
            **common,
        ),
        "summary": ReceiptDraft(
            kind="summary",
            id=example_id(4),
            time_ms=TIME_MS,
            route="protected",
            window=WindowFacts(1_763_711_999_000, 1_763_712_000_000),
            counts={"stale_challenge": 12, "bad_signature": 3411},
        ),
        "log_event": ReceiptDraft(
            kind="log_event",
            id=example_id(5),
            time_ms=TIME_MS,
            event=EventFacts("pruned", {"before_ms": 1_755_000_000_000, "receipts": 120_000}),
        ),
    }


@pytest.fixture
def writer() -> WriterId:
    return WRITER


@pytest.fixture
def examples() -> Mapping[str, ReceiptDraft]:
    return _examples()


@pytest.fixture
def make_draft() -> Callable[..., ReceiptDraft]:
    """Make decision drafts with ids of their own; keyword arguments replace fields."""
    counter = iter(range(1_000, 1_000_000))
    base = _examples()["decision"]
    proof = base.proof
    assert proof is not None

    def make(**changes: Any) -> ReceiptDraft:
        key = changes.setdefault("idempotency_key", None)
        fresh = {
            "id": example_id(next(counter)),
            "proof": msgspec.structs.replace(proof, spend_key=None if key is None else key.hex()),
        }
        return dataclasses.replace(base, **(fresh | changes))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteReceiptStore]:
    opened = SqliteReceiptStore(tmp_path / "receipts.sqlite3", busy_timeout_ms=5000)
    yield opened
    opened.close()
