"""Evidence in the filter: envelopes are taken in and found again, and what they or a header hold is judged.

    POST /.well-known/pch/evidence ─▶ take_in ─▶ nonce store ─▶ sent_ahead ─▶ verifier
                                                            step 10, judge ─▶ our log

docs/reference/pch.md §6, §7. Nothing here lets a request through.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from extproc.challenge import open_challenge
from extproc.evidence_log import LogForkFound
from extproc.nonce_store import SKEW_MS
from extproc.nonce_store.envelopes import Keep, KeepResult
from pch import errors
from pch.httpsig.derived import normalised_authority
from pch.httpsig.errors import HttpSigError
from pch.httpsig.signature_input import parse_signature_input
from pch.proof import TAG
from pch.relaxed import EVIDENCE_PATH, MAX_ENVELOPE_BYTES, RELAXED_FIELD, Relaxed, parse_envelope, parse_relaxed_field
from receipts.errors import StoreError
from receipts.facts import EventFacts
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ID_RANDOM_BYTES, new_receipt_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.challenge import OpenChallenge
    from extproc.evidence_claim import EvidenceClaim
    from extproc.evidence_log import EvidenceLog
    from extproc.nonce_store import NonceStore
    from extproc.request import EdgeRequest
    from extproc.rules import Rules
    from extproc.sealing_keys import SealingKeys
    from extproc.telemetry import Telemetry
    from extproc.verifier import AdmittedRequest
    from receipts.writer import ReceiptWriter

LOG: Final = logging.getLogger("signet.evidence")
FORK_EVENT: Final = "log_fork"
"""The name of the `log_event` receipt of an alarm (docs/reference/receipt.md §10)."""
MAX_FORKS_REMEMBERED: Final = 256
"""Alarms whose receipt is written already: showing the same checkpoint again counts, and writes none."""
MAX_BYTES_AT_ONCE: Final = 4_096
"""Evidence up to this is read between two requests; 64 KiB of doubles take 60 ms, while others are answered."""
_CHALLENGE: Final = re.compile(rb'"([A-Za-z0-9_-]{60})"')


@dataclass(frozen=True, slots=True)
class EvidenceParts:
    """What the desk works with."""

    nonce_store: NonceStore
    sealing_keys: SealingKeys
    log: EvidenceLog
    writer: ReceiptWriter
    telemetry: Telemetry
    random_bytes: Callable[[int], bytes]


def sends_ahead(request: EdgeRequest) -> bool:
    """Tell whether `request` brings an envelope for a later one, PCH §6. It is the verifier's own, and has no route."""
    return request.message.target == EVIDENCE_PATH and request.message.method == "POST"


