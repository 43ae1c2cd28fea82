"""Messages to and from their protobuf forms, field for field (API.md appendix C).

Both directions go through the JSON shape, so that gRPC knows no field, default or bound that JSON does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from kms.errors import BadRequest
from kms.http_body import explain_invalid
from kms.proto.ron.kms.v1 import kms_pb2

if TYPE_CHECKING:
    from kms.messages import Message

MAX_NESTED_MESSAGES: Final = 1024
"""Messages inside one request: a full batch of selectors, signatures and policies, and no more."""


def request_from_bytes(raw: bytes, kind: type[Message]) -> Message:
    """Decode a request strictly. Raises BadRequest for damage, an unknown field or a value out of its bounds."""
    form = getattr(kms_pb2, kind.__name__)()
    try:
        form.ParseFromString(raw)
    except DecodeError as error:
        raise BadRequest("the message is not valid protobuf") from error
    budget = [MAX_NESTED_MESSAGES]
    try:
        return msgspec.convert(_members(form, budget), kind)
    except msgspec.ValidationError as error:
        raise explain_invalid(error) from error


def response_to_bytes(response: Message) -> bytes:
    """Encode a response."""
    form = getattr(kms_pb2, type(response).__name__)(**msgspec.to_builtins(response))
    encoded: bytes = form.SerializeToString()
    return encoded


def _members(form: Any, budget: list[int]) -> dict[str, Any]:
    budget[0] -= 1
    if budget[0] < 0:
        raise BadRequest("the message holds too many messages")
    if len(UnknownFieldSet(form)):
        raise BadRequest("unknown field", hint="fields that the contract does not name are refused")
    members: dict[str, Any] = {}
    for field, value in form.ListFields():
        kind = field.message_type
        if kind is None:
            members[field.name] = list(value) if field.is_repeated else value
        elif kind.GetOptions().map_entry:
            members[field.name] = {key: _hint(hint, budget) for key, hint in value.items()}
        elif field.is_repeated:
            members[field.name] = [_members(item, budget) for item in value]
        else:
            members[field.name] = _members(value, budget)
    return members


def _hint(form: Any, budget: list[int]) -> Any:
    values = list(_members(form, budget).values())
    if len(values) != 1:
        raise BadRequest("a policy hint must have one value")
    return values[0]
