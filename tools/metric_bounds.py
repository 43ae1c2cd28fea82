"""What bounds each label of each metric: a set in code, or a setting with its maximum. No label comes from a client."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Final

from extproc.breaker import Phase
from extproc.outcome import Skipped
from extproc.route import MAX_ROUTES
from extproc.stress_action import Action
from kms.api_call import METHODS
from kms.config_sections import BackendName
from kms.messages import KeyAlg
from kms.operation_metrics import MAX_SERIES
from kms.operation_table import OPERATIONS
from kms.telemetry import ATTEST_RESULTS, QUEUES, SESSION_STATES
from pch.algorithms import ALGORITHMS, HYBRIDS
from pch.reasons import Reason


@dataclass(frozen=True, slots=True)
class Bound:
    """How many values a label may have, and what holds it to that."""

    values: int
    by: str


KEY_ALGORITHMS: Final = typing.get_args(KeyAlg)
BACKENDS: Final = typing.get_args(BackendName)
KMS_REASON_WORDS: Final = 192
"""Reasons of the key service's errors are words in its source; tests/unit/monitoring counts them."""
DROP_CAUSES: Final = ("queue_full", "shutdown", "unrecordable")
UNMATCHED_CAUSES: Final = ("malformed", "unknown_decision", *map(str, Skipped))
OP_WORDS: Final = 16
"""What is named `op` beside operations: the steps that have a deadline or are tried again."""

_ROUTE: Final = Bound(MAX_ROUTES + 1, "names of `[[route]]`, and none")
_BREAKER: Final = Bound(MAX_ROUTES + 1, "names of `[[route]]` and `route@tenant`, and none")
_REASON: Final = Bound(len(Reason), "reason codes, pch.md §5")
_FILTER: Final = {
    "route": _ROUTE,
    "reason": _REASON,
    "algorithm": Bound(len(ALGORITHMS) + len(HYBRIDS), "algorithms and hybrids, pch.md §3"),
    "outcome": Bound(2, "loaded, refused"),
    "to": Bound(len(Phase), "phases of the breaker"),
    "action": Bound(len(Action), "actions of the plan"),
}
_KMS: Final = {
    "route": Bound(len(OPERATIONS) + 1, "routes of the table of operations, and `other`"),
    "method": Bound(len(METHODS) + 1, "methods of the table of operations, and `other`"),
    "status": Bound(64, "HTTP and gRPC statuses of the errors in code"),
    "reason": Bound(KMS_REASON_WORDS, "words in code"),
    "op": Bound(len(OPERATIONS) + OP_WORDS, "operations, and words in code"),
    "alg": Bound(len(KEY_ALGORITHMS) + 1, "algorithms of keys, and `none`"),
    "result": Bound(len(ATTEST_RESULTS) + 1, "words in code"),
    "hit": Bound(2, "true, false"),
    "kind": Bound(2, "words in code"),
    "backend": Bound(len(BACKENDS), "backends in code"),
    "state": Bound(len(SESSION_STATES), "words in code"),
    "queue": Bound(len(QUEUES), "words in code"),
    "mode": Bound(4, "modes in code"),
}
_OF_METRIC: Final = {
    ("signet_outcomes_dropped", "cause"): Bound(len(DROP_CAUSES), "words in code"),
    ("signet_outcomes_unmatched", "cause"): Bound(len(UNMATCHED_CAUSES), "words in code"),
    **{
        ("kms_keys_total", label): Bound(MAX_SERIES + 1, f"keys; {MAX_SERIES} kinds, further ones are `other`")
        for label in ("tenant", "purpose", "alg")
    },
    **{
        (f"signet_{name}", "route"): _BREAKER
        for name in (
            *("breaker_phase", "breaker_errors_ratio", "breaker_slowness_ratio", "breaker_relaxing"),
            *("breaker_transitions", "crowd_limit_requests"),
        )
    },
    ("kms_key_version_head", "kid"): Bound(MAX_SERIES, f"hashes of the first {MAX_SERIES} keys"),
}


def bound_of(metric: str, label: str) -> Bound:
    """Give the bound of a label. Raises LookupError for a label that has none: it must not exist."""
    own = _OF_METRIC.get((metric, label))
    if own is not None:
        return own
    return (_FILTER if metric.startswith("signet_") else _KMS)[label]
