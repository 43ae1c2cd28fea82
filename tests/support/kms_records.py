"""Key records without providers, for tests of what keeps them."""

from __future__ import annotations

import uuid

from kms.key_change import KeyChange
from kms.key_record import KeyRecord, KeyState, KeyVersion
from kms.kid import KeyName
from kms.op_answers import OpKey
from kms.primitive import Primitive
from kms.providers.key_handle import new_handle
from kms.providers.provider import ProviderKey


def name_of(number: int = 0, tenant: str = "core", alg: str = "ed25519") -> KeyName:
    return KeyName(tenant, "audit", alg, str(uuid.UUID(int=number)))


def version_of(
    number: int, created_ms: int = 0, primitive: Primitive = Primitive.ED25519, name: KeyName | None = None
) -> KeyVersion:
    handle = new_handle((name or name_of()).version(number), primitive, bytes)
    return KeyVersion(number, (ProviderKey(primitive, handle, bytes([number % 256]) * 32),), created_ms)


def record_of(name: KeyName | None = None, versions: int = 1, created_ms: int = 0) -> KeyRecord:
    made = tuple(version_of(number, created_ms + number, name=name) for number in range(1, versions + 1))
    return KeyRecord(name or name_of(), made, KeyState.ENABLED, 1, (("rotate_days", 30),), "inmem")


def change_of(
    record: KeyRecord, former: KeyRecord | None = None, op_id: str | None = None, verb: str = "create_key"
) -> KeyChange:
    op = None if op_id is None else OpKey(record.name.tenant, verb, op_id)
    kid = str(record.newest_kid)
    return KeyChange(former, record, verb, kid, "token", "corr", b"d" * 32, b'{"kid":"x"}', op)
