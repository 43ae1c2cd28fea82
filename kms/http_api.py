"""`/v1/kms` over HTTP/JSON: a bare ASGI application (API.md §1.2, INTEROP.md §1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.error_envelope import encode_envelope, retry_after_s
from kms.errors import BadRequest, KmsError, NotFound, Unsupported
from kms.http_body import Disconnected, check_length, explain_invalid, inflate, read_body
from kms.kid import kid_text_from_path
from kms.messages import VerifyResponse
from kms.operation_table import BASE_PATH, EMPTY_BODY, FIXED_ROUTES, KEY_ACTIONS, KEY_PREFIX, OPERATIONS, Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kms.api_call import ApiCall, ApiCalls
    from kms.messages import Message

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

OPENAPI_PATH: Final = f"{BASE_PATH}/openapi.json"
MAX_PATH_BYTES: Final = 1024
MAX_PASSED_OVER_BYTES: Final = 65_536
PEER_GONE: Final = "499"
"""In metrics and logs, the status of a request that nobody waits for any more."""
JSON_TYPE: Final = b"application/json"
_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final = {
    operation.op: msgspec.json.Decoder(operation.body) for operation in OPERATIONS if operation.body is not None
}
_READS: Final = (
    b"authorization",
    b"x-corr-id",
    b"content-type",
    b"content-encoding",
    b"content-length",
    b"expect",
    b"transfer-encoding",
)


class MethodNotAllowed(Unsupported):
    """A path that exists, asked for by another method."""

    http_status = 405

    def __init__(self, allowed: str) -> None:
        super().__init__("this path takes another method")
        self.allowed = allowed


class HttpApi:
    """The ASGI application of the service's own paths."""

    def __init__(self, calls: ApiCalls, openapi: bytes) -> None:
        self._calls = calls
        self._openapi = openapi

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        fields = _fields_of(scope["headers"])
        client = scope["client"]
        peer = "" if client is None else client[0] if client[1] == 0 else f"{client[0]}:{client[1]}"
        transport = "unix" if peer.startswith("uid:") else scope["scheme"]
        call = self._calls.open(_text(fields.get(b"x-corr-id")), peer, transport, scope["method"])
        response: Message | None = None
        error: KmsError | None = None
        try:
            if scope["raw_path"] == OPENAPI_PATH.encode():
                await self._send_openapi(call, scope["method"], send)
                return
            response = await self._answer(call, scope, fields, receive)
            status, body = 200, _ENCODER.encode(response)
        except Disconnected:
            self._calls.close(call, PEER_GONE, None, None)
            return
        except asyncio.CancelledError:
            self._calls.close(call, PEER_GONE, None, None)
            raise
        except Exception as raised:  # noqa: BLE001 - whatever is not understood is refused as Internal
            error = self._calls.refused(call, raised)
            status, body = error.http_status, encode_envelope(error, self._calls.clock.wall_ms(), call.request_id)
        headers = _headers(call, body, error, response)
        if error is not None and call.body_bytes == 0 and not _small_body(fields):
            # The body was not read, and is too much to be read for nothing.
            headers.append((b"connection", b"close"))
        await _send(send, status, body, headers)
        self._calls.close(call, str(status), error, response)

    async def _answer(
        self, call: ApiCall, scope: dict[str, Any], fields: dict[bytes, bytes], receive: Receive
    ) -> Message:
        operation, kid = route(scope["raw_path"], scope["method"])
        self._calls.admit(call, operation, _text(fields.get(b"authorization")))
        if scope["query_string"]:
            raise BadRequest("this path takes no query")
        limits = self._calls.config().limits
        check_length(fields.get(b"content-length"), limits.max_body_bytes)
        with self._calls.bodies.lease() as lease:
            raw = await read_body(receive, limits.max_body_bytes, lease)
            call.body_bytes = len(raw)
            body = inflate(raw, fields.get(b"content-encoding"), limits.max_body_bytes, limits.decompress_ratio_cap)
            if body is not raw:
                lease.take(len(body))
            request = decode_request(operation, kid, body, fields.get(b"content-type"))
            return await self._calls.perform(call, request, operation.path_for(kid))

    async def _send_openapi(self, call: ApiCall, method: str, send: Send) -> None:
        if method != "GET":
            raise MethodNotAllowed("GET")
        await _send(send, 200, self._openapi, _headers(call, self._openapi, None, None))
        self._calls.close(call, "200", None, None)


