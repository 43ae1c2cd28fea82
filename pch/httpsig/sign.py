"""Creating a signature, RFC 9421 §3.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pch.httpsig.errors import AlgorithmMismatchError
from pch.httpsig.signature_base import signature_base

if TYPE_CHECKING:
    from pch.algorithms import Signer
    from pch.httpsig.message import RequestMessage, ResponseMessage
    from pch.httpsig.signature_input import SignatureParams


def sign(message: RequestMessage | ResponseMessage, params: SignatureParams, signer: Signer) -> bytes:
    """Sign a message, RFC 9421 §3.1.

    Returns the signature's bytes, `signer.algorithm.signature_bytes` long. Raises ComponentError when a
    covered component has no value, AlgorithmMismatchError when `alg` names another algorithm than the
    signer's.
    """
    if params.alg is not None and params.alg != signer.algorithm.name:
        raise AlgorithmMismatchError("alg contradicts the signing key")
    return signer.sign(signature_base(message, params))
