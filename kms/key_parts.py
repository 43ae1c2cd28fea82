"""Which parts a new version gets, and which of them sign (PQ-I1, PQ-I5; docs/decisions/0010-hybrid-halves.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kms.errors import BadRequest, PqPolicy, Unsupported
from kms.primitive import TLOG_PARTS, TLOG_PURPOSE, WIRE_NAMES, KeyAlgorithm, Primitive

if TYPE_CHECKING:
    from kms.key_record import KeyRecord, KeyVersion
    from kms.policy import PolicyDecision
    from kms.providers.provider import ProviderKey

# The half that joins a classical signing key where the policy wants hybrid signatures.
PQ_HALF: Final = Primitive.ML_DSA_65
TLOG_ALG: Final = "hybrid"


def parts_of_new_version(
    algorithm: KeyAlgorithm, purpose: str, decision: PolicyDecision, allowed: frozenset[str]
) -> tuple[Primitive, ...]:
    """Choose the parts of a version that is about to be made.

    A classical signing key gets a post-quantum half where the policy produces hybrid signatures: its versions are then
    made with both halves at once, or not at all. Raises Unsupported for what is not allowed, BadRequest.
    """
    if purpose == TLOG_PURPOSE:
        if algorithm.name != TLOG_ALG:
            raise BadRequest("keys of purpose tlog are of algorithm hybrid")
        return TLOG_PARTS
    parts = algorithm.parts
    if algorithm.signs and decision.produce_hybrid and not any(part.post_quantum for part in parts):
        parts = (*parts, PQ_HALF)
    for part in parts:
        if WIRE_NAMES[part] not in allowed:
            raise Unsupported("the algorithm is not allowed here", reason="alg_not_allowed")
    return parts


def parts_that_sign(
    record: KeyRecord, version: KeyVersion, decision: PolicyDecision, *, caller_wants_hybrid: bool | None
) -> tuple[ProviderKey, ...]:
    """Choose the parts of a version that sign one digest.

    The parts that the kid's algorithm names always do, but under `pq_only` without hybrid signatures the
    post-quantum ones alone. A half that joined for the policy's sake does when the policy or the caller wants it.
    Raises PqPolicy when a post-quantum signature is wanted and the version has no such half; Unsupported.
    """
    if not record.algorithm.signs:
        raise Unsupported("keys of this algorithm do not sign", reason="alg_does_not_sign")
    if not version.post_quantum and (decision.requires_post_quantum or caller_wants_hybrid):
        raise PqPolicy(
            "this version has no post-quantum half", hint="rotate the key: the next version gets both halves"
        )
    if decision.produce_hybrid or caller_wants_hybrid:
        return version.parts
    if decision.requires_post_quantum:
        return tuple(part for part in version.parts if part.primitive.post_quantum)
    return tuple(part for part in version.parts if part.primitive in record.algorithm.parts)
