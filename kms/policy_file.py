"""Read the tenants' table: one TOML file, refused whole when anything in it is not understood (K-G8).

[default]                      # absent: tenants without a row are refused
[tenants.core]
verify_mode = "and"
rate_per_s = 200
"""

from __future__ import annotations

import hashlib
import tomllib
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from kms.errors import KmsError, PolicyDenied
from kms.kid import check_label
from kms.messages import KeyAlg, Label, VerifyMode  # noqa: TC001 - msgspec reads the annotations
from kms.policy import TenantRules, TenantTable

if TYPE_CHECKING:
    from pathlib import Path

MAX_POLICY_BYTES: Final = 1_048_576
MAX_TENANT_ROWS: Final = 10_000
MAX_LIST_ITEMS: Final = 64

# Without a file every tenant has the service's own settings; capabilities alone say who may do what.
EVERY_TENANT: Final = TenantTable({}, TenantRules())


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow: bool = True
    produce_hybrid: bool | None = None
    verify_mode: VerifyMode | None = None
    in_rollout: bool | None = None
    ops: Annotated[list[str], msgspec.Meta(max_length=MAX_LIST_ITEMS)] = []
    purposes: Annotated[list[Label], msgspec.Meta(max_length=MAX_LIST_ITEMS)] = []
    algs: Annotated[list[KeyAlg], msgspec.Meta(max_length=MAX_LIST_ITEMS)] = []
    rate_per_s: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    default: _Row | None = None
    tenants: Annotated[dict[str, _Row], msgspec.Meta(max_length=MAX_TENANT_ROWS)] = {}


def read_policy(path: Path | None, ops: frozenset[str]) -> TenantTable:
    """Read the table. `ops`: the operations there are. Raises PolicyDenied when it cannot be read or understood."""
    if path is None:
        return EVERY_TENANT
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_POLICY_BYTES + 1)
        if len(raw) > MAX_POLICY_BYTES:
            raise PolicyDenied("the policy file is too large", reason="policy_unavailable")
        parsed = msgspec.convert(tomllib.loads(raw.decode()), _File)
        for tenant, row in parsed.tenants.items():
            check_label(tenant, "a tenant of the policy file")
            _check_ops(row, ops)
        if parsed.default is not None:
            _check_ops(parsed.default, ops)
    except PolicyDenied:
        raise
    except (OSError, ValueError, msgspec.ValidationError, KmsError, RecursionError) as error:
        raise PolicyDenied("the policy file cannot be used", reason="policy_unavailable") from error
    rows = {tenant: _rules(row) for tenant, row in parsed.tenants.items()}
    default = None if parsed.default is None else _rules(parsed.default)
    return TenantTable(rows, default, hashlib.sha256(raw).hexdigest())


def _check_ops(row: _Row, ops: frozenset[str]) -> None:
    if not ops.issuperset(row.ops):
        raise ValueError("an operation of the policy file is not known")


def _rules(row: _Row) -> TenantRules:
    return TenantRules(
        allow=row.allow,
        produce_hybrid=row.produce_hybrid,
        verify_mode=row.verify_mode,
        in_rollout=row.in_rollout,
        ops=frozenset(row.ops),
        purposes=frozenset(row.purposes),
        algs=frozenset(row.algs),
        rate_per_s=row.rate_per_s,
    )
