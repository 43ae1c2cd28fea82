"""Which breaker a request belongs to: its route's, or its tenant's on that route (docs/reference/breaker.md §10)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from extproc.route import Route

MAX_TENANTS: Final = 64
"""Of one route. All breakers together are no more than there may be routes."""
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,63}")


def check_tenant(name: str) -> None:
    """Accept the name of a tenant: what stands before the first `/` of its subjects. Raises ValueError."""
    if not _TENANT.fullmatch(name):
        raise ValueError("must be a tenant: 1 to 64 of A-Z a-z 0-9 . _ @ : + -, starting with a letter or digit")


class TenantBreakers:
    """The names of all breakers of a configuration's guarded routes. Immutable.

    `names`: each route's own name, and `route@tenant` for each of its tenants; route names have no `@`.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._of: Final = {
            route.name: {tenant: f"{route.name}@{tenant}" for tenant in route.tenants} for route in routes
        }
        self.names: Final = [each for route in self._of for each in self.all_of(route)]

    def of(self, route: str, subject: str) -> str:
        """Name the breaker of a request of `subject`: its tenant's where that has one on this route."""
        tenants = self._of.get(route)
        return tenants.get(subject.partition("/")[0], route) if tenants else route

    def all_of(self, route: str) -> tuple[str, ...]:
        """Name every breaker of a route."""
        return (route, *self._of.get(route, {}).values())
