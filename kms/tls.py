"""The TLS listener: 1.3 only, client certificates where a CA is given, certificates taken up anew while it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from kms.config_values import ConfigError
from kms.tls_context import load_context
from kms.tls_floor import grpc_floor_is_set

if TYPE_CHECKING:
    from pathlib import Path

    from kms.config_sections import TlsSection


@dataclass(frozen=True, slots=True)
class _Seen:
    """What tells that one of the files was replaced."""

    stamps: tuple[tuple[int, int, int], ...]


class TlsFiles:
    """The certificate, its key and the clients' CA, as one context. One event loop owns it."""

    def __init__(self, section: TlsSection) -> None:
        """Load the files. Raises ConfigError."""
        assert section.cert_path is not None and section.key_path is not None  # noqa: PT018 - the configuration was checked
        self._cert, self._key, self._client_ca = section.cert_path, section.key_path, section.client_ca_path
        self._section, self.context = section, load_context(section)
        self._seen = self._look()

    def refresh(self) -> bool:
        """Take up a replaced certificate for connections to come. Returns whether there was one; raises ConfigError.

        The clients' CA is not among what is replaced: a context only ever adds to its trust.
        """
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        # Into a context of its own first: a pair that does not fit must not break the one that serves.
        load_context(self._section)
        self.context.load_cert_chain(self._cert, self._key)
        return True

    def grpc_credentials(self) -> Any:
        """Make gRPC's credentials, which read the files again whenever they changed. Raises ConfigError."""
        if not grpc_floor_is_set():
            raise ConfigError("grpc_addr: its TLS would take versions below 1.3")
        demands_client = self._client_ca is not None
        stamp = self._look()

        def fetch() -> Any:
            nonlocal stamp
            now = self._look()
            if now == stamp:
                return None
            stamp = now
            return self._grpc_configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(), fetch, require_client_authentication=demands_client
        )

    def _grpc_configuration(self) -> Any:
        client_ca = None if self._client_ca is None else self._client_ca.read_bytes()
        pair = (self._key.read_bytes(), self._cert.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=client_ca)

    def _look(self) -> _Seen:
        return _Seen(tuple(_stamp(path) for path in (self._cert, self._key)))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)
