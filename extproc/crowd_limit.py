"""How many requests may be with the app while more come than it finishes (docs/reference/breaker.md §6).

The breaker answers for an app that fails. One that is well and merely asked for too much needs less of the same: so
many requests at once that each is finished within a target of time, by Little's law the rate of completions times that
target. What is beyond it is refused at once, while its sender would still wait, and the app never does work in vain.
"""

from __future__ import annotations

import collections
import math
from typing import Final

from extproc.breaker import Seen

WINDOW_MS: Final = 600
"""How far back rates look."""
MIN_LIMIT: Final = 4
"""Requests at once that are always let through; an app that is late even so is slow by itself."""
MIN_TOLD: Final = 5
GROWTH: Final = 0.25
GROWTH_REQUESTS: Final = 4
"""More comes than goes when what is out grows by that part of the completions and by so many."""
QUEUE: Final = 2.0
"""Or when so many times the target's worth of work is out, and still more comes than goes."""
TARGET_OVER_USUAL: Final = 1.5
USUAL_CONSTANT_MS: Final = 5_000
"""How slowly the app's usual time follows what is seen while as much goes as comes."""
SLACK: Final = 1.5
CALM_MS: Final = 1_000
"""How long less than nine tenths of the limit must be enough before it is lifted."""
HELPLESS_MS: Final = 2_000
"""How long the least limit may go without making the app quicker before it is given up."""
GIVEN_UP_MS: Final = 10_000
_NOTHING: Final = Seen()


class CrowdLimit:
    """The limit of one route. Owned by one event loop; every worker computes it from the sums of all.

    `crowd_ms`: the app's time that is steered for; one and a half times its usual time, up to `slow_ms`, where that is
    more. `totals`: the sums so far; what is out by them then may be lost long ago and is never counted. Counters or a
    clock that fall back begin the account anew. A client chooses how many of its requests it withdraws, gives up or
    holds open, so rates are those of outcomes that say something of the app.
    """

    def __init__(self, crowd_ms: int, slow_ms: int, totals: Seen = _NOTHING) -> None:
        self._crowd_ms, self._slow_ms = crowd_ms, slow_ms
        self._window: collections.deque[tuple[int, Seen]] = collections.deque()
        self._usual_ms: float | None = None
        self._base, self._lost = _open(totals), 0
        self._limit: int | None = None
        self._not_before_ms = self._calm_since_ms = self._useful_ms = self._late_ms = 0

    @property
    def limit(self) -> int | None:
        """Give how many may be with the app at once; None while everything is admitted."""
        return self._limit

    def admits(self, totals: Seen) -> bool:
        """Tell whether one more may go on."""
        return self._limit is None or self._out(totals) < self._limit

    def begin(self, now_ms: int, limit: int = MIN_LIMIT) -> None:
        """Limit from now on; small, as after a breaker closed, for whoever waited comes at once."""
        self._limit = limit
        self._calm_since_ms = self._useful_ms = self._late_ms = now_ms

    def tick(self, totals: Seen, now_ms: int) -> None:
        """Take in the sums of all workers."""
        self._check_back(totals, now_ms)
        self._window.append((now_ms, totals))
        while len(self._window) > 1 and self._window[1][0] <= now_ms - WINDOW_MS:
            self._window.popleft()
        then_ms, before = self._window[0]
        if (span_ms := now_ms - then_ms) <= 0:
            return
        growth, told = _open(totals) - _open(before), totals.samples - before.samples
        done = told + totals.probes - before.probes
        # More ended than was admitted: the account began amid requests, or took some for lost.
        self._base += min(0, self._out(totals))
        mean_ms = (totals.took_ms - before.took_ms) / told if told > 0 else 0.0
        target_ms = self._target_ms()
        enough = max(MIN_LIMIT, math.ceil(done * target_ms / span_ms))
        is_late = told >= MIN_TOLD and mean_ms >= target_ms
        if told > 0 and (self._limit is not None or growth <= 0):
            self._reckon(totals, done * mean_ms / span_ms, is_late=mean_ms >= target_ms)
        if self._limit is not None:
            self._steer(enough, self._out(totals), now_ms, is_late=is_late)
        elif is_late and now_ms >= self._not_before_ms and self._grows(totals, growth, done, enough):
            self.begin(now_ms, enough)
        elif told >= MIN_TOLD and growth <= 0:
            self._learn(mean_ms, now_ms - self._window[-2][0])

    def _check_back(self, totals: Seen, now_ms: int) -> None:
        if not self._window:
            return
        last_ms, last = self._window[-1]
        if totals.admitted < last.admitted or totals.ended < last.ended or totals.withdrawn < last.withdrawn:
            self._window.clear()
            self._base, self._lost = _open(totals), 0
        if now_ms < last_ms:
            self._window.clear()
            self._not_before_ms = min(self._not_before_ms, now_ms + GIVEN_UP_MS)
            self._calm_since_ms, self._useful_ms = min(self._calm_since_ms, now_ms), min(self._useful_ms, now_ms)
            self._late_ms = min(self._late_ms, now_ms)

    def _target_ms(self) -> float:
        return max(self._crowd_ms, min(self._slow_ms, TARGET_OVER_USUAL * (self._usual_ms or 0.0)))

    def _grows(self, totals: Seen, growth: int, done: int, enough: int) -> bool:
        if growth >= GROWTH * done + GROWTH_REQUESTS:
            return True
        return growth > 0 and self._out(totals) >= QUEUE * enough

    def _learn(self, mean_ms: float, passed_ms: int) -> None:
        usual_ms = mean_ms if self._usual_ms is None else self._usual_ms
        self._usual_ms = usual_ms + min(1.0, passed_ms / USUAL_CONSTANT_MS) * (mean_ms - usual_ms)

    def _reckon(self, totals: Seen, little: float, *, is_late: bool) -> None:
        """Correct the account by Little's law: what is lost or held by its client would count as out for ever."""
        out = self._out(totals)
        if not is_late:
            self._lost += max(0, out - math.ceil(SLACK * little) - 1)
        else:
            # So many are out indeed; what was taken for lost was not.
            self._lost -= min(self._lost, max(0, int(little / SLACK) - out))

    def _steer(self, enough: int, out: int, now_ms: int, *, is_late: bool) -> None:
        limit = enough
        if is_late:
            self._late_ms = now_ms
        elif self._limit is not None and out >= self._limit and now_ms - self._late_ms >= WINDOW_MS:
            # It refuses although nobody waits: what is out is not with the app, or the app can do more.
            limit = max(enough, self._limit + 1)
        self._limit = limit
        if enough > MIN_LIMIT or not is_late:
            self._useful_ms = now_ms
        if is_late or 10 * out >= 9 * limit:
            self._calm_since_ms = now_ms
        if now_ms - self._useful_ms >= HELPLESS_MS:
            self._limit, self._not_before_ms = None, now_ms + GIVEN_UP_MS
        elif now_ms - self._calm_since_ms >= CALM_MS:
            self._limit = None

    def _out(self, totals: Seen) -> int:
        return _open(totals) - self._base - self._lost


def _open(totals: Seen) -> int:
    """Give how many of those that were admitted went on and have no end yet."""
    return totals.admitted - totals.withdrawn - totals.ended
