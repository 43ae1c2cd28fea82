"""Which keys sign a request: one, or the two of a hybrid (docs/reference/pch.md §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pch.algorithms import ALGORITHMS, HYBRIDS, Signer, hybrid_name
from pch.client.errors import InvalidRequest
from pch.keys import KeyFormatError, jwks_members, private_key_from_jwk

if TYPE_CHECKING:
    from collections.abc import Iterable

KeyTypes = Signer | Mapping[str, object] | Sequence[Signer | Mapping[str, object]]
"""A signer, a private JWK, a JWK Set, or two of these for a hybrid."""


def signers_of(key: KeyTypes, alg: str | None = None) -> tuple[Signer, ...]:
    """Give the signers that `key` stands for, of a hybrid the classical one first.

    `alg`: the one to sign with, of those that `key` has: an algorithm, or a hybrid by its name; None for all. Raises
    `InvalidRequest` for a key that cannot be used, and for two keys that are no hybrid of PCH §3.
    """
    keys = key if isinstance(key, Sequence) else (key,)
    found = [signer for each in keys for signer in _read(each)]
    if alg is not None:
        found = _of_algorithm(found, alg)
    found.sort(key=lambda signer: signer.algorithm.post_quantum)
    if len(found) == 2 and hybrid_name(*(signer.algorithm.name for signer in found)) not in HYBRIDS:
        raise InvalidRequest("two keys are those of a hybrid: " + " or ".join(sorted(HYBRIDS)))
    if not 1 <= len(found) <= 2:
        raise InvalidRequest("a request is signed by one key, or by the two of a hybrid")
    return tuple(found)


def _read(key: Signer | Mapping[str, object]) -> tuple[Signer, ...]:
    if not isinstance(key, Mapping):
        return (key,)
    try:
        return tuple([private_key_from_jwk(jwk) for jwk in jwks_members(key)])
    except KeyFormatError as error:
        raise InvalidRequest(f"the key is not usable: {error}") from error


def _of_algorithm(signers: Iterable[Signer], alg: str) -> list[Signer]:
    if alg not in ALGORITHMS and alg not in HYBRIDS:
        raise InvalidRequest("the algorithm is unknown")
    names = alg.split("+")
    found = [signer for signer in signers if signer.algorithm.name in names]
    if sorted(signer.algorithm.name for signer in found) != sorted(names):
        raise InvalidRequest(f"{alg} needs exactly one key of each of its algorithms")
    return found