class EvidenceDesk:
    """Take in, find and judge evidence. Owned by one event loop."""

    def __init__(self, parts: EvidenceParts) -> None:
        self._parts = parts
        self._forks: dict[str, None] = {}

    async def take_in(self, request: EdgeRequest, rules: Rules, now_ms: int) -> None:
        """Keep the envelope that `request` brings for the challenge it names, PCH §6.

        Raises `EvidenceRejected` when either is not what it has to be, `Quota` when the connection has enough waiting,
        `BindingMissing`, `HeaderTooLarge`, `BodyTooLarge`, `StoreUnavailable`.
        """
        if request.header_bytes > rules.config.filter.max_header_bytes:
            raise errors.HeaderTooLarge("the header is over the hard cap")
        if request.body_cut or len(request.body) > MAX_ENVELOPE_BYTES:
            raise errors.BodyTooLarge("the envelope is too long")
        if request.binding is None:
            raise errors.BindingMissing("an envelope is kept for a connection, and the edge vouches for none")
        lines = request.message.lines("pch-challenge")
        named = _CHALLENGE.fullmatch(lines[0].strip(b" \t")) if len(lines) == 1 else None
        if named is None:
            raise errors.EvidenceRejected("one challenge has to be named")
        try:
            authority = normalised_authority(request.message.authority, request.message.scheme)
            challenge = self._open(named[1].decode("ascii"), authority, request.binding, rules, now_ms)
            parse_envelope(request.body)
        except (HttpSigError, errors.PeerFault) as error:
            raise errors.EvidenceRejected("the challenge is not good here, or the envelope is none") from error
        if not challenge.relax_grant:
            raise errors.EvidenceRejected("the challenge does not grant a relaxed form")
        keep = Keep(
            nonce=challenge.token,
            connection=hashlib.sha256(request.binding).digest(),
            envelope=request.body,
            expires_ms=challenge.issued_ms + rules.config.filter.max_age_s * 1000 + SKEW_MS,
            now_ms=now_ms,
        )
        result = await self._parts.nonce_store.keep_envelope(keep)
        if result is KeepResult.CONNECTION_FULL:
            raise errors.Quota("the connection has enough envelopes waiting")
        if result is not KeepResult.KEPT:
            raise errors.EvidenceRejected("the challenge was spent, or another envelope waits under it")

    async def sent_ahead(self, admitted: AdmittedRequest, rules: Rules, now_ms: int) -> bytes | None:
        """Find the envelope that was sent ahead of a request without content, PCH §6; None when none waits for it.

        Only under a challenge that is good here and granted: whatever else is wrong, the verifier says. Raises
        `StoreUnavailable`.
        """
        request, route = admitted.request, admitted.route
        # On a route without binding a challenge is of no connection, so none can have sent anything ahead.
        if request.has_content or not route.bound or admitted.binding is None or route.relax == "off":
            return None
        try:
            if parse_relaxed_field(request.message.lines(RELAXED_FIELD)) != Relaxed(None):
                return None
            inputs = parse_signature_input(request.message.lines("signature-input"))
            nonce = next((params.nonce for params in inputs.values() if params.tag == TAG), None)
            challenge = self._open(nonce or "", admitted.authority, admitted.binding, rules, now_ms)
        except (HttpSigError, errors.PeerFault):
            return None
        if not challenge.relax_grant:
            return None
        return await self._parts.nonce_store.find_envelope(challenge.token, now_ms)

    async def judge(self, claim: EvidenceClaim, rules: Rules, now_ms: int) -> None:
        """Judge the evidence of a request whose signature held, PCH §7 (§4 step 10).

        Raises `EvidenceRejected`, `LogForkFound` after the alarm, `StoreUnavailable`.
        """
        at_once = claim.raw is None or len(claim.raw) <= MAX_BYTES_AT_ONCE
        evidence = claim.settle() if at_once else await asyncio.to_thread(claim.settle)
        if evidence is None or evidence.checkpoint is None:
            return
        try:
            await self._parts.log.check(evidence.checkpoint)
        except LogForkFound as fork:
            await self._raise_alarm(fork, rules, now_ms)
            raise

    def _open(self, text: str, authority: str, binding: bytes, rules: Rules, now_ms: int) -> OpenChallenge:
        settings = rules.config.filter
        return open_challenge(
            text,
            self._parts.sealing_keys,
            realm=settings.realm,
            authority=authority,
            binding32=binding,
            now_ms=now_ms,
            max_age_ms=settings.max_age_s * 1000,
            skew_ms=settings.clock_skew_s * 1000,
        )

    async def _raise_alarm(self, fork: LogForkFound, rules: Rules, now_ms: int) -> None:
        """Tell operators, and the log itself: a receipt that states both roots at that size."""
        self._parts.telemetry.log_forks.inc()
        digest = str(fork.facts["checkpoint_sha256"])
        if digest in self._forks:
            return
        LOG.critical("LOG FORK: a checkpoint of %d entries that our keys signed has another root", fork.facts["size"])
        event = ReceiptDraft(
            kind="log_event",
            id=new_receipt_id(now_ms, self._parts.random_bytes(ID_RANDOM_BYTES)),
            time_ms=now_ms,
            event=EventFacts(FORK_EVENT, dict(fork.facts)),
        )
        try:
            await self._parts.writer.append(event, rules.config.receipts.timeout_ms / 1000)
        except StoreError as error:
            raise errors.StoreUnavailable("the alarm could not be recorded") from error
        self._forks[digest] = None
        if len(self._forks) > MAX_FORKS_REMEMBERED:
            del self._forks[next(iter(self._forks))]
