"""Nine keys that must all hold, and what `/readyz` says when one does not (OBSERVABILITY.md §2)."""

import json
from types import SimpleNamespace

import pytest

from kms.config_sections import AuditSection, KmsConfig, PqSection, SecuritySection, ServiceSection
from kms.monitoring import Monitoring
from kms.primitive import Primitive
from kms.readiness import KEYS, RETRY_AFTER_S, ClockProbe, Look, Readiness, Snapshot, rng_probe
from kms.service_probes import ServiceState, phase_is_possible, service_probes, snapshot_of
from kms.telemetry import Telemetry

SNAPSHOT = Snapshot(backend="file", pq_mode="and", audit_last_checkpoint_age_s=42)


def readiness(looks=(), flips=None):
    found = dict.fromkeys(KEYS, Look(ok=True)) | dict(looks)
    told = flips if flips is not None else []
    return found, Readiness({key: lambda key=key: found[key] for key in KEYS}, lambda: SNAPSHOT, told.append)


def test_ready_is_when_every_key_holds():
    _, ready = readiness()
    payload = ready.look()
    assert (payload.ready, payload.missing, payload.degraded, payload.retry_after) == (True, [], [], 0)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_alone_ends_readiness(key):
    _, ready = readiness({key: Look(ok=False)})
    payload = ready.look()
    assert (payload.ready, payload.missing, payload.retry_after) == (False, [key], RETRY_AFTER_S)
    assert payload.degraded == ([key] if key in ("backend_ready", "attestation_ready") else [])


def test_a_key_that_cannot_be_looked_at_does_not_hold():
    def burst():
        raise RuntimeError

    probes = {key: lambda: Look(ok=True) for key in KEYS}
    ready = Readiness(probes | {"audit_ready": burst}, lambda: SNAPSHOT, lambda _: None)
    assert ready.look().missing == ["audit_ready"]


def test_a_warning_does_not_flip_readiness():
    _, ready = readiness({"verify_cache_ok": Look(ok=True, degraded=True)})
    payload = ready.look()
    assert (payload.ready, payload.degraded) == (True, ["verify_cache_ok"])


def test_flips_are_told_once_and_requests_read_the_last_look():
    flips = []
    found, ready = readiness(flips=flips)
    assert ready.payload.ready
    found["rng_ok"] = Look(ok=False)
    assert ready.payload.ready
    for _ in range(3):
        ready.look()
    found["rng_ok"] = Look(ok=True)
    ready.look()
    assert [payload.ready for payload in flips] == [True, False, True]


def test_a_probe_for_each_key_and_for_no_other():
    with pytest.raises(ValueError, match="a probe is needed"):
        Readiness({}, lambda: SNAPSHOT, lambda _: None)


def test_a_clock_that_jumps_beyond_the_tolerance_shows_for_a_while():
    """G-14, I-10: the wall clock against the monotonic one."""
    now = SimpleNamespace(wall_ms=1_000_000, s=100.0)
    probe = ClockProbe(lambda: now.wall_ms, lambda: now.s, lambda: 2000, hold_s=30)

    def pass_s(seconds, skew_ms=0):
        now.s += seconds
        now.wall_ms += int(seconds * 1000) + skew_ms
        return probe().ok

    assert pass_s(10)
    assert pass_s(10, 2000)
    assert pass_s(10, -2000)
    assert not pass_s(10, 2001)
    assert not pass_s(20)
    assert pass_s(11)
    assert not pass_s(1, -5000)
    assert pass_s(31)
    now.s -= 1
    assert not probe().ok


@pytest.mark.parametrize(
    ("random", "ok"),
    [
        (lambda n: bytes(n), False),
        (lambda n: b"", False),
        (__import__("os").urandom, True),
    ],
)
def test_a_random_source_that_repeats_itself_is_none(random, ok):
    assert rng_probe(random)().ok is ok


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_readyz_is_503_with_retry_after_until_ready(method):
    found, ready = readiness({"attestation_ready": Look(ok=False), "checkpoint_recent": Look(ok=False)})
    app = Monitoring(Telemetry(), ready)
    sent = []

    async def send(message):
        sent.append(message)

    await app({"path": "/readyz", "method": method}, None, send)
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"5") in sent[0]["headers"]
    assert json.loads(sent[1]["body"]) == {
        "ready": False,
        "missing": ["attestation_ready", "checkpoint_recent"],
        "degraded": ["attestation_ready"],
        "retry_after": 5,
        "snapshot": {"backend": "file", "pq_mode": "and", "audit_last_checkpoint_age_s": 42},
    }
    found.update(dict.fromkeys(KEYS, Look(ok=True)))
    ready.look()
    await app({"path": "/readyz", "method": method}, None, send)
    assert sent[2]["status"] == 200


@pytest.mark.parametrize(("holds", "degraded"), [(True, []), (False, ["backend_ready"])])
async def test_healthz_is_200_whatever_is_away_and_names_what_is_degraded(holds, degraded):
    _, ready = readiness({"backend_ready": Look(ok=holds)})
    sent = []

    async def send(message):
        sent.append(message)

    await Monitoring(Telemetry(), ready)({"path": "/healthz", "method": "GET"}, None, send)
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"]) == {"ok": True, "degraded": degraded}


