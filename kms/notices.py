"""What the service tells of itself beside its answers: kms.* events, and log lines and spans of what no request asked.

The lines have the names of OBSERVABILITY.md §3.1's catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kms.clock import Clock
    from kms.config_sections import KmsConfig
    from kms.events import EventBus
    from kms.logs import LogWriter
    from kms.readiness import ReadyPayload
    from kms.spans import Tracing

SERVICE: Final = "ron-kms"


class Notices:
    """The six events (INTEROP.md §3.1), with names, hashes and numbers only. One event loop owns it."""

    def __init__(self, bus: EventBus, tracing: Tracing | None, clock: Clock, log: LogWriter) -> None:
        self._bus, self._tracing, self._clock, self._log = bus, tracing, clock, log
        self._version = 0
        self._roots_due = False

    def health(self, *, ok: bool, reason: str | None = None) -> None:
        """Tell that the service lives, or ends and why."""
        payload: dict[str, object] = {"service": SERVICE, "ok": ok}
        self._bus.publish("kms.health", payload if reason is None else {**payload, "reason": reason})

    def ready(self, payload: ReadyPayload) -> None:
        """Tell that readiness flipped."""
        event = "readyz_true" if payload.ready else "readyz_false"
        level = "info" if payload.ready else "warn"
        self._log.event(level, event, missing=payload.missing, degraded=payload.degraded)
        told = {"ready": payload.ready, "missing": payload.missing, "degraded": payload.degraded}
        self._bus.publish("kms.ready", told)

    def checkpoint(self, root: str, size: int, ok: bool, took_s: float) -> None:  # noqa: FBT001 - a callback's shape
        """Tell of an attempt at a checkpoint; from any thread. `root`: hex; `size`: records under it."""
        told = {"head": root, "index": size, "ok": ok}
        level, event = ("info", "audit_checkpoint_ok") if ok else ("error", "audit_checkpoint_failed")
        self._log.event(level, event, head=root, index=size, latency_ms=round(took_s * 1000, 3))
        self._bus.publish_from_thread("kms.audit.checkpoint", told)
        if self._tracing is not None:
            attributes = {"head": root, "index": size, "result": "ok" if ok else "err"}
            self._tracing.told("svc.kms.audit.checkpoint", attributes, took_s, self._clock.wall_ms() * 1_000_000)

    def attestation(self, backend: str, class_: str | None, ok: bool) -> None:  # noqa: FBT001 - a callback's shape
        """Tell of an attempt at evidence."""
        level, event = ("debug", "attestation_refresh_ok") if ok else ("warn", "attestation_refresh_failed")
        self._log.event(level, event, backend=backend, attestation_class=class_)
        payload: dict[str, object] = {"backend": backend, "ok": ok}
        self._bus.publish("kms.attestation.status", payload if class_ is None else {**payload, "class": class_})

    def session(self, backend: str, up: bool) -> None:  # noqa: FBT001 - a callback's shape
        """Tell that a backend began or ceased to answer."""
        level, event = ("info", "backend_session_up") if up else ("warn", "backend_session_down")
        self._log.event(level, event, backend=backend)

    def roots(self, *, due: bool) -> None:
        """Tell, once, that the root of capabilities is to be rotated (CONFIG.md §8: within 30 days)."""
        if due and not self._roots_due:
            self._log.event(
                "warn", "root_rotation_due", message="no root may mint any more: python -m kms root-key rotate"
            )
        self._roots_due = due

    def config(self, config: KmsConfig) -> None:
        """Tell that a configuration is in force, and the phase that it sets."""
        self._version += 1
        self._bus.publish("kms.config.updated", {"version": self._version})
        phase = {"pq_mode": config.pq.verify_mode, "rollout_percent": config.pq.rollout_percent}
        self._bus.publish("kms.policy.hint", phase)
