"""What the caller asked for, checked and ready to be sent or signed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Final

from pch.client.errors import InvalidRequest
from pch.client.limits import MAX_REQUEST_BODY_BYTES, MAX_REQUEST_HEADER_BYTES, MAX_REQUEST_HEADERS
from pch.client.signing import SIGNATURE_FIELDS, is_own_field
from pch.client.upload import Upload
from pch.client.url import Url, parse_url
from pch.httpsig.message import HeaderLines, RequestMessage
from pch.relaxed import ENVELOPE_TYPE, EVIDENCE_PATH

if TYPE_CHECKING:
    from pch.client.challenge import ChallengeText

HeaderTypes = Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]
ContentTypes = bytes | str | BinaryIO | Upload
ParamTypes = Mapping[str, str | int | float | bool] | Sequence[tuple[str, str]]

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110 §9.2.2."""
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""RFC 9110 §9.2.1."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_CONNECTION_FIELDS: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
"""Framing and connection control are the client's own; Envoy answers `expect` before the check (PCH §9)."""
_CREDENTIALS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the caller means it, before any proof.

    `headers`: lower-case names, raw values. `carries_evidence`: the client's evidence may go along; not where another
    origin's redirect leads.
    """

    method: str
    url: Url
    headers: HeaderLines
    body: bytes | Upload
    carries_evidence: bool = True

    @property
    def is_idempotent(self) -> bool:
        """Tell whether the method may be repeated (RFC 9110 §9.2.2)."""
        return self.method in IDEMPOTENT

    @property
    def asks_first(self) -> bool:
        """Tell whether a challenge is fetched first, by HEAD: it has content, or changes something."""
        return bool(self.body) or self.method not in SAFE

    def message(self) -> RequestMessage:
        """Give the message that a signature covers."""
        return RequestMessage(
            self.method, self.url.origin.scheme, self.url.origin.authority, self.url.target, self.headers
        )

    def probe(self) -> Request:
        """Give the HEAD request that asks for a challenge: same target, nothing else of the caller's."""
        return Request("HEAD", self.url, (), b"")

    def ahead(self, challenge: ChallengeText, envelope: bytes) -> Request:
        """Give the request that brings the envelope of a relaxed one without content (PCH §6)."""
        url = Url(self.url.origin, EVIDENCE_PATH)
        headers = (("pch-challenge", f'"{challenge}"'.encode("ascii")), ("content-type", ENVELOPE_TYPE.encode("ascii")))
        return Request("POST", url, headers, envelope)

    def redirected(self, url: Url, status: int) -> Request:
        """Give the request that follows a redirect (RFC 9110 §15.4).

        303, and 301 or 302 to a POST, turn into GET without content. To another origin no credential, no signature of
        another tag, and no evidence (PCH §9) goes along, nor from there on.
        """
        headers, method, body = self.headers, self.method, self.body
        carries_evidence = self.carries_evidence and url.origin == self.url.origin
        if url.origin != self.url.origin:
            dropped = _CREDENTIALS | frozenset(SIGNATURE_FIELDS)
            headers = tuple(line for line in headers if line[0] not in dropped)
        if (status == 303 and method != "HEAD") or (status in {301, 302} and method == "POST"):
            method, body = "GET", b""
            headers = tuple(line for line in headers if not line[0].startswith("content-"))
        return replace(self, method=method, url=url, headers=headers, body=body, carries_evidence=carries_evidence)


def make_request(
    method: str,
    url: str,
    *,
    headers: HeaderTypes | None = None,
    content: ContentTypes | None = None,
    params: ParamTypes | None = None,
) -> Request:
    """Check what the caller gave. Raises `InvalidRequest`.

    `content`: bytes; text, sent as UTF-8; a seekable binary file, which is read twice; or an `Upload`.
    """
    if not _TOKEN.fullmatch(method) or method.upper() == "CONNECT":
        raise InvalidRequest("the method is not usable")
    lines, address = _header_lines(headers or ()), parse_url(url, params)
    return Request(method.upper(), address, lines, _body(content))


def is_file(content: ContentTypes | None) -> bool:
    """Tell whether `make_request` reads `content` for its digest, which may take long."""
    return content is not None and not isinstance(content, str | bytes | bytearray | memoryview | Upload)


def _body(content: ContentTypes | None) -> bytes | Upload:
    if isinstance(content, Upload):
        return content
    if content is not None and not isinstance(content, str | bytes | bytearray | memoryview):
        return Upload.of_file(content)
    body = content.encode("utf-8") if isinstance(content, str) else bytes(content or b"")
    if len(body) > MAX_REQUEST_BODY_BYTES:
        raise InvalidRequest(f"the content is over {MAX_REQUEST_BODY_BYTES} bytes; give it as a file or an Upload")
    return body


def _header_lines(headers: HeaderTypes) -> HeaderLines:
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    if len(pairs) > MAX_REQUEST_HEADERS:
        raise InvalidRequest(f"more than {MAX_REQUEST_HEADERS} header fields")
    lines = tuple(_header_line(name, value) for name, value in pairs)
    if sum(len(name) + len(value) + 4 for name, value in lines) > MAX_REQUEST_HEADER_BYTES:
        raise InvalidRequest(f"the header fields are over {MAX_REQUEST_HEADER_BYTES} bytes")
    return lines


def _header_line(name: str, value: str | bytes) -> tuple[str, bytes]:
    lower = name.lower()
    if not _TOKEN.fullmatch(name):
        raise InvalidRequest("a header field's name is not a token")
    if lower in _CONNECTION_FIELDS or is_own_field(lower):
        raise InvalidRequest(f"the field {lower} is written by the client itself")
    try:
        raw = value.encode("latin-1") if isinstance(value, str) else value
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the value of {lower} is not a field value") from error
    if not _VALUE.fullmatch(raw):
        raise InvalidRequest(f"the value of {lower} is not a field value")
    return lower, raw
