"""Decode Envoy's CheckRequest into a frozen request; every Envoy quirk of this direction lives here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from extproc.channel_binding import binding_of
from pch.httpsig.message import HeaderLines, RequestMessage

if TYPE_CHECKING:
    from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

PARTIAL_BODY_HEADER: Final = "x-envoy-auth-partial-body"
"""Set by Envoy (a client's own is dropped by Envoy) to say whether the body it hands over is cut."""
MAX_TRACEPARENT_BYTES: Final = 128
STREAMED_EXTENSION: Final = "signet_content"
STREAMED: Final = "streamed"
"""Context extension of an Envoy route whose content goes on while the Check is asked (envoy.yaml, route `open`). The
partial-body mark does not tell: of a first DATA frame that is as long as the limit Envoy says that it is all."""
_FIELD_OVERHEAD_BYTES: Final = 4
"""What a field costs beside its name and value: `: ` and CRLF (PCH §6)."""
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_NO_TRACE: Final = "0" * 32


@dataclass(frozen=True, slots=True)
class EdgeRequest:
    """One request as the edge vouches for it.

    `stream_id`: Envoy's own id of the stream, which no client can choose; a retried Check carries the same one.
    `binding`: the 32 exporter bytes of the downstream connection, or None. `content_length`: as declared, or None.
    `header_bytes`: PCH §6 sum over all fields. `body`: what arrived of the content; `body_cut` unless that is provably
    all of it. `trace_id`: from the client's traceparent, 32 hex digits, or None. `streamed`: the edge lets more content
    follow unseen. `deferrable`: the edge has ext_proc see the rest of a cut body, when it is told to.
    """

    message: RequestMessage
    stream_id: str
    edge_instance: str
    binding: bytes | None
    body: bytes
    body_cut: bool
    content_length: int | None
    header_bytes: int
    trace_id: str | None
    is_grpc: bool
    streamed: bool = False
    deferrable: bool = False

    @property
    def has_content(self) -> bool:
        """Tell whether there is content, unless the edge proves otherwise (PCH §3 "Content")."""
        return bool(self.body) or self.body_cut or (self.content_length or 0) > 0


class UndecodableRequest(ValueError):
    """Envoy's message lacks what every request has, or a field is not what HTTP allows."""


def decode_check(check: CheckRequest, edge_instance: str, edge_body_bytes: int | None = None) -> EdgeRequest:
    """Decode one ext_authz CheckRequest.

    `edge_instance`, `edge_body_bytes`: from the call's metadata, the edge's own name, and how much of a body it hands
    over before it asks; None from an edge that does not tell. Raises `UndecodableRequest`.
    """
    http = check.attributes.request.http
    # Only the raw lines are what goes upstream: in the Check's own strings (path, host, method) Envoy writes "!" for
    # bytes that are not UTF-8, so that another path would be verified than is sent.
    lines, pseudo, header_bytes, partial = _field_lines(http.header_map.headers)
    method, target = pseudo.get(":method"), pseudo.get(":path")
    if not method or not target or not http.id:
        raise UndecodableRequest("the edge sent no raw method or path line, or no stream id (encode_raw_headers)")
    message = RequestMessage(
        method=method,
        scheme="https" if http.scheme != "http" else "http",
        authority=pseudo.get(":authority", ""),
        target=target,
        headers=lines,
    )
    body = http.raw_body or http.body.encode()
    content_type = _single(message, "content-type") or b""
    content_length = _content_length(message)
    return EdgeRequest(
        message=message,
        stream_id=http.id,
        edge_instance=edge_instance,
        binding=binding_of(check.attributes.metadata_context),
        body=body,
        body_cut=partial or not _is_whole(len(body), content_length, edge_body_bytes),
        content_length=content_length,
        header_bytes=header_bytes,
        trace_id=_trace_id(message),
        is_grpc=content_type.startswith(b"application/grpc"),
        streamed=check.attributes.context_extensions.get(STREAMED_EXTENSION) == STREAMED,
        deferrable=edge_body_bytes is not None,
    )


def _is_whole(body_bytes: int, content_length: int | None, edge_body_bytes: int | None) -> bool:
    """Tell whether the body is provably all of it.

    The codec holds a client to its Content-Length. Without one, only a body below the edge's limit has ended: of one
    that fills it exactly Envoy says that it is whole (no partial-body mark), also when more is on its way.
    """
    if content_length is not None:
        return body_bytes == content_length
    return body_bytes == 0 or (edge_body_bytes is not None and body_bytes < edge_body_bytes)


def _field_lines(headers: object) -> tuple[HeaderLines, dict[str, str], int, bool]:
    """Take the raw field lines and the pseudo-headers (as latin-1), without Envoy's own partial-body mark.

    Returns lines, pseudo-headers, header bytes (PCH §6) and whether the body is cut.
    """
    lines: list[tuple[str, bytes]] = []
    pseudo: dict[str, str] = {}
    header_bytes = 0
    partial = False
    for header in headers:  # type: ignore[attr-defined]  # the generated classes carry no types
        name: str = header.key
        value: bytes = header.raw_value or header.value.encode()
        if name == PARTIAL_BODY_HEADER:
            partial = partial or value != b"false"
            continue
        header_bytes += len(name) + len(value) + _FIELD_OVERHEAD_BYTES
        if not name.startswith(":"):
            lines.append((name.lower(), value))
        elif name in pseudo:
            raise UndecodableRequest("the edge sent a pseudo-header twice")
        else:
            pseudo[name] = value.decode("latin-1")
    return tuple(lines), pseudo, header_bytes, partial


def _single(message: RequestMessage, name: str) -> bytes | None:
    values = message.lines(name)
    return values[0] if values else None


def _content_length(message: RequestMessage) -> int | None:
    value = _single(message, "content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise UndecodableRequest("Content-Length is not a number")
    return int(value)


def _trace_id(message: RequestMessage) -> str | None:
    """Take the trace id of a W3C traceparent; a client may choose it, so it only ever correlates."""
    value = _single(message, "traceparent")
    if value is None or len(value) > MAX_TRACEPARENT_BYTES:
        return None
    match = _TRACEPARENT.fullmatch(value.decode("ascii", "replace"))
    if match is None or match[1] == _NO_TRACE:
        return None
    return match[1]
