"""Open the providers that the configuration names; the first one is the authority for signing (I-20)."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from kms.errors import StoreUnavailable, Unsupported
from kms.providers.connection import ConnectionMeter
from kms.providers.file import open_file_provider
from kms.providers.inmem import InMemoryProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kms.audit_anchor import RollbackCounter
    from kms.clock import Clock
    from kms.config_sections import KmsConfig
    from kms.providers.provider import Provider
    from kms.telemetry import Telemetry

# Jitter of pauses is no secret: it keeps restarted services from knocking all at once.
_JITTER: Final = random.SystemRandom().random


@dataclass(frozen=True, slots=True)
class ProviderSet:
    """The open providers by name, the authority among them; `rollback_counter` is the authority's, where it has one.

    Nothing here falls back: a key is used by the provider that its record names, and whether one that is not the
    authority may sign is `kms.custody`'s question (`allow_sign_fallback`, the same kid, the same attestation class).
    """

    authority: Provider
    by_name: Mapping[str, Provider]
    rollback_counter: RollbackCounter | None = None

    def close(self) -> None:
        """Close every provider, the authority last."""
        for provider in reversed(list(self.by_name.values())):
            provider.close()


def open_providers(
    config: KmsConfig, telemetry: Telemetry, clock: Clock, environ: Mapping[str, str] = os.environ
) -> ProviderSet:
    """Open `service.multi_backends` in their order (`service.backend` alone where it is empty).

    One that cannot be opened fails the start, the authority or not: a service that is told to use a backend does not
    run without it. Raises StoreUnavailable, Timeout, Unsupported.
    """
    names = config.service.multi_backends or (config.service.backend,)
    opened: dict[str, Provider] = {}
    with ExitStack() as undo:
        for name in names:
            provider = _OPENERS[name](config, telemetry, clock, environ)
            undo.callback(provider.close)
            opened[name] = provider
        undo.pop_all()
    authority = opened[names[0]]
    return ProviderSet(authority, MappingProxyType(opened), getattr(authority, "audit_counter", None))


def _open_inmem(config: KmsConfig, _telemetry: Telemetry, _clock: Clock, _environ: Mapping[str, str]) -> Provider:
    return InMemoryProvider()


def _open_file(config: KmsConfig, _telemetry: Telemetry, _clock: Clock, _environ: Mapping[str, str]) -> Provider:
    settings = config.backends.file
    return open_file_provider(settings.dir, settings.passphrase_file, settings.kdf, settings.aead)


def _open_pkcs11(config: KmsConfig, telemetry: Telemetry, clock: Clock, environ: Mapping[str, str]) -> Provider:
    try:
        from kms.providers.pkcs11 import open_pkcs11_provider
    except ImportError as error:
        raise _not_installed("pkcs11") from error
    settings = config.backends.pkcs11
    if settings.module_path is None:
        raise StoreUnavailable("backends.pkcs11.module_path is required", reason="token_module_unset")
    return open_pkcs11_provider(
        settings.module_path,
        settings.slot_label,
        settings.pin_env,
        environ,
        clock.monotonic_s,
        _JITTER,
        ConnectionMeter(telemetry, "pkcs11"),
    )


def _open_tpm(config: KmsConfig, telemetry: Telemetry, clock: Clock, _environ: Mapping[str, str]) -> Provider:
    try:
        from kms.providers.tpm import open_tpm_provider
    except ImportError as error:
        raise _not_installed("tpm") from error
    settings = config.backends.tpm
    meter = ConnectionMeter(telemetry, "tpm")
    return open_tpm_provider(settings.dir, settings.tcti, clock.monotonic_s, _JITTER, meter)


def _open_cloud(config: KmsConfig, _telemetry: Telemetry, clock: Clock, _environ: Mapping[str, str]) -> Provider:
    try:
        from kms.providers.cloud import open_cloud_provider
    except ImportError as error:
        raise _not_installed("cloud") from error
    settings = config.backends.cloud
    return open_cloud_provider(settings.key_id, settings.endpoint_url, settings.region, clock.monotonic_s)


def _not_installed(name: str) -> Unsupported:
    return Unsupported(f"the packages of the {name} backend are not installed", reason="backend_not_installed")


_OPENERS: Final[Mapping[str, Callable[[KmsConfig, Telemetry, Clock, Mapping[str, str]], Provider]]] = {
    "inmem": _open_inmem,
    "file": _open_file,
    "pkcs11": _open_pkcs11,
    "tpm": _open_tpm,
    "cloud": _open_cloud,
}
