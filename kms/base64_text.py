"""Standard base64 with padding, one spelling for one value."""

from __future__ import annotations

import binascii
from base64 import b64encode

from kms.errors import BadRequest


def encode_base64(data: bytes) -> str:
    """Encode."""
    return b64encode(data).decode("ascii")


def decode_base64(text: str, what: str) -> bytes:
    """Decode; `what` names the member in the message. Raises BadRequest, also for a second spelling of a value."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise BadRequest(f"{what} must be standard base64") from error
    if b64encode(data) != text.encode("ascii"):
        raise BadRequest(f"{what} must be standard base64 in its one spelling")
    return data
