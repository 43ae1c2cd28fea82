"""POST /unwrap: give back a key that was wrapped to one of ours (API.md §2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from blake3 import blake3

from kms.base64_text import decode_base64, encode_base64
from kms.errors import BadRequest
from kms.kem_envelope import ENVELOPE_ALG, PROVIDER_ALG, PROVIDER_VERSION, open_envelope, provider_aad
from kms.messages import UnwrapRequest, UnwrapResponse
from kms.operations.operation import Outcome, Subject, subject_of
from kms.operations.wrap import check_is_kem, kem_public
from kms.primitive import WIRE_NAMES, Primitive

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.key_record import KeyRecord, KeyVersion
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext
    from kms.providers.provider import Provider


class Unwrap:
    """Unwraps with the version that is named, or the newest. What it gives is never stored."""

    op: Final = "unwrap"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = False
    response_type: Final = UnwrapResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: UnwrapRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the key."""
        return (subject_of(request.kid),)

    async def run(self, request: UnwrapRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Unwrap. Raises BadRequest for what does not open with this version, without saying why."""
        services, subject = self._services, subjects[0]
        record = services.find(subject)
        version = record.private_version(subject.version)
        check_is_kem(record, version, services.allowed_algs)
        envelope = decode_base64(request.wrapped_b64, "wrapped_b64")
        provider = services.custody.holder(record)
        work = _opener(record, version, provider, envelope)
        plaintext = await services.use(subject.tenant, provider, [part.primitive for part in version.parts], work)
        kid = str(record.name.version(version.number))
        response = UnwrapResponse(
            plaintext_key_b64=encode_base64(plaintext),
            alg=PROVIDER_ALG if provider.wraps_itself else ENVELOPE_ALG,
            kid=kid,
        )
        detail = {"bytes": str(len(plaintext)), "envelope_b3": blake3(envelope).hexdigest()}
        return Outcome(response, kid, tuple(WIRE_NAMES[part.primitive] for part in version.parts), detail)


def _opener(record: KeyRecord, version: KeyVersion, provider: Provider, envelope: bytes) -> Callable[[], bytes]:
    kid = record.name.version(version.number)
    if provider.wraps_itself:
        if not envelope.startswith(bytes([PROVIDER_VERSION])):
            raise BadRequest("the envelope does not open with this key", reason="unwrap_failed")
        handle, aad = version.parts[0].handle, provider_aad(kid)
        return lambda: provider.unwrap(handle, envelope[1:], aad)
    recipient = kem_public(version)
    handles = {part.primitive: part.handle for part in version.parts}
    return lambda: open_envelope(
        kid,
        recipient,
        envelope,
        lambda peer: provider.agree(handles[Primitive.X25519], peer),
        lambda ciphertext: provider.decapsulate(handles[Primitive.ML_KEM_768], ciphertext),
    )
