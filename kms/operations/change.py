"""What every operation that changes keys does: make it durable together with its answer and its note (I-6, I-14)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from kms.errors import Backpressure, Conflict, Internal, KmsError
from kms.key_change import KeyChange
from kms.key_index import KEY_LIMIT
from kms.key_store import NOT_COMMITTED
from kms.op_answers import OpKey
from kms.operations.operation import Outcome
from kms.primitive import WIRE_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.key_change import AppliedChange
    from kms.key_record import KeyRecord
    from kms.messages import Message
    from kms.operations.operation import Call, Services
    from kms.primitive import Primitive
    from kms.providers.provider import Provider, ProviderKey

# Of a provider's room one tenant may have this part.
TENANT_ROOM_DIVISOR: Final = 2
# Nobody waits for an erasure: a provider that hangs keeps it from ending, not the places of others.
ERASE_TIMEOUT_S: Final = 5.0
# What the store raises for a change that it has certainly not made.
_NOT_MADE: Final = (Backpressure, Conflict, Internal)
_NOT_MADE_REASONS: Final = frozenset({KEY_LIMIT, NOT_COMMITTED})
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
    """Commit a key's change. Raises Conflict when the key changed since `former` was read, StoreUnavailable.

    It runs to its end from here on: the dispatcher gives up no change that has begun.
    """
    context = call.context
    call.progress.begin()
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
        tenant_parts_max(services.custody.provider(record.provider)) if _made(former, record) else None,
    )
    try:
        applied = await services.store.commit(change)
    except KmsError as error:
        if isinstance(error, _NOT_MADE) or error.reason in _NOT_MADE_REASONS:
            await _erase_made(services, former, record)
        raise
    call.progress.epoch = applied.epoch
    algs = tuple(WIRE_NAMES[part.primitive] for part in record.newest.parts)
    return Outcome(response, kid, algs, change_detail(applied), applied.epoch)


def change_detail(applied: AppliedChange) -> dict[str, str]:
    """Give what anchors a change in the audit log: the store's epoch and digest after it."""
    return {"epoch": str(applied.epoch), "digest": applied.digest}


def check_room(services: Services, tenant: str, provider: Provider, parts: int) -> None:
    """Raise StoreUnavailable before a version of so many parts is made for which a tenant has no room (I-17)."""
    keys = services.store.keys
    keys.check_room(tenant, versions=1)
    most = tenant_parts_max(provider)
    if most is not None:
        keys.check_parts(tenant, provider.name, parts=parts, most=most)


def tenant_parts_max(provider: Provider) -> int | None:
    """Tell how many key parts of a provider one tenant may have: no tenant fills it for all others (I-17)."""
    return None if provider.max_keys is None else provider.max_keys // TENANT_ROOM_DIVISOR


def make_parts(
    provider: Provider, primitives: tuple[Primitive, ...], make: Callable[[Primitive], ProviderKey]
) -> tuple[ProviderKey, ...]:
    """Make all parts of a version or none: what was made before a failure is erased again (PQ-I5)."""
    parts: list[ProviderKey] = []
    try:
        for primitive in primitives:
            parts.append(make(primitive))  # noqa: PERF401 - what was made must be known when one fails
    except BaseException:
        destroy_parts(provider, tuple(parts))
        raise
    return tuple(parts)


def _made(former: KeyRecord | None, record: KeyRecord) -> tuple[ProviderKey, ...]:
    """List the parts that were made for a change."""
    known = 0 if former is None else len(former.versions)
    return tuple(part for version in record.versions[known:] for part in version.parts)


async def _erase_made(services: Services, former: KeyRecord | None, record: KeyRecord) -> None:
    """Erase the parts of a change that the store refused: nothing will ever name them."""
    parts, provider = _made(former, record), services.custody.provider(record.provider)
    if not parts:
        return
    with contextlib.suppress(KmsError, TimeoutError):
        async with asyncio.timeout(ERASE_TIMEOUT_S):
            await services.on_thread(record.name.tenant, provider, lambda: destroy_parts(provider, parts))


def destroy_parts(provider: Provider, parts: tuple[ProviderKey, ...]) -> None:
    """Erase private halves; on the provider's thread."""
    for part in parts:
        provider.destroy(part.handle)