def service(**changes):
    """A service's parts as the probes see them; each may be changed."""
    state = ServiceState()
    state.listening = True
    given = {
        "outage_ms": {"file": None},
        "attested": True,
        "writable": None,
        "not_ready": None,
        "problem": None,
    } | changes
    custody = SimpleNamespace(
        names=tuple(given["outage_ms"]),
        outage_ms=lambda name: given["outage_ms"][name],
        authority=SimpleNamespace(primitives=frozenset(Primitive)),
    )
    services = SimpleNamespace(custody=custody, attestations=SimpleNamespace(ready=given["attested"]))
    audit = SimpleNamespace(
        writable=lambda: given["writable"], not_ready=lambda: given["not_ready"], checkpoint_age_s=lambda: 3.7
    )
    authority = SimpleNamespace(problem=given["problem"])
    core = SimpleNamespace(services=services, telemetry=Telemetry())
    parts = SimpleNamespace(core=core, audit=audit, authority=authority)
    config = KmsConfig(
        service=ServiceSection(backend="file"),
        security=SecuritySection(attest_require=given.get("attest", "required")),
        audit=AuditSection(verify_cache_ttl_ms=1000),
    )
    clock = SimpleNamespace(wall_ms=lambda: 0, monotonic_s=lambda: 0.0)
    probes = service_probes(state, parts, lambda: config, clock)
    payload = Readiness(probes, lambda: snapshot_of(parts, lambda: config), lambda _: None).look()
    return state, probes, payload


@pytest.mark.parametrize(
    ("changes", "missing", "degraded"),
    [
        ({}, [], []),
        ({"problem": "revocations are not known"}, ["config_loaded"], []),
        ({"outage_ms": {"file": 5}}, ["backend_ready"], ["backend_ready"]),
        ({"outage_ms": {"file": None, "inmem": 1500}}, [], ["verify_cache_ok"]),
        ({"outage_ms": {"file": None, "inmem": 2001}}, ["verify_cache_ok"], ["verify_cache_ok"]),
        ({"attested": False}, ["attestation_ready"], ["attestation_ready"]),
        ({"attested": False, "attest": "if-available"}, [], []),
        ({"writable": "audit_integrity", "not_ready": "audit_integrity"}, ["audit_ready", "checkpoint_recent"], []),
        ({"not_ready": "audit_checkpoint"}, ["checkpoint_recent"], []),
    ],
)
def test_what_a_service_in_trouble_says(changes, missing, degraded):
    payload = service(**changes)[2]
    assert (payload.missing, payload.degraded) == (missing, degraded)
    assert payload.snapshot == Snapshot(backend="file", pq_mode="and", audit_last_checkpoint_age_s=3)


TOKEN = frozenset({Primitive.ED25519, Primitive.ECDSA_P256_SHA256})


@pytest.mark.parametrize(
    ("primitives", "allowed", "pq", "possible"),
    [
        (frozenset(Primitive), ("ed25519", "ml-dsa"), {}, True),
        (TOKEN, ("ed25519", "ml-dsa"), {}, False),
        (TOKEN, ("ed25519", "ml-dsa"), {"verify_mode": "pq_only"}, False),
        (TOKEN, ("ed25519", "ml-dsa"), {"verify_mode": "or"}, True),
        (TOKEN, ("ed25519", "ml-dsa"), {"rollout_percent": 0}, True),
        (frozenset(Primitive), ("ed25519",), {}, False),
        (frozenset(Primitive), ("ed25519", "ml-dsa-87"), {}, True),
        (frozenset({Primitive.X25519, Primitive.ML_KEM_768}), ("x25519", "ml-kem"), {}, True),
    ],
)
def test_a_phase_that_the_backend_cannot_keep_ends_readiness(primitives, allowed, pq, possible):
    config = KmsConfig(service=ServiceSection(allowed_algs=allowed), pq=PqSection(**pq))
    assert phase_is_possible(config, SimpleNamespace(primitives=primitives)) is possible


def test_it_is_told_as_a_configuration_that_is_not_in_force():
    state, _, _ = service()
    custody = SimpleNamespace(names=(), outage_ms=lambda _: None, authority=SimpleNamespace(primitives=TOKEN))
    core = SimpleNamespace(services=SimpleNamespace(custody=custody))
    parts = SimpleNamespace(core=core, authority=SimpleNamespace(problem=None))
    clock = SimpleNamespace(wall_ms=lambda: 0, monotonic_s=lambda: 0.0)
    for mode, holds in (("and", False), ("or", True)):
        config = KmsConfig(pq=PqSection(verify_mode=mode))
        probes = service_probes(state, parts, lambda config=config: config, clock)
        assert probes["config_loaded"]().ok is holds


def test_before_it_listens_and_after_a_refused_reload_it_is_not_ready():
    state, probes, _ = service()
    assert probes["listener_bound"]().ok
    state.listening = False
    assert not probes["listener_bound"]().ok
    state.config_ok = False
    assert not probes["config_loaded"]().ok
