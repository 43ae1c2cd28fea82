"""GET /keys/{kid}: public material, versions, state (API.md §2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from kms.messages import GetKeyRequest, GetKeyResponse
from kms.operations.operation import Outcome, Subject, subject_of
from kms.operations.public_material import public_material

if TYPE_CHECKING:
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext


class GetKey:
    """Describes a key from what is in memory: no provider, no audit log."""

    op: Final = "get_key"
    queue: Final[Literal["verify"]] = "verify"
    needs_audit: Final = False
    audited: Final = False
    durable: Final = False
    response_type: Final = GetKeyResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: GetKeyRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the key of the path."""
        return (subject_of(request.kid),)

    async def run(self, request: GetKeyRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Describe the version that was named, or the newest."""
        services, subject = self._services, subjects[0]
        record = services.find(subject)
        version = record.newest if subject.version is None else record.version(subject.version)
        kid = str(record.name.version(version.number))
        class_ = services.custody.attestation_class(record.provider)
        response = GetKeyResponse(
            kid=kid,
            alg=record.name.alg,
            versions=[f"#v{each.number}" for each in record.versions],
            public=public_material(record, version),
            attestation_class=msgspec.UNSET if class_ is None else class_,
            state=record.state.value,
            min_version=record.min_version,
        )
        return Outcome(response, kid, (record.name.alg,))
