"""The filter's route table as policy sees it: `data.signet.routes` (policy/shield.rego)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


class RoutePolicyData(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says of one guarded route."""

    binding: str
    subjects: tuple[str, ...]
    algorithms: tuple[str, ...]
    mode: str
    evidence: str
    fallback_classic: bool


def policy_data(routes: Mapping[str, RoutePolicyData]) -> bytes:
    """Write the data document: JSON with its members in order, so that equal tables have equal bytes."""
    return msgspec.json.encode({"signet": {"routes": dict(routes)}}, order="deterministic")
