#!/usr/bin/env python3
"""The five-day pilot in minutes: one stack, five days, a scorecard. `make pilot` runs it.

    python loadtest/pilot.py [--out var/pilot] [--json]

Exit status: 0 when every success metric of the pilot was met, 1 when one was not.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import difflib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.attack_client import MISMATCH, AttackConnection
from loadtest.chaos import Result, _observe, heal
from loadtest.chaos_report import write_report
from loadtest.ending import end_as_by_an_interrupt
from loadtest.experiment import WELL_APP, Expectation, Experiment, Injection, Load
from loadtest.load_keys import write_keys
from loadtest.measured import MAX_UNWATCHED_S, Measured, percentile_ms, share_passed
from loadtest.toxics import Toxiproxy
from pch.client import Client
from pch.client.errors import ChallengeUnusable
from pch.keys import private_key_from_jwk
from tests.support.go_programs import build
from tools.stack import Stack
from tools.stack_config import REPOSITORY, Ports, StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pch.client.response import Response

TIMEOUT_S: Final = 30.0
FLOOR_BEFORE: Final = "availability_floor := 0.05"
FLOOR_AFTER: Final = "availability_floor := 0.3"
ATTACKS_SENT: Final = 100
HYBRID: Final = "ed25519+ml-dsa-65"
OPENS: Final = frozenset({"latency", "down"})
"""The faults of day 3 that open the breaker for certain; a slow line may also be endured."""
FELT_MS: Final = 500
"""How much later the 90th percentile comes at least where a line is slow."""


@dataclass
class Pilot:
    """The running pilot. `scores`: metric, what was measured, the target, whether it was met."""

    stack: Stack
    toxiproxy: Toxiproxy
    folder: Path
    out: Path
    scores: list[tuple[str, str, str, bool]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def score(self, metric: str, measured: str, target: str, *, met: bool) -> None:
        """Put one line on the card."""
        self.scores.append((metric, measured, target, met))
        print(f"    {'met   ' if met else 'MISSED'}  {metric}: {measured} (target {target})", flush=True)

    def keys(self, kind: str) -> list[Any]:
        """Give the private keys of one kind of user."""
        found: list[Any] = json.loads((self.folder / "load_keys.json").read_text())[kind]
        return found

    def client(self, key: Any, **options: Any) -> Client:
        """Make a client that trusts the stack's CA."""
        return Client(key=key, verify=str(self.stack.files.tls / "ca.pem"), http2=False, timeout_s=TIMEOUT_S, **options)

    def url(self, path: str) -> str:
        """Name a resource behind the filter."""
        return f"https://127.0.0.1:{self.stack.settings.ports.https}{path}"

    def admin(self, method: str, path: str, body: object = None) -> bytes:
        """Ask the admin port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.stack.settings.ports.admin, timeout=TIMEOUT_S)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status}")
        return content

    def receipt(self, receipt_id: str) -> dict[str, Any]:
        """Read one receipt."""
        found: dict[str, Any] = json.loads(self.admin("GET", f"/v1/receipts/{receipt_id}"))
        return found

    def observe(self, experiment: Experiment) -> Result:
        """Run load against the stack while something is broken, and keep the record."""
        (self.folder / "events.jsonl").unlink(missing_ok=True)
        (self.folder / "app.json").write_text(json.dumps(WELL_APP | experiment.app))
        try:
            result = _observe(experiment, self.stack, self.toxiproxy, self.folder, self.out)
        finally:
            heal(experiment, self.toxiproxy, self.folder)
        self.results.append(result)
        return result

    # The five days

    def day_1(self) -> None:
        """Set-up and handshake: signed requests pass, and those bound to another connection do not."""
        quiet = Experiment(
            name="day_1_baseline",
            hypothesis="Nothing is broken.",
            before_s=12,
            during_s=3,
            after_s=3,
            inject=Injection(at="none"),
            load=Load(users=20, rate=2, mix="classical=1"),
            expect=Expectation(flaps_max=0),
        )
        result = self.observe(quiet)
        passed = 0.0 if result.measured is None else share_passed(result.measured.before)
        self.score("signed request success", f"{passed:.2%}", "> 99 %", met=passed > 0.99)
        port, key = self.stack.settings.ports.https, private_key_from_jwk(self.keys("attacker")[0])
        attacker = AttackConnection(port, "/app/x", key)
        attacker.prime()
        told = [(attacker.attack(MISMATCH), attacker.reason) for _ in range(ATTACKS_SENT)]
        blocked = told.count((403, "binding_mismatch"))
        self.score("binding mismatch blocked", f"{blocked} of {ATTACKS_SENT}", "100 %", met=blocked == ATTACKS_SENT)

    def day_2(self) -> None:
        """Post-quantum and hybrid: the receipt shows the algorithm."""
        for kind, expected in (("pq", ["ml-dsa-65"]), ("hybrid", HYBRID.split("+"))):
            with self.client(self.keys(kind)[0]) as client:
                response = client.get(self.url("/app/day-2"))
            receipt = self.receipt(response.headers["pch-receipt"].strip('"'))
            algorithms = [signature["alg"] for signature in receipt["proof"]["signatures"]]
            self.score(
                f"{kind} receipt shows alg", ", ".join(algorithms), ", ".join(expected), met=algorithms == expected
            )

    def day_3(self) -> None:
        """Faults on the app's path: the breaker opens once for each, and relaxing costs little."""
        faults = {
            "latency": Injection(at="app_path", kind="latency", attributes={"latency": 3_000}),
            "bandwidth": Injection(at="app_path", kind="bandwidth", attributes={"rate": 1}),
            "down": Injection(at="app_path", kind="down"),
        }
        for name, injection in faults.items():
            experiment = Experiment(
                name=f"day_3_{name}",
                hypothesis=f"A fault of {name} opens the breaker at most once.",
                inject=injection,
                app={"answer_bytes": 3_000} if name == "bandwidth" else {},
                # Where every answer takes 3 s, few users would give less evidence than the breaker judges by.
                load=Load(users=60, rate=0.7) if name == "latency" else Load(),
            )
            result = self.observe(experiment)
            measured = None if result.aborted else result.measured
            shown, met = flaps_of(measured, must_open=name in OPENS)
            felt = name in OPENS or (measured is not None and (measured.added_p90_ms() or 0) >= FELT_MS)
            self.score(f"flaps under {name}", shown if felt else f"{shown}, not felt", "0", met=met and felt)
            recovery_s = None if result.measured is None else result.measured.recovery_s()
            shown = "never" if recovery_s is None else f"{recovery_s:.1f} s"
            self.score(f"recovery after {name}", shown, "30 s", met=recovery_s is not None and recovery_s <= 30)
        added_ms = self._added_by_relaxing()
        told = "nothing measured" if added_ms is None else f"{added_ms:.1f} ms"
        self.score("p90 added by relaxing", told, "< 50 ms", met=added_ms is not None and added_ms < 50)

    def _added_by_relaxing(self) -> float | None:
        """Measure hybrid requests with and without their evidence and signature in the body, one after another."""
        p90: list[float | None] = []
        for kind in ("hybrid", "relaxed"):
            quiet = Experiment(
                name=f"day_3_{kind}",
                hypothesis="Relaxing costs less than 50 ms.",
                before_s=10,
                during_s=3,
                after_s=3,
                inject=Injection(at="none"),
                load=Load(users=8, rate=2, mix=f"{kind}=1"),
            )
            measured = self.observe(quiet).measured
            p90.append(None if measured is None else percentile_ms(measured.before, 0.9))
        hybrid_ms, relaxed_ms = p90
        return None if hybrid_ms is None or relaxed_ms is None else relaxed_ms - hybrid_ms

    def day_4(self) -> None:
        """The compliance pack, and its verifier run by itself."""
        day = dt.datetime.now(dt.UTC).date().isoformat()
        pack = self.out / "pack.zip"
        pack.write_bytes(self.admin("POST", "/compliance/pack", {"date": day}))
        alone = self.folder / "laptop"
        alone.mkdir()
        with zipfile.ZipFile(pack) as archive:
            (alone / "verify.py").write_bytes(archive.read("verify.py"))
        shutil.copy(pack, alone / "pack.zip")
        done = subprocess.run(
            [sys.executable, "verify.py", "pack.zip", "--json"], cwd=alone, capture_output=True, text=True, check=False
        )
        (self.out / "verify.json").write_text(done.stdout)
        self.score("pack verifies offline", f"exit {done.returncode}", "exit 0", met=done.returncode == 0)
        shown, met = proofs_of(done.stdout if done.returncode == 0 else "")
        self.score("inclusion proofs", shown, "100 % of those sampled", met=met)

    def day_5(self) -> None:
        """Raise the availability floor in Rego, see the share that passes rise, and the fallback in receipts."""
        before = self._passed_while_open()
        policy = self.folder / "policy" / "shield.rego"
        old = policy.read_text()
        new = old.replace(FLOOR_BEFORE, FLOOR_AFTER)
        policy.write_text(new)
        diff = list(
            difflib.unified_diff(old.splitlines(), new.splitlines(), "shield.rego", "shield.rego", lineterm="", n=1)
        )
        (self.out / "shield.diff").write_text("\n".join(diff) + "\n")
        print("\n".join(f"        {line}" for line in diff[3:]), flush=True)
        _compile(policy)
        os.kill(self.stack.state["pids"]["filter"], signal.SIGHUP)
        time.sleep(2)
        after = self._passed_while_open()
        for moment, share, target, least, most in (
            ("before", before, "about 5 %", 0.03, 0.15),
            ("after", after, "about 30 %", 0.28, 0.6),
        ):
            shown = "it did not open" if share is None else f"{share:.1%}"
            self.score(f"floor while open, {moment}", shown, target, met=share is not None and least <= share <= most)
        fallen = self._fallbacks()
        self.score("receipts that show the fallback", str(fallen), "at least 1", met=fallen >= 1)

    def _passed_while_open(self) -> float | None:
        """Open the breaker, and give the share of one client's requests that reach the app; None if it stays closed."""
        (self.folder / "app.json").write_text(json.dumps(WELL_APP | {"fail_share": 1.0}))
        key = self.keys("classical")[0]
        reason, seen = "", list[str]()
        try:
            with self.client(key, max_connections_per_origin=1) as client:
                until = time.monotonic() + TIMEOUT_S
                while reason != "breaker_open" and time.monotonic() < until:
                    reason = client.get(self.url("/app/floor")).headers.get("pch-reason", "")
                if reason == "breaker_open":
                    seen = [client.get(self.url("/app/floor")).headers.get("pch-reason", "") for _ in range(200)]
        finally:
            (self.folder / "app.json").write_text(json.dumps(WELL_APP))
        self._wait_closed("/app/floor", key)
        # The app's own answers give no reason; whatever else refused a request did not let it through.
        return seen.count("") / len(seen) if seen else None

    def _wait_closed(self, path: str, key: Any) -> None:
        until, passed = time.monotonic() + 2 * TIMEOUT_S, 0
        with self.client(key, max_connections_per_origin=1) as client:
            while passed < 40 and time.monotonic() < until:
                passed = passed + 1 if client.get(self.url(path)).status == 200 else 0
                time.sleep(0.02)

    def _fallbacks(self) -> int:
        """Send the classical half of a hybrid while the breaker is open; count the receipts that accept it."""
        (self.folder / "app.json").write_text(json.dumps(WELL_APP | {"fail_share": 1.0}))
        whole = self.keys("hybrid")[0]
        try:
            with self.client(whole) as client:
                until = time.monotonic() + TIMEOUT_S
                while client.get(self.url("/hybrid/floor")).status != 503 and time.monotonic() < until:
                    pass
            answers: list[Response] = []
            with self.client(whole["keys"][0]) as client:
                while len(answers) < 40 and time.monotonic() < until:
                    # A worker behind the board, or a breaker that tries the app, offers no fallback.
                    with contextlib.suppress(ChallengeUnusable):
                        answers.append(client.get(self.url("/hybrid/floor")))
        finally:
            (self.folder / "app.json").write_text(json.dumps(WELL_APP))
        ids = [answer.headers["pch-receipt"].strip('"') for answer in answers if "pch-receipt" in answer.headers]
        found = [self.receipt(each) for each in ids]
        accepted = [each for each in found if each["decision"] == "allow" and each["policy"]["input"]["fallback"]]
        (self.out / "fallback_receipts.json").write_text(json.dumps(accepted[:3], indent=2))
        return len(accepted)


