"""POST /sign: sign the 32-byte digest with a key's parts (API.md §2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from kms.base64_text import encode_base64
from kms.errors import PolicyDenied, Unsupported
from kms.key_parts import parts_that_sign
from kms.messages import AttestationEvidence, SignRequest, SignResponse
from kms.messages import Signature as SignatureMessage
from kms.operations.operation import Outcome, first_usable, subjects_of
from kms.primitive import TLOG_PURPOSE, WIRE_NAMES

if TYPE_CHECKING:
    from kms.key_record import KeyRecord, KeyVersion
    from kms.operations.operation import Call, Services, Subject
    from kms.principal import CallContext
    from kms.providers.provider import ProviderKey


class Sign:
    """Signs with one version: the one that was named, or the newest."""

    op: Final = "sign"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = False
    response_type: Final = SignResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: SignRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the keys of the selector."""
        return subjects_of(request.kid_or_set)

    async def run(self, request: SignRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Sign with the first key of the selector that may sign."""
        services = self._services
        # One look at each record: a rotation that comes meanwhile makes another record and does not touch this one.
        record, version, parts = first_usable(subjects, lambda subject: self._choose(subject, request, call))
        provider = services.custody.signer(record)
        tenant, digest = record.name.tenant, bytes.fromhex(request.payload_b3)
        evidence = await services.attestations.gate(tenant, provider, parts[0].handle)
        signatures = await services.use(
            tenant,
            provider,
            [part.primitive for part in parts],
            lambda: [provider.sign(part.handle, part.primitive, digest) for part in parts],
        )
        names = tuple(WIRE_NAMES[part.primitive] for part in parts)
        kid = str(record.name.version(version.number))
        detail = {"algs": ",".join(names)}
        attestation = None
        if evidence is not None:
            attestation = AttestationEvidence(class_=evidence.class_, evidence=encode_base64(evidence.evidence))
            detail["attestation"] = evidence.class_
        response = SignResponse(
            sigs=[
                SignatureMessage(alg=name, signature_b64=encode_base64(signature))  # type: ignore[arg-type]
                for name, signature in zip(names, signatures, strict=True)
            ],
            kid=kid,
            attestation=attestation,
        )
        return Outcome(response, kid, names, detail)

    def _choose(
        self, subject: Subject, request: SignRequest, call: Call
    ) -> tuple[KeyRecord, KeyVersion, tuple[ProviderKey, ...]]:
        record = self._services.find(subject)
        if record.name.purpose == TLOG_PURPOSE:
            raise PolicyDenied("keys of purpose tlog sign tree heads only", reason="tlog_only")
        version = record.private_version(subject.version)
        wants_hybrid = None if request.policy is None else request.policy.produce_hybrid
        parts = parts_that_sign(record, version, call.decisions[subject.tenant], caller_wants_hybrid=wants_hybrid)
        if not all(WIRE_NAMES[part.primitive] in self._services.allowed_algs for part in parts):
            raise Unsupported("the algorithm is not allowed here", reason="alg_not_allowed")
        return record, version, parts
