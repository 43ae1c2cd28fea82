"""The report of chaos experiments: one Markdown page, and a picture of each run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadtest.chaos import Result
    from loadtest.measured import Measured


def write_report(results: Sequence[Result], out: Path) -> Path:
    """Write `report.md`, `report.json` and one PNG for each run; returns the page."""
    lines = ["# Chaos experiments", ""]
    for result in results:
        name = result.experiment.name
        verdict = "held" if not result.wrong else "did not hold: " + "; ".join(result.wrong)
        lines += [f"## {name}: {verdict}", "", result.experiment.hypothesis, ""]
        if result.measured is None:
            continue
        draw(result.measured, name, out / f"{name}.png")
        lines += [f"![{name}]({name}.png)", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in result.measured.figures().items()] + [""]
    page = out / "report.md"
    page.write_text("\n".join(lines))
    (out / "report.json").write_text(json.dumps([result.as_json() for result in results], indent=2))
    return page


def draw(measured: Measured, name: str, path: Path) -> None:
    """Draw phase, means, latency and admission over time, with the time of the fault shaded."""
    figure, (phase, means, latency, admitted) = plt.subplots(4, 1, figsize=(10, 9), sharex=True)
    times = [each.at_s for each in measured.samples]
    phase.step(times, [each.phase for each in measured.samples], where="post")
    phase.set_yticks([0, 1, 2], ["closed", "half-open", "open"])
    phase.set_title(name)
    means.plot(times, [each.errors for each in measured.samples], label="errors")
    means.plot(times, [each.slowness for each in measured.samples], label="slowness")
    means.set_ylim(-0.05, 1.05)
    means.set_ylabel("EWMA")
    means.legend(loc="upper right")
    passed = [each for each in measured.sent if each.honest and each.status == 200]
    latency.semilogy([each.at_s for each in passed], [each.ms for each in passed], ".", markersize=2)
    latency.set_ylabel("latency of passed, ms")
    for label, chosen in (
        ("passed", passed),
        ("shed", [each for each in measured.sent if each.honest and each.status in {429, 503}]),
        ("failed", [each for each in measured.sent if each.honest and each.status not in {200, 429, 503}]),
        ("attacks", [each for each in measured.sent if not each.honest]),
    ):
        if chosen:
            last = max(each.at_s for each in measured.sent)
            admitted.hist([each.at_s for each in chosen], bins=max(1, round(last)), histtype="step", label=label)
    admitted.set_ylabel("requests /s")
    admitted.set_xlabel("s")
    admitted.legend(loc="upper right")
    for axis in (phase, means, latency, admitted):
        axis.axvspan(measured.injected_s, measured.healed_s, alpha=0.15, color="red")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
