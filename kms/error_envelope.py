"""The stable error envelope (API.md §3), for HTTP bodies, batch items and gRPC's details."""

from __future__ import annotations

import datetime as dt
from typing import Final

import msgspec

from kms.errors import AttestationMissing, Internal, KmsError, StoreUnavailable
from kms.messages import ErrorBody, Message

DEFAULT_RETRY_AFTER_S: Final = 1
ATTESTATION_RETRY_AFTER_S: Final = 5


class ErrorEnvelope(Message, frozen=True):
    """The body of every answer that is not 2xx."""

    error: ErrorBody


_ENCODER: Final = msgspec.json.Encoder()


def error_body(error: KmsError, now_ms: int, request_id: str) -> ErrorBody:
    """Build the envelope's inside. `now_ms`: milliseconds since the epoch."""
    moment = dt.datetime.fromtimestamp(now_ms // 1000, dt.UTC)
    return ErrorBody(
        code=error.code.value,
        message=error.message,
        retryable=error.retryable,
        ts=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        request_id=request_id,
        hint=error.hint,
    )


def encode_envelope(error: KmsError, now_ms: int, request_id: str) -> bytes:
    """Encode the envelope as JSON."""
    return _ENCODER.encode(ErrorEnvelope(error=error_body(error, now_ms, request_id)))


def retry_after_s(error: KmsError) -> int | None:
    """Tell how long the caller should wait, in seconds; None when trying again is of no use."""
    if error.retry_after_s is not None:
        return error.retry_after_s
    if isinstance(error, AttestationMissing):
        return ATTESTATION_RETRY_AFTER_S
    return DEFAULT_RETRY_AFTER_S if error.retryable or isinstance(error, StoreUnavailable) else None


def as_kms_error(error: Exception) -> KmsError:
    """Give a typed error for whatever was raised; what no rule knows is Internal and says nothing."""
    return error if isinstance(error, KmsError) else Internal("an internal fault; the log has it under request_id")
