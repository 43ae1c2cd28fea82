"""How many operations a second: the service, a tenant's share of it, a capability, a policy (I-17)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from kms.errors import Backpressure

if TYPE_CHECKING:
    from kms.clock import Clock

MAX_TENANTS: Final = 4096
MAX_LIMITS: Final = 8192
# A tenant that asked for nothing in this time no longer counts when shares are made.
ACTIVE_S: Final = 1.0
# The largest batch must be able to pass at once.
MIN_BURST: Final = 128


class _Bucket:
    """Tokens that come back with time. May be drawn below zero, down to `-burst`, by those with a right to it."""

    __slots__ = ("at_s", "burst", "rate_per_s", "tokens")

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.tokens = burst
        self.at_s = now_s

    def refill(self, now_s: float) -> None:
        self.tokens = min(self.burst, self.tokens + max(0.0, now_s - self.at_s) * self.rate_per_s)
        self.at_s = now_s

    def take(self, count: int, now_s: float) -> bool:
        self.refill(now_s)
        if self.tokens < count:
            return False
        self.tokens -= count
        return True

    def may_owe(self, count: int) -> bool:
        return self.tokens - count >= -self.burst

    def owe(self, count: int) -> None:
        self.tokens -= count


class _Window:
    """What was taken in the last second: this second's count, and of the one before the part still inside."""

    __slots__ = ("before", "count", "second")

    def __init__(self) -> None:
        self.second = 0
        self.count = 0
        self.before = 0

    def take(self, count: int, rate_per_s: int, now_s: float) -> bool:
        second = int(now_s)
        if second != self.second:
            self.before = self.count if second == self.second + 1 else 0
            self.second, self.count = second, 0
        if self.count + self.before * (1 - (now_s - second)) + count > rate_per_s:
            return False
        self.count += count
        return True


class Rates:
    """The service's rate, shared. The event loop owns it.

    Each active tenant has `share_min` of the rate for itself; what is taken of these shares is taken from the common
    rate as well, and the rest is for whoever comes first. With more tenants than shares, the shares shrink. What shares
    take beyond the rate, as many newcomers at once do, is owed, up to one burst: past that nobody takes anything.
    """

    def __init__(self, clock: Clock, *, rate_per_s: int, share_min: float) -> None:
        self._clock = clock
        self._own: OrderedDict[str, _Bucket] = OrderedDict()
        self._limits: OrderedDict[tuple[str, str], _Window] = OrderedDict()
        self.configure(rate_per_s=rate_per_s, share_min=share_min)

    def configure(self, *, rate_per_s: int, share_min: float) -> None:
        """Set the rate; a reload may."""
        self._rate_per_s = rate_per_s
        self._share_min = share_min
        self._common = _Bucket(rate_per_s, max(rate_per_s, MIN_BURST), self._clock.monotonic_s())
        self._own.clear()

    def take(self, tenant: str, count: int = 1) -> None:
        """Take `count` operations of the service's rate. Raises Backpressure."""
        now_s = self._clock.monotonic_s()
        self._common.refill(now_s)
        own = self._own_bucket(tenant, now_s)
        if self._common.may_owe(count) and own.take(count, now_s):
            self._common.owe(count)
        elif not self._common.take(count, now_s):
            raise Backpressure("the rate limit is reached", retry_after_s=1)

    def take_limited(self, kind: str, name: str, rate_per_s: int, count: int = 1) -> None:
        """Take `count` of a limit of its own: a capability's `rps=` or a tenant's in the policy. Raises Backpressure.

        All that bear one name share a counter, and each is judged by its own rate: attenuating a capability again and
        again gives no further operations.
        """
        window = self._limits.get((kind, name))
        if window is None:
            window = self._limits[kind, name] = _Window()
            if len(self._limits) > MAX_LIMITS:
                self._limits.popitem(last=False)
        self._limits.move_to_end((kind, name))
        if not window.take(count, rate_per_s, self._clock.monotonic_s()):
            raise Backpressure(f"the {kind}'s rate limit is reached", retry_after_s=1)

    def _own_bucket(self, tenant: str, now_s: float) -> _Bucket:
        bucket = self._own.get(tenant)
        while self._own and now_s - next(iter(self._own.values())).at_s > ACTIVE_S:
            self._own.popitem(last=False)
        share = self._rate_per_s * min(self._share_min, 1 / max(1, len(self._own) + (bucket is None)))
        if bucket is None:
            bucket = _Bucket(share, max(1.0, share), now_s)
            while len(self._own) >= MAX_TENANTS:
                self._own.popitem(last=False)
        elif tenant not in self._own:
            # Idle for a while: it comes back with what it had saved.
            bucket.refill(now_s)
        bucket.rate_per_s, bucket.burst = share, max(1.0, share)
        self._own[tenant] = bucket
        self._own.move_to_end(tenant)
        return bucket
