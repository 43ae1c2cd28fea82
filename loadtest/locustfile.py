"""Locust users that speak PCH, and the shapes they come in. Loopback only; bounded by `--run-time` or by the shape.

    SIGNET_LOAD_KEYS=keys.json SIGNET_LOAD_CA=ca.pem \\
        locust -f loadtest/locustfile.py --headless --host https://127.0.0.1:8443 --csv out --html out.html

Environment: SIGNET_LOAD_MIX (`classical=8,pq=1,rotate:1`; = weighs, : fixes the number), SIGNET_LOAD_RATE (requests
per second of one user), SIGNET_LOAD_PATH, SIGNET_LOAD_SHAPE (steady, ramp, burst, replay_flood, rotate_flood,
attackers; none: Locust's own options), SIGNET_LOAD_ATTACKS (kinds of loadtest/attack_client.py; all),
SIGNET_LOAD_USERS, SIGNET_LOAD_SECONDS, SIGNET_LOAD_EVENTS (one JSON line per request).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from locust import LoadTestShape, User, constant_throughput, events, task

from loadtest.attack_client import ATTACKS, AttackConnection
from pch.client import Client, ClientError
from pch.keys import private_key_from_jwk

RATE_PER_USER: Final = float(os.environ.get("SIGNET_LOAD_RATE", "2"))
PATH: Final = os.environ.get("SIGNET_LOAD_PATH", "/app/x")
TIMEOUT_S: Final = 10.0
GOLDEN_RATIO: Final = (5**0.5 - 1) / 2
EXPECTED: Final = frozenset({200})
EVIDENCE: Final = {"type": "pch.evidence.v1", "claims": {"padding": "x" * 2_000}}

KINDS: Final = tuple(os.environ.get("SIGNET_LOAD_ATTACKS", ",".join(ATTACKS)).split(","))
_MIX: Final = os.environ.get("SIGNET_LOAD_MIX", "classical=8,pq=1,hybrid=1").split(",")
_keys: Final[dict[str, Any]] = json.loads(Path(os.environ["SIGNET_LOAD_KEYS"]).read_text())
_begun: Final = itertools.count()
_numbers: Final = {name: itertools.cycle(made) for name, made in _keys.items()}


def number_of(name: str, sign: str) -> int:
    """Give the weight (`name=3`) or the fixed number (`name:3`) of one kind of user."""
    return next((int(part.partition(sign)[2]) for part in _MIX if part.startswith(f"{name}{sign}")), 0)


def fall_out_of_step() -> None:
    """Wait for this user's own part of its interval; users of one moment would go on asking in one moment.

    The golden ratio spreads any number of them evenly.
    """
    time.sleep(next(_begun) * GOLDEN_RATIO % 1 / RATE_PER_USER)


class PchUser(User):
    """One client with a key and a connection of its own."""

    abstract = True
    wait_time = constant_throughput(RATE_PER_USER)
    kind: ClassVar[str]
    client_options: ClassVar[dict[str, Any]] = {}

    def on_start(self) -> None:
        """Take the next key of this kind."""
        self.key = next(_numbers[self.kind])
        self.client = self._new()
        fall_out_of_step()

    def on_stop(self) -> None:
        """Close the connection."""
        self.client.close()

    def _new(self) -> Client:
        return Client(
            key=self.key,
            verify=os.environ["SIGNET_LOAD_CA"],
            http2=False,
            timeout_s=TIMEOUT_S,
            max_connections_per_origin=1,
            **self.client_options,
        )

    @task
    def call(self) -> None:
        """Send one signed request. What the filter sheds is told apart from what fails."""
        started_s = time.perf_counter()
        failure: Exception | None = None
        status, length = 0, 0
        try:
            response = self.client.request("GET", self.host + PATH)
            status, length = response.status, len(response.content)
            if status not in EXPECTED:
                failure = RuntimeError(f"{status} {response.headers.get('pch-reason', '')}")
        except ClientError as error:
            failure = error
        tell(self.environment, self.kind, started_s, status, length, failure)


def tell(environment: Any, name: str, started_s: float, status: int, length: int, failure: Exception | None) -> None:
    """Report one request to Locust."""
    environment.events.request.fire(
        request_type="PCH",
        name=name,
        response_time=(time.perf_counter() - started_s) * 1000,
        response_length=length,
        exception=failure,
        context={"status": status},
    )


class ClassicalUser(PchUser):
    """Ed25519."""

    kind = "classical"
    weight = number_of("classical", "=")
    fixed_count = number_of("classical", ":")


class PostQuantumUser(PchUser):
    """ML-DSA-65."""

    kind = "pq"
    weight = number_of("pq", "=")
    fixed_count = number_of("pq", ":")


class HybridUser(PchUser):
    """Ed25519 and ML-DSA-65 together."""

    kind = "hybrid"
    client_options: ClassVar[dict[str, Any]] = {"relax": "never"}
    weight = number_of("hybrid", "=")
    fixed_count = number_of("hybrid", ":")


class RelaxedUser(PchUser):
    """A hybrid with evidence, both outside the header."""

    kind = "relaxed"
    weight = number_of("relaxed", "=")
    fixed_count = number_of("relaxed", ":")
    client_options: ClassVar[dict[str, Any]] = {"relax": "always", "evidence": EVIDENCE}


class AttackerUser(User):
    """Sends what must never pass; whatever passes is a failure, and so is an answer that is none."""

    weight = number_of("attacker", "=")
    fixed_count = number_of("attacker", ":")
    wait_time = constant_throughput(RATE_PER_USER)

    def on_start(self) -> None:
        """Connect."""
        self._connect()
        self.kinds = itertools.cycle(KINDS)
        fall_out_of_step()

    def _connect(self) -> None:
        port = int(self.host.rsplit(":", 1)[1])
        self.connection = AttackConnection(port, PATH, private_key_from_jwk(next(_numbers["attacker"])))
        self.connection.prime()

    @task
    def attack(self) -> None:
        """Send the next attack."""
        kind, started_s = next(self.kinds), time.perf_counter()
        failure: Exception | None = None
        status = 0
        try:
            status = self.connection.attack(kind)
            if status == 200:
                failure = RuntimeError("the attack passed")
        except OSError as error:
            failure = error
            self._connect()
        tell(self.environment, f"attack_{kind}", started_s, status, 0, failure)


class RotateUser(User):
    """Rotates the key that seals challenges, over and over."""

    weight = number_of("rotate", "=")
    fixed_count = number_of("rotate", ":")
    wait_time = constant_throughput(1.0)

    @task
    def rotate(self) -> None:
        """Rotate once."""
        started_s = time.perf_counter()
        command = [sys.executable, "-m", "extproc", "rotate-sealing-key", "--config", os.environ["SIGNET_LOAD_CONFIG"]]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        failure = None if done.returncode == 0 else RuntimeError(f"exit {done.returncode}")
        tell(self.environment, "rotate", started_s, 0, 0, failure)


@events.request.add_listener
def write_down(name: str, response_time: float, context: dict[str, Any], exception: object, **_: object) -> None:
    """Append one line per request for the experiment's own evaluation."""
    if _events is not None:
        line = {"t": time.time(), "name": name, "ms": round(response_time, 2), "status": context["status"]}
        _events.write(json.dumps(line | ({"error": str(exception)[:120]} if exception else {})) + "\n")


