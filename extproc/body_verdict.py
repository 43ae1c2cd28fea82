"""The verdict on a body: bound to the decision that left it pending, and durable before the last chunk goes on.

The decision is read back from the store, so any worker may see any body through. A decision has one verdict at the
most: a second stream that names the same receipt is refused, and so is one whose request is not the receipt's.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from extproc.body_order import ForgedOrder
from pch.errors import StoreUnavailable
from pch.httpsig.content_digest import REQUIRED_ALGORITHM
from pch.reasons import ANSWERS, Reason
from receipts.errors import StoreError
from receipts.facts import RequestFacts, request_facts
from receipts.receipt import ReceiptDraft, idempotency_key
from receipts.receipt_id import ID_RANDOM_BYTES, new_receipt_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.body_order import BodyOrder
    from extproc.body_stream import Finished
    from receipts.receipt_id import ReceiptId
    from receipts.store import ReceiptStore
    from receipts.writer import ReceiptWriter

_KEY_DOMAIN: Final = b"signet body verdict v1\x00"


class _Proof(msgspec.Struct, frozen=True):
    subject: str
    content_sha256: str | None


class _Decision(msgspec.Struct, frozen=True):
    """What a verdict needs of its decision's receipt; anything else there is no decision to go by."""

    kind: Literal["decision"]
    decision: Literal["allow"]
    reason: Literal["body_pending", "allowed"]
    trace_id: str | None
    route: str
    request: RequestFacts
    proof: _Proof


@dataclass(frozen=True, slots=True)
class RecalledBody:
    """An order whose decision is in the store and fits it; built by `BodyVerdicts.recall` alone."""

    order: BodyOrder
    request: RequestFacts
    route: str
    trace_id: str | None
    subject: str


_decoder: Final = msgspec.json.Decoder(_Decision)


class BodyVerdicts:
    """Recall decisions and settle what they left pending. Owned by one event loop.

    `store` is only read, from a thread. `timeout_s`: how long one receipt may take. `clock_ms`: milliseconds since the
    epoch.
    """

    def __init__(
        self,
        store: ReceiptStore,
        writer: ReceiptWriter,
        *,
        timeout_s: Callable[[], float],
        clock_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._store, self._writer = store, writer
        self._timeout_s, self._clock_ms, self._random_bytes = timeout_s, clock_ms, random_bytes

    async def recall(self, order: BodyOrder, *, method: str, target: str) -> RecalledBody:
        """Find the decision that `order` names, and see that it is about this request, body and all.

        `method`, `target`: of the request as ext_proc sees it. Raises `ForgedOrder`, `StoreUnavailable`.
        """
        try:
            async with asyncio.timeout(self._timeout_s()):
                stored = await asyncio.to_thread(self._store.get, order.receipt_id)
        except (StoreError, TimeoutError) as error:
            raise StoreUnavailable("the decision's receipt could not be read") from error
        if stored is None:
            raise ForgedOrder("the order names no receipt")
        try:
            decision = _decoder.decode(stored.raw)
        except msgspec.MsgspecError as error:
            raise ForgedOrder("the order names no decision that let a request on") from error
        _check_fits(order, decision, method, target)
        return RecalledBody(order, decision.request, decision.route, decision.trace_id, decision.proof.subject)

    async def settle(self, body: RecalledBody, reason: Reason, finished: Finished | None = None) -> None:
        """Write the verdict; on return it is durable. Nothing to write when the decision left nothing pending.

        `finished`: the body, for the reason `allowed`. Raises `ForgedOrder` when there is a verdict already,
        `StoreUnavailable`.
        """
        if not body.order.pending:
            return
        try:
            stored = await self._writer.append(self._draft(body, reason, finished), self._timeout_s())
        except StoreError as error:
            raise StoreUnavailable("the verdict could not be written") from error
        if stored.duplicate:
            raise ForgedOrder("the body was settled before")

    def _draft(self, body: RecalledBody, reason: Reason, finished: Finished | None) -> ReceiptDraft:
        now_ms = self._clock_ms()
        request = msgspec.structs.replace(
            body.request,
            content="unchecked" if finished is None else "verified",
            content_sha256=None if finished is None else finished.sha256.hex(),
        )
        return ReceiptDraft(
            kind="body_verdict",
            id=new_receipt_id(now_ms, self._random_bytes(ID_RANDOM_BYTES)),
            time_ms=now_ms,
            trace_id=body.trace_id,
            refers_to=body.order.receipt_id,
            request=request,
            decision="deny" if finished is None else "allow",
            reason=str(reason),
            status=ANSWERS[reason].status if finished is None else None,
            route=body.route,
            idempotency_key=verdict_key(body.order.receipt_id),
        )


def verdict_key(decision_id: ReceiptId) -> bytes:
    """Build the key under which a decision has one body verdict; laid out like that of its outcome."""
    packed = bytes.fromhex(decision_id.replace("-", ""))
    return idempotency_key(int.from_bytes(packed[:6], "big"), hashlib.sha256(_KEY_DOMAIN + packed).digest())


def _check_fits(order: BodyOrder, decision: _Decision, method: str, target: str) -> None:
    said = decision.request
    seen = request_facts(method=method, authority="", target=target, content="none")
    if (seen.method, seen.path, seen.query_sha256) != (said.method, said.path, said.query_sha256):
        raise ForgedOrder("the decision is about another request")
    state = ("body_pending", "pending") if order.pending else ("allowed", "verified")
    if (decision.reason, said.content) != state:
        raise ForgedOrder("the decision says otherwise about the body")
    signed = decision.proof.content_sha256 if order.pending else said.content_sha256
    if signed != order.digests[REQUIRED_ALGORITHM].hex():
        raise ForgedOrder("the decision is about another body")
