"""Count and time operations. Children are looked up once: `labels()` costs more than what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kms.primitive import POST_QUANTUM, WIRE_NAMES

if TYPE_CHECKING:
    from kms.errors import KmsError
    from kms.key_record import KeyRecord
    from kms.telemetry import Telemetry

NO_ALG: Final = "none"
# The documents' word for it in metrics (OBSERVABILITY.md §1.2); everywhere else it is named after its path.
_OP_NAMES: Final = {"create_key": "create"}
_SLOW: Final = frozenset(WIRE_NAMES[primitive] for primitive in POST_QUANTUM)
# A series costs memory here and at whoever scrapes it: keys beyond the bound are counted together, or not shown.
MAX_SERIES: Final = 1024
_OTHER_KIND: Final = ("other", "other", "other")


class OperationMetrics:
    """The event loop owns it. Labels come from fixed sets, kids as hashes."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._done: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._failed: dict[tuple[str, str], Any] = {}
        self._kinds: set[tuple[str, str, str]] = set()
        self._heads: set[str] = set()

    def done(self, op: str, algs: tuple[str, ...], took_s: float) -> None:
        """Count one operation that was answered, under each algorithm that it used, and time it under one of them.

        Two halves are one time: it goes to the post-quantum one, which takes the most of it. Otherwise each hybrid
        signature would be a slow Ed25519 one.
        """
        timed = timed_under(algs)
        for alg in algs:
            children = self._done.get((op, alg))
            if children is None:
                name = _OP_NAMES.get(op, op)
                children = (self._telemetry.ops.labels(name, alg, "ok"), self._telemetry.latency.labels(name, alg))
                self._done[op, alg] = children
            children[0].inc()
            if alg == timed:
                children[1].observe(took_s)

    def failed(self, op: str, alg: str, error: KmsError) -> None:
        """Count one operation that was refused or failed."""
        child = self._failed.get((op, alg))
        if child is None:
            name = _OP_NAMES.get(op, op)
            child = self._failed[op, alg] = self._telemetry.ops.labels(name, alg or NO_ALG, "err")
        child.inc()
        self._telemetry.rejected.labels(error.reason).inc()
        self._telemetry.reject.labels(error.reason).inc()

    def timed_out(self, op: str) -> None:
        """Count a missed deadline."""
        self._telemetry.io_timeouts.labels(_OP_NAMES.get(op, op)).inc()

    def key_set(self, record: KeyRecord, *, new: bool) -> None:
        """Show a key that was made or changed; past the bound on series nothing further is shown."""
        name = record.name
        if new:
            kind = (name.tenant, name.purpose, name.alg)
            if len(self._kinds) < MAX_SERIES:
                self._kinds.add(kind)
            self._telemetry.keys.labels(*(kind if kind in self._kinds else _OTHER_KIND)).inc()
        if len(self._heads) < MAX_SERIES:
            self._heads.add(name.hash8)
        if name.hash8 in self._heads:
            self._telemetry.key_version_head.labels(name.hash8).set(record.newest.number)


def timed_under(algs: tuple[str, ...]) -> str | None:
    """Tell under which of its algorithms an operation is timed; None where it used none."""
    return next((alg for alg in algs if alg in _SLOW), algs[0] if algs else None)
