"""An exponentially weighted mean whose memory is time, not samples (docs/reference/breaker.md §2)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ewma:
    """The mean of a signal in [0, 1] and how much evidence carries it. Frozen: `after` gives the next value.

    `mean`: in [0, 1]. `weight`: samples that still count, each faded by exp(−age / time constant); `bad`: those of them
    that were bad. `at_ms`: when the last samples came, by the caller's clock.
    """

    mean: float = 0.0
    weight: float = 0.0
    at_ms: int = 0
    bad: float = 0.0

    @property
    def pooled(self) -> float:
        """Give the share of bad ones among the samples that still count: each weighs the same, whenever it came."""
        return self.bad / self.weight if self.weight else 0.0

    def after(
        self,
        samples: int,
        bad: int,
        now_ms: int,
        *,
        time_constant_ms: int,
        max_gain: float,
        max_samples: int = 1_000_000,
    ) -> Ewma:
        """Take in `samples` outcomes of which `bad` were bad, all of them since the last call.

        The gain is 1 − exp(−elapsed / time constant), never above `max_gain`: so however many samples come at once
        and however long nothing came before them, the mean moves by at most `max_gain` of the way. A clock that steps
        back counts as no time gone by, once. No samples change nothing. Raises ValueError for counts that cannot be.
        """
        if not 0 <= bad <= samples <= max_samples:
            raise ValueError("bad must lie between 0 and the number of samples, which is bounded")
        if samples == 0:
            return self
        share = bad / samples
        if self.weight == 0.0:
            # Nothing is known yet: the first samples may not speak louder than any later ones.
            return Ewma(max_gain * share, float(samples), now_ms, float(bad))
        elapsed_ms = max(0, now_ms - self.at_ms)
        fade = math.exp(-elapsed_ms / time_constant_ms)
        gain = min(max_gain, 1.0 - fade)
        mean = self.mean + gain * (share - self.mean)
        return Ewma(min(1.0, max(0.0, mean)), self.weight * fade + samples, now_ms, self.bad * fade + bad)

    def weight_at(self, now_ms: int, *, time_constant_ms: int) -> float:
        """Tell how many samples still count at `now_ms`."""
        return self.weight * math.exp(-max(0, now_ms - self.at_ms) / time_constant_ms)
