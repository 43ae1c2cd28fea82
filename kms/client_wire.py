"""What a client sends and what it makes of an answer, apart from how the bytes travel (API.md §2 and §3)."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from kms import errors
from kms.errors import KmsError, StoreUnavailable
from kms.messages import ErrorBody, Message
from kms.operation_table import BY_OP

if TYPE_CHECKING:
    from pathlib import Path

    from kms.operation_table import Operation

M = TypeVar("M", bound=Message)

MAX_ANSWER_BYTES: Final = 4 << 20
SIGNED_SIZE_HINT: Final = "signed_size="
"""How the hint of a stale head begins; the size that was signed last follows."""
MAX_PATH_CHARS: Final = 4096
# May be sent again when the connection broke: what they do twice is the same as once.
REPEATABLE: Final = frozenset(
    {"sign", "verify", "wrap", "unwrap", "get_key", "sign_batch", "verify_batch", "checkpoint"}
)

_ENCODER: Final = msgspec.json.Encoder()
_BY_STATUS: Final[dict[tuple[str, int], type[KmsError]]] = {
    (each.code.value, each.http_status): each
    for each in (
        errors.BadRequest,
        errors.ConflictingHead,
        errors.Unsupported,
        errors.TooLarge,
        errors.Unauthenticated,
        errors.NoCapability,
        errors.NotFound,
        errors.Conflict,
        errors.Backpressure,
        errors.AttestationMissing,
        errors.StoreUnavailable,
        errors.Timeout,
        errors.Internal,
    )
}


class KmsUnreachable(StoreUnavailable):
    """The key service was not reached, or did not answer in a way that can be understood."""

    reason = "kms_unreachable"


class EndpointError(ValueError):
    """The URL is none that a client may use; the message says why and never quotes it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the service listens: over TCP `base` is scheme, host and port, over a UNIX socket `socket` is its path."""

    base: str
    socket: str | None = None

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read `unix:/path`, `https://host:port`, or `http://` and a loopback address. Raises EndpointError."""
        if url.startswith("unix:/"):
            if len(url) > MAX_PATH_CHARS:
                raise EndpointError("the socket's path is too long")
            return cls("http://kms", url.removeprefix("unix:"))
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise EndpointError("not a URL") from None
        if parts.scheme not in {"http", "https"} or not host or port is None or parts.path not in {"", "/"}:
            raise EndpointError("must be unix:/path, https://host:port or http://127.0.0.1:port")
        if parts.query or parts.fragment or parts.username is not None:
            raise EndpointError("must have no query, fragment or user")
        if parts.scheme == "http" and not _is_loopback(host):
            # The capability would cross the network in the clear.
            raise EndpointError("http:// is for loopback only: use https://")
        return cls(f"{parts.scheme}://{parts.netloc}")

    def tls(self, ca_file: Path | None) -> ssl.SSLContext | None:
        """Make the TLS context, 1.3 alone; `ca_file` None: the system's authorities. Raises OSError, ssl.SSLError."""
        if not self.base.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


@dataclass(frozen=True, slots=True)
class Wire:
    """One request as HTTP; `content` may hold a key to wrap, so it is left out of `repr`."""

    operation: Operation
    path: str
    content: bytes

    def __repr__(self) -> str:
        return f"Wire({self.operation.op})"

    def headers(self, token: str) -> list[tuple[bytes, bytes]]:
        """Give the header fields."""
        fields = [(b"Authorization", b"Bearer " + token.encode("ascii")), (b"Host", b"kms")]
        if self.operation.body is not None:
            fields += [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(self.content))]
        return fields


def encode_call(op: str, request: Message) -> Wire:
    """Write a request: the kid goes into the path where the path names the key."""
    operation = BY_OP[op]
    if not operation.names_key:
        return Wire(operation, operation.route, _ENCODER.encode(request))
    members = msgspec.to_builtins(request)
    path = operation.route.replace("{kid}", quote(members.pop("kid"), safe="/"))
    return Wire(operation, path, b"" if operation.body is None else _ENCODER.encode(members))


def decode_answer(operation: Operation, status: int, content: bytes) -> Message:
    """Read an answer. Raises the KmsError that the service told, KmsUnreachable when it told nothing we understand.

    Members that we do not know are passed over: a newer service may answer more.
    """
    try:
        if status == 200:
            return _lenient(msgspec.json.decode(content), operation.response)
        body = _lenient(msgspec.json.decode(content)["error"], ErrorBody)
    except (KeyError, TypeError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Not chained: the answer may hold an unwrapped key.
        raise KmsUnreachable(f"the key service answered {status} in a way that is not understood") from None
    kind = _BY_STATUS.get((body.code, status)) or _BY_STATUS.get((body.code, 0)) or StoreUnavailable
    raise kind(body.message, hint=body.hint)


def _lenient(document: object, kind: type[M]) -> M:
    if isinstance(document, dict):
        names = {field.encode_name for field in msgspec.structs.fields(kind)}
        document = {name: value for name, value in document.items() if name in names}
    return msgspec.convert(document, kind)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
