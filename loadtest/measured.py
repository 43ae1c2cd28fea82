"""What an experiment measured: from the load's own record and from samples of the filter's metrics."""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.experiment import Expectation

HONEST: Final = frozenset({"classical", "pq", "hybrid", "relaxed"})
SETTLING_S: Final = 2.0
"""In which users come; nothing of it is judged."""
RECOVERED_SHARE: Final = 0.9
RECOVERY_WINDOW_S: Final = 2.0
MAX_UNWATCHED_S: Final = 1.0
"""Without a sample for longer, an opening, which lasts `base_dwell_ms` at the least, could go unseen."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request of the load. `at_s`: since the start; `reason`: the filter's, for what did not pass."""

    at_s: float
    name: str
    ms: float
    status: int
    reason: str

    @property
    def honest(self) -> bool:
        """Tell whether it should pass when all is well."""
        return self.name in HONEST


@dataclass(frozen=True, slots=True)
class Sample:
    """The filter's metrics at one moment."""

    at_s: float
    phase: float
    errors: float
    slowness: float


@dataclass
class Measured:
    """Everything of one run; `injected_s` and `healed_s` since the start."""

    sent: list[Sent]
    samples: list[Sample]
    injected_s: float
    healed_s: float
    problems: list[str] = field(default_factory=list)

    def window(self, start_s: float, end_s: float) -> list[Sent]:
        """Give the honest requests that began in a window."""
        return [each for each in self.sent if each.honest and start_s <= each.at_s - each.ms / 1000 < end_s]

    @property
    def before(self) -> list[Sent]:
        """Honest requests before the injection, without the first two seconds, in which users come."""
        return self.window(SETTLING_S, self.injected_s)

    @property
    def during(self) -> list[Sent]:
        """Honest requests while it was broken."""
        return self.window(self.injected_s, self.healed_s)

    @property
    def opened(self) -> int:
        """How often the breaker went from closed to open: the flaps of one fault are those beyond the first."""
        phases = [each.phase for each in self.samples]
        last_whole, count = 0.0, 0
        for phase in phases:
            if phase == 2.0 and last_whole == 0.0:
                count += 1
            if phase in {0.0, 2.0}:
                last_whole = phase
        return count

    @property
    def unwatched_s(self) -> float:
        """The longest time without a sample, from the start to the load's end."""
        end_s = max([self.healed_s, *(each.at_s for each in self.sent)])
        times = [0.0, *sorted(each.at_s for each in self.samples), end_s]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    @property
    def attack_factor(self) -> float | None:
        """How many attacks were answered while it was broken for each honest request; None without any of these."""
        answered = [each for each in self.sent if each.name.startswith("attack_") and each.status]
        during = [each for each in answered if self.injected_s <= each.at_s < self.healed_s]
        return len(during) / len(self.during) if self.during else None

    @property
    def load_factor(self) -> float | None:
        """How many times as many honest requests came per second while it was broken; None without any before."""
        before_s, during_s = self.injected_s - SETTLING_S, self.healed_s - self.injected_s
        if not self.before or during_s <= 0:
            return None
        return len(self.during) / during_s / (len(self.before) / before_s)

    @property
    def rotations(self) -> int:
        """How often the sealing key was rotated."""
        return sum(each.name == "rotate" and not each.reason for each in self.sent)

    @property
    def breaches(self) -> int:
        """How many attacks passed."""
        return sum(each.status == 200 for each in self.sent if each.name.startswith("attack_"))

    def recovery_s(self) -> float | None:
        """Give the time from healing until success is back for two seconds; None when it never was."""
        if not self.sent:
            return None
        step, at_s, end_s = 0.25, self.healed_s, max(each.at_s for each in self.sent)
        wanted = RECOVERED_SHARE * share_passed(self.before)
        while at_s + RECOVERY_WINDOW_S <= end_s:
            seen = self.window(at_s, at_s + RECOVERY_WINDOW_S)
            if seen and share_passed(seen) >= wanted:
                return at_s - self.healed_s
            at_s += step
        return None

    def judge(self, expect: Expectation) -> list[str]:
        """Give what does not hold of the hypothesis, in words; nothing when all does."""
        wrong = list(self.problems)
        if self.unwatched_s > MAX_UNWATCHED_S and not (expect.flaps_max is None and expect.opens_min is None):
            wrong.append(f"the breaker was not watched for {self.unwatched_s:.1f} s")
        recovery_s = self.recovery_s()
        after = self.window(self.healed_s + (recovery_s or 0.0), float("inf"))
        checks: list[tuple[str, float | None, float | None, bool]] = [
            ("success before", _share(self.before), expect.success_before_min, True),
            ("success after recovery", _share(after), expect.success_after_min, True),
            ("success during", _share(self.during), expect.success_during_min, True),
            ("passed during", _share(self.during), expect.passed_during_max, False),
            ("openings", self.opened, expect.opens_min, True),
            ("flaps", self.opened, expect.flaps_max, False),
            ("recovery in s", float("inf") if recovery_s is None else recovery_s, expect.recovery_s_max, False),
            ("added p90 in ms", self.added_p90_ms(), expect.added_p90_ms_min, True),
            ("added p90 in ms", self.added_p90_ms(), expect.added_p90_ms_max, False),
            ("honest p95 ratio", self.honest_p95_factor(), expect.honest_p95_factor_max, False),
            ("attacks that passed", self.breaches, 0, False),
            ("load against before", self.load_factor, expect.load_factor_min, True),
            ("attacks for each honest request", self.attack_factor, expect.attack_factor_min, True),
            ("rotations", self.rotations, expect.rotations_min, True),
        ]
        for name, value, bound, at_least in checks:
            if bound is None:
                continue
            if value is None:
                wrong.append(f"{name}: nothing to measure it by")
            elif (value < bound) if at_least else (value > bound):
                wrong.append(f"{name}: {value:.3f}, expected {'at least' if at_least else 'at most'} {bound}")
        told = {each.reason for each in self.during}
        wrong += [f"no request was refused with {reason}" for reason in expect.reasons_during if reason not in told]
        return wrong

    def added_p90_ms(self) -> float | None:
        """Give how much the 90th percentile of what passed rose."""
        before, during = percentile_ms(self.before, 0.9), percentile_ms(self.during, 0.9)
        return None if before is None or during is None else during - before

    def honest_p95_factor(self) -> float | None:
        """Give how many times the 95th percentile of what passed rose."""
        before, during = percentile_ms(self.before, 0.95), percentile_ms(self.during, 0.95)
        return None if before is None or during is None else during / before

    def figures(self) -> dict[str, float | int | None]:
        """Give the numbers of the report."""
        recovery_s = self.recovery_s()
        return {
            "requests": len(self.sent),
            "success before": round(share_passed(self.before), 4),
            "passed during": round(share_passed(self.during), 4),
            "goodput before /s": rate(self.before),
            "goodput during /s": rate(self.during),
            "p50 before ms": percentile_ms(self.before, 0.5),
            "p90 before ms": percentile_ms(self.before, 0.9),
            "p90 during ms": percentile_ms(self.during, 0.9),
            "closed to open": self.opened,
            "MTTR s": None if recovery_s is None else round(recovery_s, 2),
            "load against before": None if self.load_factor is None else round(self.load_factor, 1),
            "attacks": sum(each.name.startswith("attack_") for each in self.sent),
            "attacks that passed": self.breaches,
            "attacks for each honest request": None if self.attack_factor is None else round(self.attack_factor, 1),
            "rotations": self.rotations,
            "longest unwatched s": round(self.unwatched_s, 2),
        }


