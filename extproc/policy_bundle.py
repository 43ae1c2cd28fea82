"""The policy in force as bytes, whose SHA-256 receipts carry as `policy.digest`.

For the route table these are the ones that `policy.route_table` digests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from extproc.config import FilterConfig


def policy_bundle(config: FilterConfig) -> bytes:
    """Write the route table that `config` states: each route's name with the subjects that it admits, sorted."""
    subjects = {route.name: sorted(set(route.subjects)) for route in config.routes}
    return msgspec.json.encode({name: subjects[name] for name in sorted(subjects)})


def request_algorithms(config: FilterConfig) -> tuple[str, ...]:
    """Name the signature algorithms that some route accepts, for a pack's bill of materials."""
    accepted = (name for route in config.routes if route.guard == "pch" for name in route.algorithms)
    return tuple(sorted(set(accepted)))
