"""ML-DSA verified by liboqs, the second provider beside `cryptography` (docs/reference/filter.toml, `ml_dsa_provider`).

The Python package `oqs` looks for the C library when it is imported, and where it finds none it clones and builds one
and may end the process. So the library is looked for, loaded and asked for what the package needs before the package
is touched. Private keys stay with `cryptography`: liboqs signs with expanded keys, and ours are seeds.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import logging
import os
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pch.algorithms import ALGORITHMS, Algorithm, PublicKey
from pch.errors import BadSignature
from pch.ml_dsa import PARAMETER_SETS

if TYPE_CHECKING:
    from collections.abc import Mapping

INSTALL_PATH_VARIABLE: Final = "OQS_INSTALL_PATH"
"""Names the folder whose `lib` or `lib64` holds liboqs.so; the package reads the same variable."""

_LIBRARY: Final = "liboqs.so"
_NEEDED: Final = ("OQS_init", "OQS_SIG_new", "OQS_SIG_verify", "OQS_SIG_supports_ctx_str")


class LiboqsUnavailable(Exception):
    """liboqs, or the package liboqs-python, is not there or does not fit; the message says which."""


@dataclasses.dataclass(frozen=True, slots=True)
class LiboqsPublicKey:
    """An ML-DSA public key that liboqs verifies with; its length was checked when the JWK was read."""

    algorithm: Algorithm
    _verifier: Any = dataclasses.field(repr=False)
    _encoded: bytes = dataclasses.field(repr=False)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify a signature of `algorithm.signature_bytes` bytes, FIPS 204 algorithm 3. Raises BadSignature."""
        if len(signature) != self.algorithm.signature_bytes:
            raise BadSignature("signature has the wrong length")
        if self._verifier.verify(data, signature, self._encoded) is not True:
            raise BadSignature("signature does not verify")


def liboqs_algorithms() -> Mapping[str, Algorithm]:
    """Give the registry of `pch.algorithms` with liboqs verifying ML-DSA. Raises `LiboqsUnavailable`."""
    oqs = load_oqs()
    replaced = {}
    for parameters in PARAMETER_SETS:
        try:
            verifier = oqs.Signature(parameters.jose_alg)
        except Exception as error:
            raise LiboqsUnavailable(f"this liboqs was built without {parameters.jose_alg}") from error
        replaced[parameters.name] = _algorithm(ALGORITHMS[parameters.name], verifier)
    return MappingProxyType({**ALGORITHMS, **replaced})


def load_oqs() -> Any:
    """Import the package `oqs` once its library is known to load. Raises `LiboqsUnavailable`; clones nothing."""
    _check_library(Path(os.environ.get(INSTALL_PATH_VARIABLE, "")))
    # The package writes to standard output when it is imported, and warns where its version is not the library's.
    logging.getLogger("oqs.oqs").disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("oqs")
    except ImportError as error:
        raise LiboqsUnavailable("the package liboqs-python is not installed (signet[liboqs])") from error
    except (AttributeError, RuntimeError, SystemExit) as error:
        raise LiboqsUnavailable("the package liboqs-python does not fit this liboqs") from error


def _check_library(folder: Path) -> None:
    if not folder.is_absolute():
        raise LiboqsUnavailable(f"{INSTALL_PATH_VARIABLE} does not name the folder of a liboqs")
    found = [path for path in (folder / "lib" / _LIBRARY, folder / "lib64" / _LIBRARY) if path.is_file()]
    if not found:
        raise LiboqsUnavailable(f"there is no {_LIBRARY} below {INSTALL_PATH_VARIABLE}")
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise LiboqsUnavailable(f"{_LIBRARY} cannot be loaded") from error
    if not all(hasattr(library, name) for name in _NEEDED):
        raise LiboqsUnavailable(f"{_LIBRARY} lacks what liboqs-python needs")


def _algorithm(ours: Algorithm, verifier: Any) -> Algorithm:
    def load_public(members: Mapping[str, bytes]) -> PublicKey:
        # What `cryptography` refuses stays refused.
        ours.load_public(members)
        return LiboqsPublicKey(ours, verifier, members["pub"])

    return dataclasses.replace(ours, load_public=load_public)
