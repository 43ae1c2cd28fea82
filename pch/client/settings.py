"""What both clients are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pch.client.errors import InvalidRequest, TooManyRedirects
from pch.client.exchange import ExchangeSettings, Observer
from pch.client.limits import MAX_CONNECTIONS_PER_ORIGIN
from pch.client.signers import KeyTypes, signers_of
from pch.client.tls_session import TlsContext
from pch.errors import EvidenceRejected
from pch.evidence import canonical_evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pch.client.request import Request
    from pch.client.response import Response

RELAX_CHOICES: Final = ("auto", "always", "never")
"""When evidence and ML-DSA signatures leave the header (PCH §6): when the verifier asks, unasked, or not at all."""
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class ClientSettings:
    """Checked settings of one client; its parameters are those of `SigningClient`."""

    def __init__(
        self,
        *,
        key: KeyTypes,
        verify: bool | str | Path,
        http2: bool,
        binding: str,
        timeout_s: float,
        follow_redirects: bool,
        max_connections_per_origin: int,
        max_response_bytes: int,
        observer: Observer | None,
        clock_s: Callable[[], float],
        monotonic_s: Callable[[], float],
        evidence: Mapping[str, Any] | None = None,
        relax: str = "auto",
    ) -> None:
        if relax not in RELAX_CHOICES:
            raise InvalidRequest("relax is auto, always or never")
        if binding not in {"tls-exporter", "none"}:
            raise InvalidRequest("binding is tls-exporter or none")
        if timeout_s <= 0 or max_response_bytes <= 0:
            raise InvalidRequest("timeout_s and max_response_bytes are above 0")
        if not 1 <= max_connections_per_origin <= MAX_CONNECTIONS_PER_ORIGIN:
            raise InvalidRequest(f"max_connections_per_origin is from 1 to {MAX_CONNECTIONS_PER_ORIGIN}")
        self.timeout_s = timeout_s
        self.follow_redirects = follow_redirects
        self.max_connections_per_origin = max_connections_per_origin
        self.max_response_bytes = max_response_bytes
        self.tls = TlsContext(verify=verify, bound=binding == "tls-exporter", http2=http2)
        self.exchange = ExchangeSettings(
            signers_of(key), binding, clock_s, monotonic_s, observer, _evidence_bytes(evidence), relax
        )

    def check_sendable(self, request: Request) -> None:
        """Raise `InvalidRequest` for a request that cannot have the binding this client is set to."""
        if not request.url.origin.is_tls and self.exchange.binding != "none":
            raise InvalidRequest("a channel binding needs https")

    def redirect(self, request: Request, response: Response) -> Request | None:
        """Give the request that follows `response`, or None when it is final.

        Raises `TooManyRedirects` or, for a Location that is no http URL, `InvalidRequest`.
        """
        location = response.headers.get("location")
        if not self.follow_redirects or response.status not in REDIRECTS or location is None:
            return None
        url = request.url.join(location)
        if request.url.origin.is_tls and not url.origin.is_tls:
            raise TooManyRedirects("a redirect leads from https to http")
        return request.redirected(url, response.status)


def _evidence_bytes(evidence: Mapping[str, Any] | None) -> bytes | None:
    if evidence is None:
        return None
    try:
        return canonical_evidence(evidence)
    except EvidenceRejected as error:
        raise InvalidRequest(f"the evidence is not what PCH §7 says: {error}") from error
