"""The goodput of an app that is asked for twice its capacity, with one kind of shedding after another.

Goodput: answers 200 within the time that a client would wait. The load does not slow down when the app does: clients
send at their times, each on a connection of its own, and there are so many of them that few are still waiting when
their next time comes.
"""

from __future__ import annotations

import collections
import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest.chaos import sample
from loadtest.load_keys import write_keys
from loadtest.measured import Measured, Sample
from pch.client import Client, ClientError
from tools.stack import Stack
from tools.stack_config import Ports, StackSettings

SLOTS: Final = 2
DEADLINE_S: Final = 1.0
PATIENCE_S: Final = 3.0
"""How long each client waits for an answer before it sends again; what comes after the deadline is worth nothing."""
SAMPLE_EVERY_S: Final = 0.2
TYPE: Final = "type.googleapis.com/envoy.extensions.filters.http"

NEVER_MS: Final = 86_400_000
OFF: Final = {"trip_errors": 1.0, "trip_slowness": 1.0, "slow_ms": NEVER_MS, "crowd_ms": NEVER_MS}
ADAPTIVE_CONCURRENCY: Final = {
    "name": "envoy.filters.http.adaptive_concurrency",
    "typed_config": {
        "@type": f"{TYPE}.adaptive_concurrency.v3.AdaptiveConcurrency",
        "gradient_controller_config": {
            "sample_aggregate_percentile": {"value": 90},
            "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
            "min_rtt_calc_params": {"jitter": {"value": 10}, "interval": "60s", "request_count": 50},
        },
        "enabled": {"default_value": True, "runtime_key": "adaptive_concurrency.enabled"},
    },
}
ADMISSION_CONTROL: Final = {
    "name": "envoy.filters.http.admission_control",
    "typed_config": {
        "@type": f"{TYPE}.admission_control.v3.AdmissionControl",
        "enabled": {"default_value": True, "runtime_key": "admission_control.enabled"},
        "sampling_window": "10s",
        "success_criteria": {
            "http_criteria": {"http_success_status": [{"start": 100, "end": 500}]},
            "grpc_criteria": {"grpc_success_status": [0]},
        },
    },
}


@dataclass(frozen=True, slots=True)
class Shedding:
    """One way to shed load. `app_timeout_s`: admission_control learns from failures alone, so lateness must be one."""

    name: str
    breaker: dict[str, float | int] = field(default_factory=lambda: dict(OFF))
    http_filters: tuple[dict[str, Any], ...] = ()
    app_timeout_s: float | None = None


WAYS: Final = (
    Shedding("Signet", {}),
    Shedding("nothing"),
    Shedding("adaptive_concurrency", http_filters=(ADAPTIVE_CONCURRENCY,)),
    Shedding("admission_control", http_filters=(ADMISSION_CONTROL,), app_timeout_s=DEADLINE_S),
)


@dataclass(frozen=True, slots=True)
class Load:
    """What the app can do and how long it is asked for half of that, and then for `times` as much."""

    capacity_per_s: float = 40.0
    times: float = 2.0
    before_s: float = 12.0
    during_s: float = 30.0

    @property
    def clients(self) -> int:
        """Give how many clients keep up the rate although each waits out its patience."""
        return round(self.capacity_per_s * self.times * PATIENCE_S)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request of the overload. `status`: 0 when no answer came."""

    took_s: float
    status: int


class Clients:
    """The clients of one run; `run` blocks until the load is over."""

    def __init__(self, stack: Stack, keys: list[Any], load: Load) -> None:
        self._load = load
        self._url = f"https://127.0.0.1:{stack.settings.ports.https}/app/x"
        self._verify = str(stack.files.tls / "ca.pem")
        self._keys = keys
        self.sent: collections.deque[Sent] = collections.deque()
        self.skipped = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        """Send at half the capacity, each client once or so, and then at the rate of the overload."""
        started_s = time.monotonic() + 0.5
        threads = [
            threading.Thread(target=self._client, args=(number, started_s)) for number in range(self._load.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, started_s: float) -> None:
        load = self._load
        overload_s = started_s + load.before_s
        key = self._keys[number % len(self._keys)]
        options: dict[str, Any] = {"http2": False, "timeout_s": PATIENCE_S * 2, "max_connections_per_origin": 1}
        with Client(key=key, verify=self._verify, **options) as client:
            at_s = started_s + number / (load.capacity_per_s / 2)
            while at_s < overload_s:
                self._request(client, at_s)
                at_s += load.clients / (load.capacity_per_s / 2)
            at_s = overload_s + number / (load.capacity_per_s * load.times)
            while at_s < overload_s + load.during_s:
                if time.monotonic() > at_s + PATIENCE_S / 2:
                    with self._lock:
                        self.skipped += 1
                else:
                    self.sent.append(self._request(client, at_s))
                at_s += PATIENCE_S

    def _request(self, client: Client, at_s: float) -> Sent:
        time.sleep(max(0.0, at_s - time.monotonic()))
        began_s = time.monotonic()
        try:
            status = client.request("GET", self._url).status
        except ClientError:
            status = 0
        return Sent(time.monotonic() - began_s, status)


def watch(port: int, samples: list[Sample], stop: threading.Event) -> None:
    """Read the breaker's metrics until told to stop."""
    while not stop.wait(SAMPLE_EVERY_S):
        if (seen := sample(port, time.monotonic())) is not None:
            samples.append(seen)


def goodput(way: Shedding, load: Load) -> dict[str, float]:
    """Run the load against a stack that sheds in one way; give its figures."""
    with tempfile.TemporaryDirectory(prefix="signet-goodput-") as name:
        folder = Path(name)
        write_keys(folder)
        control = folder / "app.json"
        control.write_text(json.dumps({"slots": SLOTS, "service_ms": SLOTS * 1000 / load.capacity_per_s}))
        settings = StackSettings(
            folder,
            Ports.free(),
            app_command=(
                "{python}",
                "{repository}/loadtest/tired_app.py",
                "--port",
                "{port}",
                "--control",
                str(control),
            ),
            toml={"plan.breaker": way.breaker} if way.breaker else {},
            routes=({"name": "app", "path": "/app/**", "algorithms": ["ed25519"]},),
            http_filters=way.http_filters,
            app_timeout_s=way.app_timeout_s,
        )
        samples, stop = list[Sample](), threading.Event()
        with Stack(settings) as stack:
            keys = json.loads((folder / "load_keys.json").read_text())["classical"]
            watching = threading.Thread(target=watch, args=(settings.ports.admin, samples, stop))
            watching.start()
            clients = Clients(stack, keys, load)
            try:
                clients.run()
            finally:
                stop.set()
                watching.join()
    if not samples:
        raise RuntimeError("the breaker was not watched")
    return _figures(clients, load, Measured([], samples, 0.0, 0.0).opened)


def _figures(clients: Clients, load: Load, opened: int) -> dict[str, float]:
    answered = [each for each in clients.sent if each.status == 200]
    good = sorted(each.took_s for each in answered if each.took_s <= DEADLINE_S)
    return {
        "sent_per_s": round(len(clients.sent) / load.during_s, 1),
        "goodput_per_s": round(len(good) / load.during_s, 1),
        "late_per_s": round((len(answered) - len(good)) / load.during_s, 1),
        "p50_ms": round(good[len(good) // 2] * 1000) if good else 0,
        "p99_ms": round(good[len(good) * 99 // 100] * 1000) if good else 0,
        "skipped_per_s": round(clients.skipped / load.during_s, 1),
        "flaps": max(0, opened - 1),
        "opened": opened,
    }
