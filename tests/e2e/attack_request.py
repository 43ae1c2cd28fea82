"""Requests as an attacker builds them: signed properly first, then changed in any place."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pch.httpsig.content_digest import content_digest
from pch.httpsig.message import RequestMessage
from pch.httpsig.sign import sign
from pch.httpsig.signature_field import serialise_signature
from pch.httpsig.signature_input import make_signature_params, serialise_signature_input
from pch.proof import binding_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pch.httpsig.component import ComponentId
    from tests.support.filter_parts import KeyPair

Field = tuple[str, bytes]

REQUEST_LINE = ("@method", "@authority", "@path", "@query")
LIFETIME_S = 60
"""The longest that is allowed, so that a busy machine does not make a good request expire."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `framing` of a body: `length`, `chunked` (HTTP/2: DATA without a length) or `none` at all."""

    method: str
    target: str
    authority: str
    headers: tuple[Field, ...] = ()
    body: bytes = b""
    framing: str = "length"
    trailers: tuple[Field, ...] = ()

    def http1(self) -> bytes:
        """Write it for HTTP/1.1."""
        lines = [f"{self.method} {self.target} HTTP/1.1".encode("latin-1"), b"Host: " + self.authority.encode()]
        lines += [name.encode() + b": " + value for name, value in self.headers]
        body = self.body
        if self.framing == "chunked":
            lines.append(b"Transfer-Encoding: chunked")
            ends = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in self.trailers)
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = chunk + b"0\r\n" + ends + b"\r\n"
        elif self.framing == "length" and body:
            lines.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def http2(self) -> tuple[list[Field], bytes | None, list[Field]]:
        """Give the fields, the body and the trailers for HTTP/2."""
        fields: list[Field] = [
            (":method", self.method.encode()),
            (":scheme", b"https"),
            (":authority", self.authority.encode()),
            (":path", self.target.encode("latin-1")),
            *self.headers,
        ]
        if self.framing == "length" and self.body:
            fields.append(("content-length", b"%d" % len(self.body)))
        has_body = bool(self.body) or self.framing == "chunked"
        return fields, self.body if has_body else None, list(self.trailers)

    def field(self, name: str) -> bytes:
        """Give the first value of the field `name`."""
        return next(value for field_name, value in self.headers if field_name == name)

    def but(self, **changes: Any) -> Request:
        """Change attributes."""
        return dataclasses.replace(self, **changes)

    def without(self, name: str) -> Request:
        """Drop the field `name`."""
        return self.but(headers=tuple(line for line in self.headers if line[0] != name))

    def adding(self, name: str, value: bytes) -> Request:
        """Add a field line at the end."""
        return self.but(headers=(*self.headers, (name, value)))

    def having(self, name: str, value: bytes) -> Request:
        """Replace the field `name`, in its place."""
        return self.but(headers=tuple((each, value if each == name else old) for each, old in self.headers))

    def editing(self, name: str, old: str, new: str) -> Request:
        """Replace text within the field `name`; the text has to be there."""
        value = self.field(name).decode("latin-1")
        assert old in value, f"{old!r} is not in {name}"
        return self.having(name, value.replace(old, new).encode("latin-1"))

    def flipped(self) -> Request:
        """Change one character of the signature."""
        value = bytearray(self.field("signature"))
        value[20] = ord("A") if value[20] != ord("A") else ord("B")
        return self.having("signature", bytes(value))


def sign_request(
    request: Request,
    key: KeyPair,
    *,
    challenge: str,
    binding: bytes | None,
    components: Sequence[str | ComponentId] | None = None,
    created_in_s: int = 0,
    lifetime_s: int = LIFETIME_S,
    label: str = "pch",
    digest: str | None = None,
    **params: Any,
) -> Request:
    """Sign as PCH §3 wants it. `params` replace signature parameters, None drops one.

    `created_in_s`: seconds from now. `digest`: the Content-Digest to claim instead of the right one.
    """
    fields = list(request.headers)
    covered = list(REQUEST_LINE)
    if request.body or digest is not None:
        fields.append(("content-digest", (digest or content_digest(request.body)).encode()))
        covered.append("content-digest")
    if binding is not None:
        fields.append(("pch-channel-binding", binding_header(binding)))
        covered.append("pch-channel-binding")
    created_s = int(time.time()) + created_in_s
    values = {
        "created": created_s,
        "expires": created_s + lifetime_s,
        "keyid": key.signer.key_id,
        "alg": key.signer.algorithm.name,
        "nonce": challenge,
        "tag": "pch",
    } | params
    signature_params = make_signature_params(covered if components is None else tuple(components), **values)
    message = RequestMessage(request.method, "https", request.authority, request.target, tuple(fields))
    signature = sign(message, signature_params, key.signer)
    fields += [
        ("signature-input", serialise_signature_input({label: signature_params}).encode()),
        ("signature", serialise_signature({label: signature}).encode()),
    ]
    return request.but(headers=tuple(fields))
