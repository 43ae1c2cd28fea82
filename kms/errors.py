"""Name what can go wrong, once for HTTP, gRPC, logs and metrics (API.md §3 and appendix A of the founding contract)."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """The eleven codes of the error envelope. They are stable: new ones may join, none changes its meaning."""

    NO_CAPABILITY = "NoCapability"
    NOT_FOUND = "NotFound"
    BAD_REQUEST = "BadRequest"
    STORE_UNAVAILABLE = "StoreUnavailable"
    ATTESTATION_MISSING = "AttestationMissing"
    BACKPRESSURE = "Backpressure"
    TIMEOUT = "Timeout"
    CONFLICT = "Conflict"
    TOO_LARGE = "TooLarge"
    UNSUPPORTED = "Unsupported"
    INTERNAL = "Internal"


class KmsError(Exception):
    """A refusal or a fault, with everything that an answer, a log line and a metric need.

    `message` and `hint` are shown to the caller: they never hold a key, a token, a passphrase or a caller's own text.
    `reason` is the label of `rejected_total` and `kms_reject_total`; `retry_after_s` becomes the Retry-After field.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    reason: str = "internal"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        reason: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s
        if reason is not None:
            self.reason = reason


# The caller's fault.


class BadRequest(KmsError):
    """The request breaks the contract of its message: a wrong type, an unknown field, a value out of its range."""

    code = ErrorCode.BAD_REQUEST
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    reason = "bad_request"


class ConflictingHead(BadRequest):
    """A tree head that does not extend the last one signed for this key. Signing it would fork the log."""

    http_status = 422
    grpc_status = "FAILED_PRECONDITION"
    reason = "conflicting_root"


class Unsupported(KmsError):
    """An algorithm, mode or provider feature that is not allowed or not there."""

    code = ErrorCode.UNSUPPORTED
    http_status = 400
    grpc_status = "UNIMPLEMENTED"
    reason = "unsupported"


class TooLarge(KmsError):
    """A body, list or text beyond its bound."""

    code = ErrorCode.TOO_LARGE
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    reason = "too_large"


class Unauthenticated(KmsError):
    """No capability, or one that does not verify (INTEROP.md §5: 401)."""

    code = ErrorCode.NO_CAPABILITY
    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    reason = "unauth"


class NoCapability(KmsError):
    """A capability that verifies but does not cover this operation, tenant, key, algorithm or path."""

    code = ErrorCode.NO_CAPABILITY
    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    reason = "unauth"


class PolicyDenied(NoCapability):
    """The policy refuses, or could not be asked: both deny."""

    reason = "policy_denied"


class PqPolicy(NoCapability):
    """Only a classical proof where the policy wants a post-quantum one, or the other way round (PQ-I4)."""

    reason = "pq_policy"


class NotFound(KmsError):
    """No such key or version, or one that this caller may not know of."""

    code = ErrorCode.NOT_FOUND
    http_status = 404
    grpc_status = "NOT_FOUND"
    reason = "not_found"


class Conflict(KmsError):
    """An op_id that was used for another request, a lost race, a stale size, a key in the wrong state."""

    code = ErrorCode.CONFLICT
    http_status = 409
    grpc_status = "ABORTED"
    reason = "conflict"


class Backpressure(KmsError):
    """A queue is full or a rate is used up. Nothing was done; the caller may come again."""

    code = ErrorCode.BACKPRESSURE
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True
    reason = "backpressure"


# A dependency's fault.


class AttestationMissing(KmsError):
    """Attestation is required and not there (I-12): signing is blocked, verifying is not."""

    code = ErrorCode.ATTESTATION_MISSING
    http_status = 403
    grpc_status = "FAILED_PRECONDITION"
    reason = "attest_missing"


class StoreUnavailable(KmsError):
    """A provider, the key store or the audit log cannot serve now (I-19). Nothing was signed silently."""

    code = ErrorCode.STORE_UNAVAILABLE
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True
    reason = "store_unavailable"


class Timeout(KmsError):
    """The operation did not end within its deadline (CONCURRENCY.md §5)."""

    code = ErrorCode.TIMEOUT
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True
    reason = "timeout"


# Our own fault.


class Internal(KmsError):
    """A fault of the service itself. Its details are in the log under the request's id, never in the answer."""