def share_passed(sent: list[Sent]) -> float:
    """Give the share of requests that the app answered."""
    return sum(each.status == 200 for each in sent) / len(sent) if sent else 0.0


def _share(sent: list[Sent]) -> float | None:
    """Give the share that passed; None where nothing was sent, which shows nothing."""
    return share_passed(sent) if sent else None


def rate(sent: list[Sent]) -> float:
    """Give how many passed per second."""
    times = [each.at_s for each in sent]
    span_s = max(times) - min(times) if len(times) > 1 else 0.0
    return round(sum(each.status == 200 for each in sent) / span_s, 1) if span_s else 0.0


def percentile_ms(sent: list[Sent], share: float) -> float | None:
    """Give the latency below which `share` of what passed lies."""
    times = sorted(each.ms for each in sent if each.status == 200)
    return (
        round(statistics.quantiles(times, n=100, method="inclusive")[round(share * 100) - 1], 1) if times[1:] else None
    )


def read_sent(path: Path, start_s: float) -> list[Sent]:
    """Read what loadtest/locustfile.py wrote down."""
    found = []
    for line in path.read_text().splitlines():
        said = json.loads(line)
        reason = said.get("error", "").partition(" ")[2]
        found.append(Sent(said["t"] - start_s, said["name"], said["ms"], said["status"], reason))
    return found
