"""The stage of the faults: a whole stack, what `/readyz` says of it, and requests that pass or must not."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.attack_request import Request
from tests.e2e.attack_stage import Attacker, Stage, attack, wait_until
from tests.e2e.attack_wire import Answer
from tests.support.filter_process import running

PATIENCE_S = 30.0
POLL_S = 0.05


@dataclass
class FaultStage:
    """A stage with the parts that break. `seen`: every receipt id that a client was told."""

    stage: Stage
    seen: list[str] = field(default_factory=list)

    @property
    def var(self) -> Path:
        return self.stage.var

    # -- what it says of itself

    def readyz(self) -> dict[str, str]:
        """Give the reasons why it is not ready; the status has to agree with them."""
        address = ("127.0.0.1", self.stage.stack.settings.ports.admin)
        with contextlib.closing(http.client.HTTPConnection(*address, timeout=PATIENCE_S)) as connection:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            document: dict[str, Any] = json.loads(answer.read())
        assert (answer.status == 200) == document["ready"] == (not document["reasons"]), (answer.status, document)
        reasons: dict[str, str] = document["reasons"]
        return reasons

    def wait_ready(self) -> float:
        """Wait until nothing is wrong; gives how many seconds that took."""
        began_s = time.monotonic()
        reasons = self.readyz()
        while reasons:
            assert time.monotonic() < began_s + PATIENCE_S, f"still not ready: {reasons}"
            time.sleep(POLL_S)
            reasons = self.readyz()
        return time.monotonic() - began_s

    def wait_told(self, part: str, text: str) -> None:
        """Wait until both workers say of `part` something with `text` in it."""
        names = [f"worker.{index}{part and '.'}{part}" for index in (0, 1)]
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            reasons = self.readyz()
            if all(text in reasons.get(name, "") and name in reasons for name in names):
                return
            assert time.monotonic() < deadline_s, f"{part} {text!r} is not told: {reasons}"
            time.sleep(POLL_S)

    def worker_pid(self, index: int) -> int:
        """Give the pid of a worker that runs; one that was killed stands in the file until the next one writes it."""

        def named() -> int:
            status = json.loads((self.var / "run" / f"signet-{index}.status.json").read_text())
            pid = int(status["pid"])
            return pid if running(pid) else 0

        return wait_until(named, f"worker {index} runs")

    def worker_pids(self) -> list[int]:
        return [self.worker_pid(0), self.worker_pid(1)]

    # -- requests

    def attempt(self, attacker: Attacker, request: Request) -> Answer:
        """Send `request` and note the receipt."""
        answer = attacker.send(request)
        if answer.receipt_id is not None:
            self.seen.append(answer.receipt_id)
        return answer

    def try_signed(self, attacker: Attacker) -> Answer:
        """Send a request that is signed as it should be; its challenge is made here, so it needs no filter."""
        challenge = self.stage.mint(attacker.session.binding)
        return self.attempt(attacker, attacker.signed(challenge=challenge))

    def try_once(self) -> Answer:
        """Send one signed request on a connection of its own; what passes has to have a receipt."""
        with attack(self.stage, "http1") as attacker:
            answer = self.try_signed(attacker)
            assert len(self.stage.seen_by_app()) == (answer.status == 200)
        assert answer.status == 503 or answer.receipt_id is not None
        return answer

    def wait_logged(self, text: str, *, times: int) -> None:
        """Wait until the filter's log says `text` that often."""
        log = Path(self.stage.stack.state["logs"]["filter"])
        deadline_s = time.monotonic() + PATIENCE_S
        while log.read_text(errors="replace").count(text) < times:
            assert time.monotonic() < deadline_s, (
                f"{text!r} is not in the log:\n{log.read_text(errors='replace')[-2000:]}"
            )
            time.sleep(POLL_S)

    def nothing_passes(self, *reasons: str, times: int = 2, open_route_too: bool = True) -> None:
        """Signed and unsigned requests are refused, the signed ones for one of `reasons`; none reaches the app."""
        with attack(self.stage, "http1") as attacker:
            for _ in range(times):
                answer = self.try_signed(attacker)
                assert answer.status == 503, answer
                assert answer.reason in reasons, answer
                assert answer.get("retry-after") == "1"
                others = [attacker.request(), *([attacker.request(attacker.target("/public"))] * open_route_too)]
                for request in others:
                    assert self.attempt(attacker, request).status in {401, 503}
            assert self.stage.seen_by_app() == []

    def passes(self) -> tuple[float, Request]:
        """Wait until a signed request passes; gives the seconds that took, and the request."""
        began_s = time.monotonic()
        while True:
            with attack(self.stage, "http1") as attacker:
                request = attacker.signed(challenge=self.stage.mint(attacker.session.binding))
                answer = self.attempt(attacker, request)
                reached = self.stage.seen_by_app()
            if answer.status == 200:
                assert len(reached) == 1
                assert answer.receipt_id is not None
                return time.monotonic() - began_s, request
            assert reached == []
            assert time.monotonic() < began_s + PATIENCE_S, answer
            time.sleep(POLL_S)

    @contextlib.contextmanager
    def replay_is_refused(self) -> Iterator[None]:
        """Pass one request before the block; the same bytes on the same connection never pass again after it."""
        with attack(self.stage, "http1") as attacker:
            request = attacker.signed()
            assert self.attempt(attacker, request).status == 200
            self.stage.seen_by_app()
            yield
            self.stage.seen_by_app()
            for _ in range(3):
                answer = self.attempt(attacker, request)
                assert answer.reason in {"nonce_replay", "stale_challenge", "store_unavailable"}, answer
            assert self.stage.seen_by_app() == []

    def nothing_seen_is_missing(self) -> None:
        """Every receipt that a client was told is in the store."""
        for receipt_id in self.seen:
            self.stage.receipt(receipt_id)


@contextlib.contextmanager
def moved_aside(database: Path) -> Iterator[None]:
    """A SQLite file that is not where it was, with what belongs to it; whatever is in its place goes in the end."""
    aside = database.with_name(f"aside-{database.name}")
    endings = ("", "-wal", "-shm")
    for ending in endings:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{database}{ending}").rename(f"{aside}{ending}")
    try:
        yield
    finally:
        for ending in endings:
            Path(f"{database}{ending}").unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                Path(f"{aside}{ending}").rename(f"{database}{ending}")


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes of our own stack that stand still for the block."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
