"""A change of a key as the store takes it, and as it is kept until its audit event is on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from kms.key_record import KeyRecord
    from kms.op_answers import OpKey


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One key's change. `former` is the record that it was made from (None: a new key); the store swaps or refuses.

    `answer` is the response's JSON, kept under `op` when the request had an op_id. `tenant_parts_max`: how many parts
    the tenant may have at the record's provider; None where that is not bounded. The rest is for the audit event.
    """

    former: KeyRecord | None
    record: KeyRecord
    verb: str
    kid: str
    actor: str
    corr_id: str
    request_digest: bytes
    answer: bytes
    op: OpKey | None
    tenant_parts_max: int | None = None


class AppliedChange(msgspec.Struct, frozen=True, array_like=True):
    """A change that is durable. `digest` is the state's after it, `former_digest` before it (hex)."""

    epoch: int
    digest: str
    former_digest: str
    verb: str
    tenant: str
    kid: str
    alg: str
    op_id: str
    actor: str
    corr_id: str