def flaps_of(measured: Measured | None, *, must_open: bool) -> tuple[str, bool]:
    """Tell the flaps of one fault, and whether there were none. What was not watched shows none.

    `must_open`: a fault that opens the breaker for certain; where it did not, it was not there.
    """
    if measured is None or measured.unwatched_s > MAX_UNWATCHED_S:
        return "not measured", False
    flaps = max(0, measured.opened - 1)
    return f"{flaps} (opened {measured.opened} times)", flaps == 0 and not (must_open and not measured.opened)


def proofs_of(told: str) -> tuple[str, bool]:
    """Tell how many inclusion proofs `verify.py --json` checked, and whether there was any; "" when it refused."""
    verdict = json.loads(told) if told.strip() else {}
    proofs, receipts = verdict.get("inclusion_proofs", 0), verdict.get("receipts", 0)
    return f"{proofs} checked, of {receipts} receipts", verdict.get("valid") is True and proofs > 0


def _compile(policy: Path) -> None:
    opa = build("opa", REPOSITORY / "tools/go_parts/opa", "github.com/open-policy-agent/opa")
    bundle = policy.with_name("bundle.tar.gz")
    options = ["--target=wasm", "--entrypoint=signet/shield/verdict", f"--output={bundle}"]
    subprocess.run([opa, "build", *options, policy.name], cwd=policy.parent, check=True)
    subprocess.run(["tar", "xzf", bundle, "-C", policy.parent, "/policy.wasm"], check=True, capture_output=True)
    (policy.parent / "policy.wasm").replace(policy.parent / "shield.wasm")


