"""The nine looks of readiness at the parts of a running service (OBSERVABILITY.md §2.2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from kms.primitive import SIGNING, WIRE_NAMES
from kms.readiness import ClockProbe, Look, Snapshot, rng_probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.clock import Clock
    from kms.config_sections import KmsConfig
    from kms.providers.provider import Provider
    from kms.service_parts import ServiceParts

HARD_TTL_FACTOR: Final = 2
"""The verify cache's hard limit, in soft TTLs: alerts fire there, and readiness ends (OBSERVABILITY.md §5.1)."""


class ServiceState:
    """What only the serving process itself knows. One event loop owns it."""

    def __init__(self) -> None:
        self.config_ok = True
        self.listening = False


def service_probes(
    state: ServiceState, parts: ServiceParts, config: Callable[[], KmsConfig], clock: Clock
) -> dict[str, Callable[[], Look]]:
    """Make one probe for each key of readiness."""
    custody = parts.core.services.custody
    authority_name = config().service.backend

    def config_loaded() -> Look:
        understood = state.config_ok and parts.authority.problem is None
        return Look(ok=understood and phase_is_possible(config(), custody.authority))

    def attestation() -> Look:
        required = config().security.attest_require == "required"
        return Look(ok=not required or parts.core.services.attestations.ready)

    def verify_cache() -> Look:
        outages = [age for name in custody.names if (age := custody.outage_ms(name)) is not None]
        ttl_ms = config().audit.verify_cache_ttl_ms
        worst_ms = max(outages, default=0)
        if config().observability.emit_cache_age_metric:
            parts.core.telemetry.verify_cache_age.set(worst_ms)
        return Look(ok=worst_ms <= HARD_TTL_FACTOR * ttl_ms, degraded=worst_ms > ttl_ms)

    return {
        "config_loaded": config_loaded,
        "listener_bound": lambda: Look(ok=state.listening),
        "backend_ready": lambda: Look(ok=custody.outage_ms(authority_name) is None),
        "attestation_ready": attestation,
        "audit_ready": lambda: Look(ok=parts.audit.writable() is None),
        "checkpoint_recent": lambda: Look(ok=parts.audit.not_ready() is None),
        "rng_ok": rng_probe(os.urandom),
        "clock_ok": ClockProbe(clock.wall_ms, clock.monotonic_s, lambda: config().security.time_skew_tolerance_ms),
        "verify_cache_ok": verify_cache,
    }


def phase_is_possible(config: KmsConfig, authority: Provider) -> bool:
    """Tell whether the backend that signs can make what the phase in force asks for (QUANTUM.md §7).

    A token that does no ML-DSA cannot where post-quantum signatures are required: each signature would be refused. A
    backend that signs nothing is asked for none.
    """
    if config.pq.verify_mode == "or" or config.pq.rollout_percent == 0:
        return True
    signing = authority.primitives & SIGNING
    allowed = config.service.allowed_algs
    return not signing or any(each.post_quantum and WIRE_NAMES[each] in allowed for each in signing)


def snapshot_of(parts: ServiceParts, config: Callable[[], KmsConfig]) -> Snapshot:
    """Describe the service beside the keys."""
    in_force = config()
    age_s = parts.audit.checkpoint_age_s()
    return Snapshot(
        backend=in_force.service.backend,
        pq_mode=in_force.pq.verify_mode,
        audit_last_checkpoint_age_s=None if age_s is None else int(age_s),
    )
