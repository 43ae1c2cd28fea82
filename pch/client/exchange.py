"""Decide what one request sends next, and when its answer is final (PCH §5, §9). Pure: drivers do the I/O.

1. A challenge is at hand: sign for this connection and send. 2. None is, and the request has content or changes
something: ask by HEAD, so that content travels once and nothing is done twice. 3. Else send it unsigned: a guarded
route answers 401 with a challenge and does nothing. 4. A refused signed request is signed again once, if its reason
allows it. 5. One that is told that its header is over budget goes out again once with evidence and ML-DSA signatures
in an envelope, before its content or, without any, ahead of it. A challenge never leaves the connection it came on,
and no proof is ever used on another connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pch.client.challenge import (
    ChallengeText,
    PchChallenge,
    parse_pch_challenge,
    parse_reason,
    parse_receipt_id,
    parse_www_authenticate,
)
from pch.client.errors import ChallengeSyntaxError, ChallengeUnusable, ConnectionLost, NetworkError
from pch.client.limits import (
    MAX_LOST_CONNECTIONS,
    MAX_PROBES,
    MAX_RELAX_ROUNDS,
    MAX_SIGNED_RETRIES,
    MAX_UNSIGNED_SENDS,
)
from pch.client.relaxing import is_relaxable, sign_with_evidence
from pch.client.response import Headers, Response
from pch.client.upload import Upload
from pch.reasons import Reason
from pch.relaxed import RELAX_FIELD, RELAX_HINT, RELAXED_FIELD, is_relax_offer

if TYPE_CHECKING:
    from pch.algorithms import Signer
    from pch.client.channel import Channel
    from pch.client.request import Request
    from pch.client.upload import Sending
    from pch.httpsig.message import HeaderLines

SIGN_AGAIN: Final = frozenset(
    {
        Reason.MISSING_SIGNATURE,
        Reason.MALFORMED_SIGNATURE,
        Reason.STALE_CHALLENGE,
        Reason.BAD_SIGNATURE,
        Reason.UNKNOWN_KEY,
        Reason.EXPIRED_SIGNATURE,
        Reason.MISSING_COMPONENT,
    }
)
"""The 401 reasons after which any method is signed again, once (PCH §5)."""


@dataclass(frozen=True, slots=True)
class WireRequest:
    """One request as it goes out.

    `bases`: the signature bases if it is signed, else empty. `envelope`: goes before the content. `is_ahead`: it brings
    the envelope of the request that follows it.
    """

    request: Request
    headers: HeaderLines
    bases: tuple[bytes, ...] = ()
    envelope: bytes = b""
    is_ahead: bool = False

    @property
    def content(self) -> bytes | Sending:
        """Give all that follows the header."""
        body = self.request.body
        if isinstance(body, Upload):
            return body.with_envelope(self.envelope)
        return self.envelope + body if self.envelope else body

    @property
    def is_signed(self) -> bool:
        """Tell whether it carries a proof."""
        return bool(self.bases)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came in. `connection_ended`: its connection takes no further request."""

    status: int
    headers: Headers
    content: bytes
    http_version: str
    connection_ended: bool