def _settings(folder: Path, ports: Ports, dialled: int) -> StackSettings:
    (folder / "app.json").write_text(json.dumps(WELL_APP))
    (folder / "policy").mkdir()
    shutil.copy(REPOSITORY / "policy/shield.rego", folder / "policy")
    shutil.copy(REPOSITORY / "policy/compiled/shield.wasm", folder / "policy")
    control = str(folder / "app.json")
    common = {"evidence": "optional", "relax": "always"}
    return StackSettings(
        folder,
        ports,
        app_command=("{python}", "{repository}/loadtest/tired_app.py", "--port", "{port}", "--control", control),
        app_dial_port=dialled,
        toml={"policy": {"module": "policy/shield.wasm", "source": "policy/shield.rego"}},
        routes=(
            {"name": "app", "path": "/app/**", "algorithms": ["ed25519", "ml-dsa-65", HYBRID], **common},
            {"name": "hybrid", "path": "/hybrid/**", "algorithms": [HYBRID], "fallback_classic": True, **common},
        ),
    )


def run(out: Path) -> Pilot:
    """Run the five days; returns the pilot with its card filled."""
    with tempfile.TemporaryDirectory(prefix="signet-pilot-") as name:
        folder = Path(name)
        ports, extra = Ports.free(), Ports.free()
        write_keys(folder)
        with Toxiproxy(extra.admin, folder / "toxiproxy.log") as toxiproxy:
            toxiproxy.proxy("app_path", extra.app, ports.app)
            with Stack(_settings(folder, ports, extra.app)) as stack:
                pilot = Pilot(stack, toxiproxy, folder, out)
                for number, day in enumerate((pilot.day_1, pilot.day_2, pilot.day_3, pilot.day_4, pilot.day_5), 1):
                    print(f"Day {number}: {day.__doc__}", flush=True)
                    day()
                write_report(pilot.results, out)
                return replace(pilot)


def _card(scores: Iterable[tuple[str, str, str, bool]]) -> str:
    rows = [("metric", "measured", "target", ""), *((*row[:3], "met" if row[3] else "MISSED") for row in scores)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    """Run the pilot and print its scorecard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "var/pilot", help="folder of what the pilot leaves")
    parser.add_argument("--json", action="store_true", help="the scorecard as JSON")
    options = parser.parse_args()
    end_as_by_an_interrupt()
    options.out.mkdir(parents=True, exist_ok=True)
    pilot = run(options.out)
    card = _card(pilot.scores)
    (options.out / "scorecard.txt").write_text(card + "\n")
    print(json.dumps(pilot.scores) if options.json else f"\n{card}")
    return 0 if all(met for *_, met in pilot.scores) else 1


if __name__ == "__main__":
    sys.exit(main())