_path = os.environ.get("SIGNET_LOAD_EVENTS")
_events = Path(_path).open("a", buffering=1) if _path else None  # noqa: SIM115 - open as long as the process lives

_USERS: Final = int(os.environ.get("SIGNET_LOAD_USERS", "20"))
_SECONDS: Final = int(os.environ.get("SIGNET_LOAD_SECONDS", "60"))
SHAPES: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    # Until which share of the time, how many times the users.
    "steady": ((1.0, 1.0),),
    "ramp": tuple((step / 10, step / 10) for step in range(1, 11)),
    "burst": ((0.4, 1.0), (0.5, 10.0), (1.0, 1.0)),
    "replay_flood": ((0.3, 1.0), (0.7, 5.0), (1.0, 1.0)),
    "rotate_flood": ((1.0, 1.0),),
    "attackers": ((0.3, 1.0), (0.65, 11.0), (1.0, 1.0)),
}
_SHAPE: Final = os.environ.get("SIGNET_LOAD_SHAPE", "")

if _SHAPE:

    class Shape(LoadTestShape):
        """The shape that SIGNET_LOAD_SHAPE names."""

        def tick(self) -> tuple[int, float] | None:
            """Give users and spawn rate for now; None at the end."""
            gone = self.get_run_time() / _SECONDS
            for until, factor in SHAPES[_SHAPE]:
                if gone < until:
                    return max(1, round(_USERS * factor)), max(1.0, _USERS * factor)
            return None
