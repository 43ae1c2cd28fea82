"""Who verifies ML-DSA signatures: `cryptography`, or liboqs where the operator wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.errors import ServerFault
from pch.algorithms import ALGORITHMS
from pch.liboqs import LiboqsUnavailable, liboqs_algorithms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pch.algorithms import Algorithm


class ProviderError(ServerFault):
    """The provider that the configuration names is not there."""


def algorithms_by(provider: str) -> Mapping[str, Algorithm]:
    """Give the registry of `provider`, `cryptography` or `liboqs`. Raises `ProviderError`; there is no falling back."""
    if provider != "liboqs":
        return ALGORITHMS
    try:
        return liboqs_algorithms()
    except LiboqsUnavailable as error:
        raise ProviderError(f"keyring.ml_dsa_provider: {error}") from error
