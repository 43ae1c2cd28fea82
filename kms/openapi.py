"""The OpenAPI 3.1 document, made from the messages that the service decodes (API.md §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.error_envelope import ErrorEnvelope
from kms.operation_table import BASE_PATH, OPERATIONS, Operation
from kms.principal import Scope

if TYPE_CHECKING:
    from kms.messages import Message

API_VERSION: Final = "1.1.0"
_REFS: Final = "#/components/schemas/{name}"
_COMMON: Final = ("400", "401", "403", "413", "429", "500", "503", "504")
_RESPONSES: Final = {
    "400": ("BadRequest", "The request breaks its contract, or asks for what is not supported"),
    "401": ("Unauthenticated", "No capability, or one that does not verify"),
    "403": ("Forbidden", "The capability, the policy or a missing attestation forbids it"),
    "404": ("NotFound", "No such key or version"),
    "409": ("Conflict", "An op_id that was used otherwise, a lost race, a stale size, a key in the wrong state"),
    "413": ("TooLarge", "The body is over its limit"),
    "422": ("ConflictingHead", "The head does not extend the last one signed"),
    "429": ("Backpressure", "A queue is full or a rate is used up; nothing was done"),
    "500": ("Internal", "A fault of the service; it is in its log under request_id"),
    "503": ("StoreUnavailable", "A backend or the audit log cannot serve now"),
    "504": ("Timeout", "The deadline passed"),
}
_END: Final = r"\Z"
_RETRY: Final = frozenset({"429", "503", "504"})


def build_openapi() -> dict[str, Any]:
    """Build the document. The same code gives the same document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ron-kms",
            "version": API_VERSION,
            "description": "Key custody: signs digests, verifies, wraps; private keys never leave.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": BASE_PATH}],
        "security": [{"bearerAuth": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "bearerAuth": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": f"A macaroon with one of the scopes {', '.join(scope.value for scope in Scope)}",
                }
            },
            "schemas": _schemas(),
            "parameters": {"CorrId": _CORR_ID, "Kid": _KID},
            "headers": _HEADERS,
            "responses": {name: _error_response(status, text) for status, (name, text) in _RESPONSES.items()},
        },
    }


def openapi_json() -> bytes:
    """Encode the document as it is served."""
    return msgspec.json.encode(build_openapi())


_CORR_ID: Final = {
    "name": "X-Corr-ID",
    "in": "header",
    "required": False,
    "description": "Any UUID; it is echoed. Without one the service makes a UUIDv7.",
    "schema": {"type": "string"},
}
_KID: Final = {
    "name": "kid",
    "in": "path",
    "required": True,
    "description": "The key with or without its version; slashes raw or %2F, `#` as %23.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 256},
    "example": "core/audit/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v1",
}
_HEADERS: Final = {
    "CorrId": {"description": "The request's correlation id", "schema": {"type": "string", "format": "uuid"}},
    "RetryAfter": {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 0}},
    "CacheAge": {
        "description": "Age of the cached public keys, milliseconds; the same as cache_age_ms",
        "schema": {"type": "integer", "minimum": 0},
    },
}


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    paths["/openapi.json"] = {
        "get": {
            "operationId": "openapi",
            "summary": "This document",
            "security": [],
            "responses": {
                "200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}
            },
        }
    }
    return paths


def _operation(operation: Operation) -> dict[str, Any]:
    parameters = [{"$ref": "#/components/parameters/CorrId"}]
    if operation.names_key:
        parameters.insert(0, {"$ref": "#/components/parameters/Kid"})
    statuses = [*_COMMON, "404", "409"]
    if operation.op == "checkpoint":
        statuses.append("422")
    described: dict[str, Any] = {
        "operationId": operation.op,
        "summary": operation.summary,
        "description": f"Needs the scope `{operation.scope.value}`.",
        "parameters": parameters,
        "responses": {"200": _ok(operation)}
        | {status: {"$ref": f"#/components/responses/{_RESPONSES[status][0]}"} for status in sorted(statuses)},
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": not operation.body_optional,
            "content": {"application/json": {"schema": {"$ref": _REFS.format(name=operation.body.__name__)}}},
        }
    return described


def _ok(operation: Operation) -> dict[str, Any]:
    headers = {"X-Corr-ID": {"$ref": "#/components/headers/CorrId"}}
    if operation.op == "verify":
        headers["X-KMS-Cache-Age"] = {"$ref": "#/components/headers/CacheAge"}
    schema = {"$ref": _REFS.format(name=operation.response.__name__)}
    return {"description": "OK", "headers": headers, "content": {"application/json": {"schema": schema}}}


def _error_response(status: str, text: str) -> dict[str, Any]:
    headers = {"X-Corr-ID": {"$ref": "#/components/headers/CorrId"}}
    if status in _RETRY:
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    content = {"application/json": {"schema": {"$ref": _REFS.format(name=ErrorEnvelope.__name__)}}}
    return {"description": text, "headers": headers, "content": content}


def _schemas() -> dict[str, Any]:
    types: list[type[Message]] = [ErrorEnvelope]
    for operation in OPERATIONS:
        types += [each for each in (operation.body, operation.response) if each is not None]
    _, components = msgspec.json.schema_components(list(dict.fromkeys(types)), ref_template=_REFS)
    return dict(sorted((name, _with_patterns_of_json(schema)) for name, schema in components.items()))


def _with_patterns_of_json(schema: Any) -> Any:
    """Write patterns as ECMA-262 has them: its `$` is the text's end alone, which Python calls `\\Z`."""
    if isinstance(schema, list):
        return [_with_patterns_of_json(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value.removesuffix(_END) + "$"
        if name == "pattern" and isinstance(value, str) and value.endswith(_END)
        else _with_patterns_of_json(value)
        for name, value in schema.items()
    }
