"""Which keys a proof is by, and whether the route takes them: docs/reference/pch.md §3 "Hybrids", §4 step 4.

One signature has to be by an algorithm that the route lists; the two of a hybrid by one that it lists under the
hybrid's name, and by keys that are registered as each other's partners. A key that has a partner counts alone only
where the mode lets it, so that whoever strips a hybrid of one half gains nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pch.algorithms import ALGORITHMS, HYBRIDS, hybrid_name
from pch.errors import AlgNotAllowed

if TYPE_CHECKING:
    from extproc.keyring import KeyEntry, Keyring
    from extproc.route import Route
    from pch.proof import Proof, Proofs


def check_allowed(proofs: Proofs, route: Route, *, may_fall_back: bool = False) -> bool:
    """Check the algorithms against the route's list and mode; no key is looked up before. Raises `AlgNotAllowed`.

    `may_fall_back`: the classical half of a hybrid is enough for now. Returns whether this may be such a half, for
    `find_keys` to see.
    """
    first, second = proofs.first.algorithm, proofs.second_half
    if second is not None:
        name = hybrid_name(first, second.algorithm)
        if name not in HYBRIDS or name not in route.algorithms:
            raise AlgNotAllowed("the route does not accept this hybrid")
        return False
    if may_fall_back and _is_classical_half(first, route):
        return True
    if first not in ALGORITHMS or first not in route.algorithms:
        raise AlgNotAllowed("the route does not accept this algorithm")
    if route.mode == "pq_only" and not ALGORITHMS[first].post_quantum:
        raise AlgNotAllowed("the route accepts no classical signature alone")
    return False


def _is_classical_half(algorithm: str, route: Route) -> bool:
    """Tell whether a hybrid that the route lists begins with `algorithm`, be that listed by itself as well."""
    return algorithm in [name.partition("+")[0] for name in route.algorithms if name in HYBRIDS]


def find_keys(
    proofs: Proofs, route: Route, keyring: Keyring, now_ms: int, *, may_be_half: bool = False
) -> tuple[KeyEntry, ...]:
    """Find the key of every signature, in their order. Raises `UnknownKey`, `AlgNotAllowed`.

    `may_be_half`: one signature may be the classical half of a hybrid, whose other half is not asked for now; it is
    when its key has a partner.
    """
    keys = tuple([_find(proof, keyring, now_ms) for proof in proofs.both])
    if len(keys) == 1:
        if may_be_half and keys[0].partner is None and proofs.first.algorithm not in route.algorithms:
            raise AlgNotAllowed("only a key that is half of a hybrid may stand for it")
        if not may_be_half and keys[0].partner is not None and route.mode == "and":
            raise AlgNotAllowed("the key is half of a hybrid, and the other half did not sign")
        return keys
    first, second = keys
    if first.partner != second.key_id or second.partner != first.key_id or first.subject != second.subject:
        raise AlgNotAllowed("the keys are not registered as one hybrid")
    return keys


def absent_half(key: KeyEntry, keyring: Keyring, now_ms: int) -> KeyEntry:
    """Find the half that did not sign while `key`, the other one, is enough. Raises `UnknownKey`.

    It proves nothing here, but what it is a half of must still be good: whoever took it out of use meant the hybrid.
    """
    partner = keyring.lookup(key.partner or "")
    partner.check_dates(now_ms)
    return partner


def _find(proof: Proof, keyring: Keyring, now_ms: int) -> KeyEntry:
    key = keyring.lookup(proof.key_id)
    key.check_dates(now_ms)
    if key.public_key.algorithm.name != proof.algorithm:
        raise AlgNotAllowed("the algorithm contradicts the registered key")
    return key
