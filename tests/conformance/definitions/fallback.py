"""§3 "Fallback": when the classical half of a hybrid is enough, and for whom."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

from pch.reasons import Reason
from tests.conformance.definitions.answers import asked, offered, refused
from tests.conformance.definitions.relaxed import PAIR
from tests.conformance.definitions.step import Case, Step, case, signed, unsigned
from tests.conformance.definitions.world import ED, HYBRID, OTHER_BINDING

OK, ALG, FALLBACK = "allowed", "alg_not_allowed", "§3 Fallback"


def at(step: Step, *routes: str) -> Step:
    """While the breakers of these routes, by default that of both that may fall back, are not closed."""
    return step.but(not_closed=routes or ("fallback", "fallback-listed"))


def half(key: str | tuple[str, str] = "hybrid", target: str = "/fallback") -> Step:
    return signed(key, target=target)


def told(title: str, *routes: str, algorithms: list[str], tags: tuple[str, ...]) -> Case:
    """What is offered: a generic signer is asked for one signature where one is enough. Hints are as they may be."""
    offer = offered(algorithms=algorithms)
    del offer["hints"]
    answer = refused(
        Reason.MISSING_SIGNATURE,
        offer=offer,
        accept_signature=asked("pch-channel-binding", tags=tags),
    )
    return case(FALLBACK, title, "missing_signature", unsigned("/fallback").but(not_closed=routes, answer=answer))


CASES: tuple[Case, ...] = (
    case(FALLBACK, "the classical half alone", OK, at(half())),
    case(FALLBACK, "both halves all the same", OK, at(half(PAIR))),
    case(FALLBACK, "the classical half alone where its algorithm is listed by itself as well", OK, at(half(target="/fallback-listed"))),
    case(FALLBACK, "a key without partner where its algorithm is listed", OK, at(half("alice", target="/fallback-listed"))),
    case(FALLBACK, "the breaker is closed", ALG, half()),
    case(FALLBACK, "the breaker is closed, and the algorithm listed by itself", ALG, half(target="/fallback-listed")),
    case(FALLBACK, "the breaker of another route is not closed", ALG, at(half(), "hybrid")),
    case(FALLBACK, "a route that declares none", ALG, at(half(target="/hybrid/a"), "hybrid")),
    case(FALLBACK, "the ML-DSA half alone", ALG, at(half("hybrid-pq"))),
    case(FALLBACK, "the ML-DSA half alone where the classical algorithm is listed", ALG, at(half("hybrid-pq", target="/fallback-listed"))),
    case(FALLBACK, "a key without partner", ALG, at(half("alice"))),
    case(FALLBACK, "half of a hybrid that is not listed", ALG, at(half("curve"))),
    case(FALLBACK, "the other half is revoked", "key_revoked", at(half("half-revoked"))),
    case(FALLBACK, "the other half's dates are over", "unknown_key", at(half("half-past"))),
    case(FALLBACK, "the other half is revoked, and the signature bad", "bad_signature", at(half("half-revoked").flipped())),
    case(FALLBACK, "the ML-DSA half is there and broken", "bad_signature", at(half(PAIR).flipped("pch-pq"))),
    case(FALLBACK, "the halves of two hybrids", ALG, at(half(("hybrid", "second-pq")))),
    case(FALLBACK, "another connection", "binding_mismatch", at(half().but(binding=OTHER_BINDING))),
    case(FALLBACK, "the path not covered", "missing_component", at(signed("hybrid", target="/fallback", components=("@method", "@authority", "@query", "pch-channel-binding")))),
    told("what is offered while the breaker is closed", algorithms=[HYBRID], tags=("pch", "pch-pq")),
    told("what is offered while it is not", "fallback", algorithms=[HYBRID, ED], tags=("pch",)),
)  # fmt: skip
