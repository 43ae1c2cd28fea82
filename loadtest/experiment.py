"""One chaos experiment, as its YAML file states it: hypothesis, steady state, injection, abort, expectations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who sends how much. `rate`: requests per second of one user. `shape`: of loadtest/locustfile.py.

    `capacity_share`: instead of `users`, as many as make this share of what the stack can do, measured in the same run;
    `{users}` in `mix` stands for that number. `attacks`: what attackers send, kinds of loadtest/attack_client.py.
    """

    capacity_share: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    users: Annotated[int, msgspec.Meta(ge=1, le=500)] = 20
    rate: Annotated[float, msgspec.Meta(gt=0, le=100)] = 2.0
    mix: str = "classical=8,pq=1,hybrid=1"
    shape: str = "steady"
    attacks: tuple[Literal["mismatch", "replay", "forged", "stale"], ...] = ("mismatch", "replay", "forged", "stale")


class Injection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is broken. `at`: a toxic before app, Redis or key service; `worker`: one is killed; `app`: the app."""

    at: Literal["app_path", "redis_path", "kms_path", "worker", "app", "none"]
    kind: str = ""
    attributes: dict[str, int] = {}
    app: dict[str, float] = {}


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the hypothesis comes to in numbers; those left out are not looked at.

    Shares are of honest requests. `flaps`: times that the breaker went from closed to open. `added_p90_ms`: of requests
    that passed, against the time before. `honest_p95_factor`: the same as a ratio. `attack_factor`: attacks that were
    answered for each honest request. `rotations`: of the sealing key, in the whole run. `load_factor`: honest requests
    per second against the time before.
    """

    success_before_min: float = 0.99
    success_after_min: float = 0.98
    success_during_min: float | None = None
    passed_during_max: float | None = None
    opens_min: int | None = None
    flaps_max: int | None = 1
    recovery_s_max: float | None = 30.0
    added_p90_ms_min: float | None = None
    added_p90_ms_max: float | None = None
    honest_p95_factor_max: float | None = None
    load_factor_min: float | None = None
    attack_factor_min: float | None = None
    rotations_min: int | None = None
    reasons_during: list[str] = []


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One experiment. Times in seconds; `abort_below`: share of success before the injection without which it ends."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9_]+$")]
    hypothesis: str
    before_s: Annotated[int, msgspec.Meta(ge=3, le=600)] = 8
    during_s: Annotated[int, msgspec.Meta(ge=1, le=600)] = 10
    after_s: Annotated[int, msgspec.Meta(ge=3, le=600)] = 20
    abort_below: float = 0.9
    nonce_store: Literal["sqlite", "redis"] = "sqlite"
    kms: bool = False
    load: Load = Load()
    app: dict[str, float] = {}
    inject: Injection
    breaker: dict[str, float | int] = {}
    expect: Expectation = Expectation()


WELL_APP: Final = {"slots": 8.0, "service_ms": 20.0, "fail_share": 0.0, "answer_bytes": 2.0}
"""The app of an experiment that says nothing else: 400 requests per second."""


def read_experiment(path: Path) -> Experiment:
    """Read and check one file. Raises msgspec.ValidationError."""
    return msgspec.yaml.decode(path.read_bytes(), type=Experiment)


def as_builtins(experiment: Experiment) -> Any:
    """Give the experiment for the report."""
    return msgspec.to_builtins(experiment)
