"""The TLS context of the HTTP listener: 1.3 only, client certificates where a CA is given."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from kms.config_values import ConfigError

if TYPE_CHECKING:
    from kms.config_sections import TlsSection


def load_context(section: TlsSection) -> ssl.SSLContext:
    """Load the certificate, its key and the clients' CA. Raises ConfigError when they cannot be used together."""
    assert section.cert_path is not None and section.key_path is not None  # noqa: PT018 - the configuration was checked
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(section.cert_path, section.key_path)
        if section.client_ca_path is not None:
            context.load_verify_locations(section.client_ca_path)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("tls: the certificate, its key or the clients' CA cannot be used together") from error
    return context