Observer = Callable[[WireRequest, Answer], None]
"""Called after every answer, also those that are not final; for people who want to watch."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """What all exchanges of one client share. Clocks: `clock_s` since the epoch, `monotonic_s` for ages.

    `evidence`: canonical bytes (PCH §7). `relax`: auto, always or never.
    """

    signers: tuple[Signer, ...]
    binding: str
    clock_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    observer: Observer | None = None
    evidence: bytes | None = None
    relax: str = "auto"

    @property
    def algorithm(self) -> str:
        """Give the name as a challenge's `algs` lists it; a hybrid's halves are joined with `+`."""
        return "+".join(signer.algorithm.name for signer in self.signers)


class Exchange:
    """One request on its way to a final answer. Used by one thread or task."""

    def __init__(self, request: Request, settings: ExchangeSettings) -> None:
        self._request = request
        self._settings = settings
        self._reserved: tuple[Channel, ChallengeText] | None = None
        self._sent: WireRequest | None = None
        self._following: tuple[Channel, WireRequest] | None = None
        self._asked_to_relax = False
        self._relax_rounds = 0
        self._evidence_unwanted = False
        self._own_evidence = settings.evidence if request.carries_evidence else None
        self._probes = 0
        self._probed: Channel | None = None
        self._probes_budget = False
        self._sends = 0
        self._unsigned_sends = 0
        self._signed_retries = 0
        self._lost = 0

    def next_request(self, channel: Channel) -> WireRequest:
        """Build what goes out next on the connection of `channel`."""
        following, self._following = self._following, None
        request = self._request
        if following and following[0] is channel:
            self._sent = following[1]
        elif (challenge := self._take_challenge(channel)) is not None:
            self._sent = self._sign(channel, challenge)
        elif request.asks_first and not channel.unguarded and self._may_probe(channel):
            self._probed = channel
            self._probes += 1
            self._sent = WireRequest(request.probe(), ())
        else:
            self._unsigned_sends += 1
            self._sent = WireRequest(request, request.headers)
        self._sends += 1
        return self._sent

    def answered(self, channel: Channel, answer: Answer) -> Response | None:
        """Take the answer to the last request: the final response, or None when there is more to send.

        Raises `ChallengeUnusable`, `ChallengeSyntaxError`.
        """
        sent = self._sent
        if sent is None:
            raise RuntimeError("an answer without a request")
        if self._settings.observer:
            self._settings.observer(sent, answer)
        response = self._response(sent, answer)
        if sent.is_ahead:
            return self._after_ahead(response)
        if sent.is_signed and response.reason == Reason.STALE_CHALLENGE:
            channel.challenges.clear()
        offered = (
            parse_www_authenticate(answer.headers.all("www-authenticate")) if answer.status in {401, 431} else None
        )
        self._keep(channel, response, offered)
        if sent.request is not self._request:
            self._after_probe(channel, sent, answer, response, offered)
            return None
        if self._goes_on(channel, sent, answer, response, offered):
            return None
        return response

    def connection_gone(self, error: NetworkError, *, unsent: bool, reused: bool) -> None:
        """Allow another connection, or raise `error`.

        `unsent`: the server certainly did not process the request. `reused`: the connection had answered
        before, so that it may have ended between two requests, in which case idempotent methods go out again
        (RFC 9110 §9.2.2).
        """
        self._lost += 1
        # An envelope that is lost does nothing: the request that it is for did not go out.
        idempotent = self._sent is None or self._sent.is_ahead or self._sent.request.is_idempotent
        again = unsent or (reused and idempotent and isinstance(error, ConnectionLost))
        if not again or self._lost > MAX_LOST_CONNECTIONS:
            raise error

    def _may_probe(self, channel: Channel) -> bool:
        return self._probed is not channel and self._probes < MAX_PROBES

    def _take_challenge(self, channel: Channel) -> ChallengeText | None:
        reserved, self._reserved = self._reserved, None
        if reserved and (reserved[0] is channel or channel.binding is None):
            return reserved[1]
        return channel.challenges.take(self._settings.monotonic_s())

    def _sign(self, channel: Channel, challenge: ChallengeText) -> WireRequest:
        relaxed = self._relaxes(channel)
        request = self._request
        if self._probes_budget and not relaxed:
            # Its content would be refused once more, and the connection end with it: ask without.
            self._probes_budget = False
            request = request.probe()
        signed = sign_with_evidence(
            request.message(),
            request.body,
            evidence=self._evidence,
            relax=relaxed,
            signers=self._settings.signers,
            challenge=challenge,
            binding=channel.binding,
            created_s=channel.clock.now_s(self._settings.clock_s()),
            max_age_s=channel.challenges.max_age_s,
        )
        before = signed.envelope if request.body else b""
        wire = WireRequest(request, signed.headers, signed.bases, before)
        if not relaxed or before:
            return wire
        self._following = (channel, wire)
        ahead = self._request.ahead(challenge, signed.envelope)
        return WireRequest(ahead, ahead.headers, is_ahead=True)

    @property
    def _evidence(self) -> bytes | None:
        return None if self._evidence_unwanted else self._own_evidence

    def _relaxes(self, channel: Channel) -> bool:
        """Tell whether the next signed request is relaxed (PCH §6): when asked to, and when that moves anything."""
        wanted = self._asked_to_relax or channel.relaxing or self._settings.relax == "always"
        return wanted and self._settings.relax != "never" and self._can_relax(channel)

    def _can_relax(self, channel: Channel) -> bool:
        has_place = bool(self._request.body) or channel.binding is not None
        return has_place and is_relaxable(self._evidence, self._settings.signers)

    def _after_ahead(self, response: Response) -> Response | None:
        """Go on with the request that the envelope is for; if it was not taken in, that is the answer."""
        if response.status == 204:
            return None
        self._following = None
        return response

    def _keep(self, channel: Channel, response: Response, offered: PchChallenge | None) -> None:
        """Reserve the challenge of a 401 for this request, and pool the others for the next ones."""
        if offered:
            channel.challenges.max_age_s = offered.max_age_s
            channel.relaxing = RELAX_HINT in offered.hints
            self._evidence_unwanted = offered.evidence == "none"
            self._reserved = (channel, offered.challenge)
        own = offered.challenge if offered else None
        fresh = [challenge for challenge in response.challenges if challenge != own]
        channel.challenges.add(fresh, self._settings.monotonic_s())

    def _after_probe(
        self,
        channel: Channel,
        sent: WireRequest,
        answer: Answer,
        response: Response,
        offered: PchChallenge | None,
    ) -> None:
        if offered:
            self._check_usable(offered, response)
            if sent.is_signed and answer.status == 431:
                self._relaxes_now(channel, sent, answer, offered)
        elif not len(channel.challenges):
            channel.unguarded = True

    def _goes_on(
        self,
        channel: Channel,
        sent: WireRequest,
        answer: Answer,
        response: Response,
        offered: PchChallenge | None,
    ) -> bool:
        if not sent.is_signed:
            if offered is None:
                return False
            self._check_usable(offered, response)
            channel.unguarded = False
            return answer.status == 401 and (self._unsigned_sends < MAX_UNSIGNED_SENDS or not answer.connection_ended)
        if answer.status == 431:
            return self._relaxes_now(channel, sent, answer, offered)
        if self._signed_retries >= MAX_SIGNED_RETRIES or not self._may_sign_again(answer, response, offered):
            return False
        if offered:
            self._check_usable(offered, response)
        self._signed_retries += 1
        # A challenge that comes with a 401 grants nothing unless it says so.
        self._asked_to_relax = False
        if response.reason == Reason.EXPIRED_SIGNATURE:
            channel.clock.correct(answer.headers.get("date"), self._settings.clock_s())
        return True

    def _relaxes_now(self, channel: Channel, sent: WireRequest, answer: Answer, offered: PchChallenge | None) -> bool:
        """Tell whether a 431 is answered by a relaxed request."""
        offers = offered is not None and is_relax_offer(answer.headers.all(RELAX_FIELD))
        was_relaxed = any(name == RELAXED_FIELD for name, _ in sent.headers)
        if not offers or was_relaxed or self._settings.relax == "never" or not self._can_relax(channel):
            return False
        self._asked_to_relax = not answer.connection_ended
        # The grant ends with its connection. On the next one it is asked for without the content.
        self._probes_budget = answer.connection_ended
        self._relax_rounds += 1
        return self._relax_rounds <= MAX_RELAX_ROUNDS

    def _may_sign_again(self, answer: Answer, response: Response, offered: PchChallenge | None) -> bool:
        if response.reason == Reason.BINDING_MISMATCH:
            return answer.status == 403 and answer.connection_ended
        if offered is None:
            return False
        replayed = response.reason == Reason.NONCE_REPLAY and self._request.is_idempotent
        return response.reason in SIGN_AGAIN or replayed

    def _check_usable(self, offered: PchChallenge, response: Response) -> None:
        """Refuse to sign less than was configured, or what would be refused anyway."""
        if offered.binding != self._settings.binding:
            raise ChallengeUnusable(
                f"the route asks for binding {offered.binding}, this client is for {self._settings.binding}",
                response,
            )
        if self._settings.algorithm not in offered.algorithms:
            raise ChallengeUnusable(f"the route does not accept {self._settings.algorithm}", response)
        if offered.evidence == "required" and self._own_evidence is None:
            raise ChallengeUnusable("the route requires evidence, and this client has none for it", response)

    def _response(self, sent: WireRequest, answer: Answer) -> Response:
        try:
            challenges = parse_pch_challenge(answer.headers.all("pch-challenge"))
        except ChallengeSyntaxError:
            # The answer itself is good; without a usable challenge the next request asks for one.
            challenges = ()
        return Response(
            status=answer.status,
            headers=answer.headers,
            content=answer.content,
            url=str(sent.request.url),
            http_version=answer.http_version,
            receipt_id=parse_receipt_id(answer.headers.all("pch-receipt")),
            reason=parse_reason(answer.headers.all("pch-reason")),
            challenges=challenges,
            signed=sent.is_signed,
            sends=self._sends,
        )
