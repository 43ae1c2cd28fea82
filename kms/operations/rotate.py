"""POST /keys/{kid}/rotate: a new version; the former ones go on verifying (API.md §2.6, I-5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from kms.errors import Conflict, Unsupported
from kms.key_parts import parts_of_new_version
from kms.key_record import KeyState, KeyVersion
from kms.messages import RotateKeyRequest, RotateResponse
from kms.operations.change import apply_change, check_room, make_parts
from kms.operations.operation import Outcome, Subject, subject_of, subject_of_whole_key

if TYPE_CHECKING:
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext


class Rotate:
    """Adds a version, made under the policy of now: a classical key gets its second half here (PQ-I5)."""

    op: Final = "rotate"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = True
    response_type: Final = RotateResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: RotateKeyRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the key of the path, all of it."""
        return (subject_of_whole_key(request.kid),)

    async def run(self, request: RotateKeyRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Rotate. One writer a key: a second rotation waits for the first and makes the version after it."""
        services, subject = self._services, subjects[0]
        async with services.locks.hold(subject.name):
            record = services.find(subject)
            named = subject_of(request.kid).version
            if named is not None:
                record.version(named)
            if record.state is not KeyState.ENABLED:
                raise Conflict(f"the key is {record.state.value}", reason=f"key_{record.state.value}")
            if record.derived_from:
                raise Conflict(
                    "a derived key is renewed by deriving from its root's next version", reason="derived_key"
                )
            provider = services.custody.signer(record)
            primitives = parts_of_new_version(
                record.algorithm, record.name.purpose, call.decisions[subject.tenant], services.allowed_algs
            )
            if not provider.primitives.issuperset(primitives):
                raise Unsupported("the backend does not make keys of this algorithm", reason="alg_not_in_backend")
            check_room(services, subject.tenant, provider, len(primitives))
            former, kid = record.newest_kid, record.name.version(record.newest.number + 1)
            record.check_room()
            parts = await services.on_thread(
                subject.tenant,
                provider,
                lambda: make_parts(provider, primitives, lambda each: provider.generate(each, kid)),
                call.progress.begin,
            )
            rotated = record.rotated(KeyVersion(kid.version, parts, services.clock.wall_ms()))
            response = RotateResponse(kid=str(kid), previous=str(former))
            return await apply_change(services, call, self.op, request.op_id, record, rotated, str(kid), response)
