"""How many operations may be under way: a bound for all, and a floor that no other tenant can take (I-17, P-6)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from kms.errors import Backpressure

if TYPE_CHECKING:
    from kms.telemetry import Telemetry

# The part of the places that only tenants below their floor may take: so no tenant fills the queue.
_RESERVED_PART: Final = 4


class Admission:
    """The places of one kind of operation, waiting and working ones together. Full means refused at once, never a wait.

    The event loop owns it.
    """

    def __init__(self, queue: str, telemetry: Telemetry, *, places: int, share_min: float) -> None:
        self._tenants: dict[str, int] = {}
        self._taken = 0
        self._depth = telemetry.queue_depth.labels(queue)
        self._busy = telemetry.busy_rejections.labels(queue)
        self._depth.set(0)
        self.configure(places=places, share_min=share_min)

    def configure(self, *, places: int, share_min: float) -> None:
        """Set the bound; a reload may. Who is in stays in."""
        self._places = places
        self._floor = math.ceil(places * share_min)
        self._reserved = places // _RESERVED_PART if share_min > 0 else 0

    @property
    def taken(self) -> int:
        """Count the operations under way."""
        return self._taken

    def enter(self, tenant: str) -> None:
        """Take a place. Raises Backpressure: nothing was done."""
        own = self._tenants.get(tenant, 0)
        if self._taken >= self._places or (own >= self._floor and self._taken >= self._places - self._reserved):
            self._busy.inc()
            raise Backpressure("too many operations are under way", retry_after_s=1)
        self._tenants[tenant] = own + 1
        self._taken += 1
        self._depth.set(self._taken)

    def leave(self, tenant: str) -> None:
        """Give a place back."""
        own = self._tenants[tenant] - 1
        if own:
            self._tenants[tenant] = own
        else:
            del self._tenants[tenant]
        self._taken -= 1
        self._depth.set(self._taken)
