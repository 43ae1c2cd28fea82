"""The least TLS version of gRPC's listener. Its library reads this when it is loaded, so it must be set before."""

from __future__ import annotations

import os
from typing import Final

# The library has no setting for the least version. Its 1.2 suites can be set, though: with a pre-shared-key suite
# alone, and no such key, no 1.2 handshake ever ends well; 1.3 suites are not affected.
GRPC_SUITES_ENV: Final = "GRPC_SSL_CIPHER_SUITES"
GRPC_NO_TLS12: Final = "ECDHE-PSK-CHACHA20-POLY1305"


def set_grpc_floor() -> None:
    """Leave gRPC no suite below TLS 1.3. To be called before `grpc` is imported."""
    os.environ[GRPC_SUITES_ENV] = GRPC_NO_TLS12


def grpc_floor_is_set() -> bool:
    """Tell whether it was."""
    return os.environ.get(GRPC_SUITES_ENV) == GRPC_NO_TLS12
