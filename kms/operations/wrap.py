"""POST /wrap: wrap a small key to a KEM key, or make one and wrap it (API.md §2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from blake3 import blake3

from kms.base64_text import decode_base64, encode_base64
from kms.custody import RETRY_AFTER_S
from kms.errors import BadRequest, StoreUnavailable, Unsupported
from kms.kem_envelope import (
    ENVELOPE_ALG,
    PROVIDER_ALG,
    PROVIDER_VERSION,
    KemPublic,
    Nonces,
    check_key_length,
    provider_aad,
    seal,
)
from kms.messages import WrapRequest, WrapResponse
from kms.operations.operation import Outcome, Subject, subject_of
from kms.primitive import WIRE_NAMES, Primitive

if TYPE_CHECKING:
    from kms.key_record import KeyRecord, KeyVersion
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext


class Wrap:
    """Wraps to one version: the one that was named, or the newest."""

    op: Final = "wrap"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = False
    response_type: Final = WrapResponse

    def __init__(self, services: Services) -> None:
        self._services = services
        self._nonces = Nonces(services.random_bytes)

    def subjects(self, request: WrapRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the key to wrap to."""
        return (subject_of(request.kid),)

    async def run(self, request: WrapRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Wrap. The result says nothing of the key but its length, and the audit event not even a hash of it."""
        services, subject = self._services, subjects[0]
        record = services.find(subject)
        version = record.private_version(subject.version)
        check_is_kem(record, version, services.allowed_algs)
        plaintext = self._plaintext(request)
        kid = record.name.version(version.number)
        provider = services.custody.holder(record)
        if provider.wraps_itself:
            handle, aad = version.parts[0].handle, provider_aad(kid)
            wrapped = await services.on_thread(subject.tenant, provider, lambda: provider.wrap(handle, plaintext, aad))
            envelope, alg = bytes([PROVIDER_VERSION]) + wrapped, PROVIDER_ALG
        else:
            if services.custody.outage_ms(record.provider) is not None:
                # It could be done, but not undone now: nobody is given a key that may be lost (I-19).
                raise StoreUnavailable("the key's backend is away", retry_after_s=RETRY_AFTER_S)
            envelope, alg = seal(kid, kem_public(version), plaintext, self._nonces.take()), ENVELOPE_ALG
        detail = {"bytes": str(len(plaintext)), "envelope_b3": blake3(envelope).hexdigest()}
        response = WrapResponse(wrapped_b64=encode_base64(envelope), alg=alg, kid=str(kid))
        return Outcome(response, str(kid), tuple(WIRE_NAMES[part.primitive] for part in version.parts), detail)

    def _plaintext(self, request: WrapRequest) -> bytes:
        if (request.plaintext_key_b64 is None) == (request.size is None):
            raise BadRequest("wrap takes either plaintext_key_b64 or size")
        if request.size is not None:
            return self._services.random_bytes(request.size)
        plaintext = decode_base64(request.plaintext_key_b64 or "", "plaintext_key_b64")
        check_key_length(plaintext)
        return plaintext


def check_is_kem(record: KeyRecord, version: KeyVersion, allowed: frozenset[str]) -> None:
    """Refuse keys that do not wrap, and halves that are not allowed here. Raises Unsupported."""
    if not record.algorithm.is_kem:
        raise Unsupported("keys of this algorithm do not wrap", reason="alg_does_not_wrap")
    if not all(WIRE_NAMES[part.primitive] in allowed for part in version.parts):
        raise Unsupported("the algorithm is not allowed here", reason="alg_not_allowed")


def kem_public(version: KeyVersion) -> KemPublic:
    """Give both public halves of a KEM key's version."""
    classical, post_quantum = version.part(Primitive.X25519), version.part(Primitive.ML_KEM_768)
    if classical is None or post_quantum is None:
        raise Unsupported("the key lacks a half", reason="kem_half_missing")
    return KemPublic(classical.public, post_quantum.public)
