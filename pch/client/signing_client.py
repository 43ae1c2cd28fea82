"""What the blocking client and the asyncio client have in common: their parameters, and a method for each verb."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pch.client.limits import DEFAULT_TIMEOUT_S, MAX_CONNECTIONS_PER_ORIGIN, MAX_RESPONSE_BODY_BYTES
from pch.client.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pch.client.exchange import Observer
    from pch.client.request import ContentTypes, HeaderTypes, ParamTypes
    from pch.client.signers import KeyTypes

AnswerT = TypeVar("AnswerT")


class SigningClient(ABC, Generic[AnswerT]):
    """Sign every request for the very connection it is sent on (PCH §3, §9).

    `AnswerT`: a `Response`, or what gives one when it is awaited.

    `key`: a `Signer`, a private JWK, or the two of a hybrid (a JWK Set, or both in a tuple), which then sign
    every request together. `verify`: True for the system's trust, the path of a PEM file or folder for that
    trust alone, False for none (testing). `binding`: what this client insists on; it never signs for less.
    `timeout_s`: the whole of one request, retries included. `follow_redirects`: sign anew for each hop; PCH
    fields, credentials and other signatures never reach another origin. `observer` sees every answer, also
    those between. `evidence`: a document of PCH §7, sent with every signed request whose route does not decline it,
    but not where a redirect leads to another origin. `relax`: `auto` moves evidence and ML-DSA signatures out of the
    header when the verifier asks, `always` unasked, which a route that does not grant it refuses, `never` not even
    when asked. Every method raises a `ClientError`: `InvalidRequest`, a `NetworkError`, a `PeerFault` or
    `ChallengeUnusable`.
    """

    def __init__(
        self,
        *,
        key: KeyTypes,
        verify: bool | str | Path = True,
        http2: bool = True,
        binding: str = "tls-exporter",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        follow_redirects: bool = False,
        max_connections_per_origin: int = MAX_CONNECTIONS_PER_ORIGIN,
        max_response_bytes: int = MAX_RESPONSE_BODY_BYTES,
        observer: Observer | None = None,
        evidence: Mapping[str, Any] | None = None,
        relax: str = "auto",
        clock_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = ClientSettings(
            key=key,
            verify=verify,
            http2=http2,
            binding=binding,
            timeout_s=timeout_s,
            follow_redirects=follow_redirects,
            max_connections_per_origin=max_connections_per_origin,
            max_response_bytes=max_response_bytes,
            observer=observer,
            clock_s=clock_s,
            monotonic_s=monotonic_s,
            evidence=evidence,
            relax=relax,
        )
        self._make_pool()

    @abstractmethod
    def _make_pool(self) -> None:
        """Make the pool of connections; none is opened before the first request."""

    @abstractmethod
    def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeaderTypes | None = None,
        content: ContentTypes | None = None,
        params: ParamTypes | None = None,
    ) -> AnswerT:
        """Send one request and give its final answer, whatever its status.

        `content`: bytes; text, sent as UTF-8; a seekable binary file, which is read twice and never held whole; or an
        `Upload`, whose digest is known. Without a challenge at hand, a request that has content or
        changes something is preceded by a HEAD on the same target; any other goes out unsigned first.
        """

    def get(self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None) -> AnswerT:
        """Send a GET request; see `request`."""
        return self.request("GET", url, headers=headers, params=params)

    def head(self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None) -> AnswerT:
        """Send a HEAD request; see `request`."""
        return self.request("HEAD", url, headers=headers, params=params)

    def options(self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None) -> AnswerT:
        """Send an OPTIONS request; see `request`."""
        return self.request("OPTIONS", url, headers=headers, params=params)

    def post(
        self,
        url: str,
        *,
        content: ContentTypes | None = None,
        headers: HeaderTypes | None = None,
        params: ParamTypes | None = None,
    ) -> AnswerT:
        """Send a POST request; see `request`."""
        return self.request("POST", url, headers=headers, content=content, params=params)

    def put(
        self,
        url: str,
        *,
        content: ContentTypes | None = None,
        headers: HeaderTypes | None = None,
        params: ParamTypes | None = None,
    ) -> AnswerT:
        """Send a PUT request; see `request`."""
        return self.request("PUT", url, headers=headers, content=content, params=params)

    def patch(
        self,
        url: str,
        *,
        content: ContentTypes | None = None,
        headers: HeaderTypes | None = None,
        params: ParamTypes | None = None,
    ) -> AnswerT:
        """Send a PATCH request; see `request`."""
        return self.request("PATCH", url, headers=headers, content=content, params=params)

    def delete(self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None) -> AnswerT:
        """Send a DELETE request; see `request`."""
        return self.request("DELETE", url, headers=headers, params=params)
