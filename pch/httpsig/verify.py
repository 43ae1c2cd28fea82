"""Verifying a signature, RFC 9421 §3.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pch.errors import AlgNotAllowed
from pch.httpsig.signature_base import signature_base

if TYPE_CHECKING:
    from pch.algorithms import PublicKey
    from pch.httpsig.message import RequestMessage, ResponseMessage
    from pch.httpsig.signature_input import SignatureParams


def verify(
    message: RequestMessage | ResponseMessage,
    params: SignatureParams,
    signature: bytes,
    public_key: PublicKey,
) -> bytes:
    """Verify a message's signature, RFC 9421 §3.2 steps 6 to 9; what must be covered is the caller's policy.

    Returns the signature base that was verified. Raises BadSignature; AlgNotAllowed when `alg` contradicts
    the key; ComponentError when a covered component has no value.
    """
    if params.alg is not None and params.alg != public_key.algorithm.name:
        raise AlgNotAllowed("alg contradicts the registered key")
    base = signature_base(message, params)
    public_key.verify(signature, base)
    return base