def route(raw_path: bytes, method: str) -> tuple[Operation, str]:
    """Find the operation that a path and method name, and its kid ("" where none). Raises NotFound, MethodNotAllowed.

    `raw_path`: as it arrived. A kid's slashes may be raw or %2F; its `#` is %23.
    """
    if len(raw_path) > MAX_PATH_BYTES:
        raise NotFound("no such path")
    path = raw_path.decode("ascii", "replace")
    operation = FIXED_ROUTES.get(path)
    if operation is not None:
        if method != operation.method:
            raise MethodNotAllowed(operation.method)
        return operation, ""
    if not path.startswith(KEY_PREFIX):
        raise NotFound("no such path")
    rest = path[len(KEY_PREFIX) :]
    kid, _, action = rest.rpartition("/")
    found = KEY_ACTIONS.get(action) if action and kid else None
    if found is None:
        kid, found = rest, KEY_ACTIONS[""]
    if method != found.method:
        raise MethodNotAllowed(found.method)
    try:
        return found, kid_text_from_path(kid)
    except UnicodeDecodeError as error:
        raise BadRequest("the path's kid is not UTF-8") from error


def decode_request(operation: Operation, kid: str, body: bytes, content_type: bytes | None) -> Message:
    """Decode a body strictly and join the path's kid to it. Raises BadRequest, Unsupported."""
    if operation.body is None:
        if body:
            raise BadRequest("this path takes no body")
        return _with_kid(operation, {}, kid)
    decoded = _decode_body(operation, body, content_type)
    if not operation.names_key:
        return decoded
    return _with_kid(operation, {name: getattr(decoded, name) for name in decoded.__struct_fields__}, kid)


def _decode_body(operation: Operation, body: bytes, content_type: bytes | None) -> Message:
    if not body and operation.body_optional:
        body = EMPTY_BODY
    elif content_type is None or content_type.partition(b";")[0].strip().lower() != JSON_TYPE:
        raise Unsupported("Content-Type must be application/json")
    try:
        return _DECODERS[operation.op].decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise explain_invalid(error) from error


def _with_kid(operation: Operation, members: dict[str, Any], kid: str) -> Message:
    try:
        return msgspec.convert({**members, "kid": kid}, operation.request)
    except msgspec.ValidationError as error:
        raise explain_invalid(error) from error


def _fields_of(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Pick the header fields that are read; one that is sent twice counts as its values joined (RFC 9110 §5.3)."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READS:
            fields[name] = value if name not in fields else fields[name] + b", " + value
    return fields


def _small_body(fields: dict[bytes, bytes]) -> bool:
    """Tell whether what was not read of a refused request may be passed over: the connection then carries the next."""
    length = fields.get(b"content-length", b"0" if b"transfer-encoding" not in fields else b"")
    return length.isdigit() and len(length) <= 5 and int(length) <= MAX_PASSED_OVER_BYTES and b"expect" not in fields


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _headers(call: ApiCall, body: bytes, error: KmsError | None, response: Message | None) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"content-type", JSON_TYPE),
        (b"content-length", b"%d" % len(body)),
        (b"x-corr-id", call.corr_id.encode()),
        (b"cache-control", b"no-store"),
    ]
    if isinstance(response, VerifyResponse) and isinstance(response.cache_age_ms, int):
        headers.append((b"x-kms-cache-age", b"%d" % response.cache_age_ms))
    if error is not None:
        wait_s = retry_after_s(error)
        if wait_s is not None:
            headers.append((b"retry-after", b"%d" % wait_s))
        if error.http_status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="kms"'))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allowed.encode()))
    return headers


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
