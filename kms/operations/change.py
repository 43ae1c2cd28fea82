"""What every operation that changes keys does: make it durable together with its answer and its note (I-6, I-14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from kms.key_change import KeyChange
from kms.op_answers import OpKey
from kms.operations.operation import Outcome
from kms.primitive import WIRE_NAMES

if TYPE_CHECKING:
    from kms.key_change import AppliedChange
    from kms.key_record import KeyRecord
    from kms.kid import Kid
    from kms.messages import Message
    from kms.operations.operation import Call, Services
    from kms.primitive import Primitive
    from kms.providers.provider import Provider, ProviderKey

_ENCODER: Final = msgspec.json.Encoder()


async def apply_change(
    services: Services,
    call: Call,
    verb: str,
    op_id: str | None,
    former: KeyRecord | None,
    record: KeyRecord,
    kid: str,
    response: Message,
) -> Outcome:
    """Commit a key's change. Raises Conflict when the key changed since `former` was read, StoreUnavailable."""
    context = call.context
    change = KeyChange(
        former,
        record,
        verb,
        kid,
        context.principal.token_id,
        context.corr_id,
        call.request_digest,
        _ENCODER.encode(response),
        None if op_id is None else OpKey(record.name.tenant, verb, op_id.lower()),
    )
    applied = await services.store.commit(change)
    algs = tuple(WIRE_NAMES[part.primitive] for part in record.newest.parts)
    return Outcome(response, kid, algs, change_detail(applied), applied.epoch)


def change_detail(applied: AppliedChange) -> dict[str, str]:
    """Give what anchors a change in the audit log: the store's epoch and digest after it."""
    return {"epoch": str(applied.epoch), "digest": applied.digest}


def generate_parts(provider: Provider, primitives: tuple[Primitive, ...], kid: Kid) -> tuple[ProviderKey, ...]:
    """Make all parts of a version or none: what was made before a failure is erased again (PQ-I5)."""
    parts: list[ProviderKey] = []
    try:
        for primitive in primitives:
            parts.append(provider.generate(primitive, kid))  # noqa: PERF401 - what was made must be known when one fails
    except BaseException:
        destroy_parts(provider, tuple(parts))
        raise
    return tuple(parts)


def destroy_parts(provider: Provider, parts: tuple[ProviderKey, ...]) -> None:
    """Erase private halves; on the provider's thread."""
    for part in parts:
        provider.destroy(part.handle)
