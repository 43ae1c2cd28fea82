"""POST /keys: a new key and its first version (API.md §2.5)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final, Literal

from kms.errors import BadRequest, Unsupported
from kms.key_parts import parts_of_new_version
from kms.key_record import KeyRecord, KeyState, KeyVersion
from kms.kid import KeyName, check_label
from kms.messages import MAX_HINTS_BYTES, CreateKeyRequest, CreateKeyResponse
from kms.operations.change import apply_change, check_room, make_parts
from kms.operations.operation import Outcome, Subject
from kms.operations.public_material import public_material
from kms.primitive import KEY_ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms.key_record import Hint
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext

_UUID_BYTES: Final = 16
_INT_BYTES: Final = 8


class CreateKey:
    """Makes a key at the authority."""

    op: Final = "create_key"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = True
    response_type: Final = CreateKeyResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: CreateKeyRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the key that would be made."""
        tenant, purpose = check_label(request.tenant, "tenant"), check_label(request.purpose, "purpose")
        key_uuid = uuid.UUID(bytes=self._services.random_bytes(_UUID_BYTES), version=4)
        return (Subject(tenant, KeyName(tenant, purpose, request.alg, str(key_uuid))),)

    async def run(self, request: CreateKeyRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Make the parts, then the record; parts whose record the store refused are erased again.

        Where nobody knows whether the record became durable they stay with the provider, possibly named by nothing: a
        commit that did not answer in time may still land.
        """
        services, name = self._services, subjects[0].name
        assert name is not None, "a key is named above"
        provider = services.custody.maker()
        primitives = parts_of_new_version(
            KEY_ALGORITHMS[request.alg], name.purpose, call.decisions[name.tenant], services.allowed_algs
        )
        if not provider.primitives.issuperset(primitives):
            raise Unsupported("the backend does not make keys of this algorithm", reason="alg_not_in_backend")
        hints = checked_hints(request.policy_hints or {})
        check_room(services, name.tenant, provider, len(primitives))
        kid = name.version(1)
        parts = await services.on_thread(
            name.tenant,
            provider,
            lambda: make_parts(provider, primitives, lambda each: provider.generate(each, kid)),
            call.progress.begin,
        )
        version = KeyVersion(1, parts, services.clock.wall_ms())
        record = KeyRecord(name, (version,), KeyState.ENABLED, 1, hints, provider.name)
        response = CreateKeyResponse(kid=str(kid), public=public_material(record, version))
        return await apply_change(services, call, self.op, request.op_id, None, record, str(kid), response)


def checked_hints(hints: Mapping[str, Hint]) -> tuple[tuple[str, Hint], ...]:
    """Give the hints in their order. Raises BadRequest when they are too long together: the store keeps them."""
    size_bytes = sum(
        len(name.encode()) + (len(value.encode()) if isinstance(value, str) else _INT_BYTES)
        for name, value in hints.items()
    )
    if size_bytes > MAX_HINTS_BYTES:
        raise BadRequest("policy_hints are too long together", hint=f"at most {MAX_HINTS_BYTES} bytes of UTF-8")
    return tuple(sorted(hints.items()))
