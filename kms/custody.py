"""Which provider holds a key, whether it may be used now, and since when it could not be reached (I-19, I-20)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kms.errors import PolicyDenied, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms.clock import Clock
    from kms.key_record import KeyRecord
    from kms.providers.provider import Provider

# Probes come every second: the next one may have found the provider again.
RETRY_AFTER_S: Final = 1


class Custody:
    """The providers by name. `authority` makes every new key and is the only one that signs.

    `allow_sign_fallback`: a key whose provider is not the authority may sign there all the same when both attest, and
    attest the same class. Nothing ever signs with another key than the one that was asked for.
    """

    def __init__(
        self, authority: Provider, by_name: Mapping[str, Provider], *, allow_sign_fallback: bool, clock: Clock
    ) -> None:
        self.authority = authority
        self._by_name = dict(by_name)
        self._allow_sign_fallback = allow_sign_fallback
        self._clock = clock
        now_s = clock.monotonic_s()
        # Written by the event loop: when each provider last answered, and which ones did not when last asked.
        self._answered_s = dict.fromkeys(self._by_name, now_s)
        self._away: set[str] = set()
        # Those whose last probe failed: they are not asked for anything, though a key may still be in memory.
        self._unready: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """List the providers."""
        return tuple(self._by_name)

    def provider(self, name: str) -> Provider:
        """Give a provider. Raises StoreUnavailable when the service runs without it."""
        provider = self._by_name.get(name)
        if provider is None:
            raise StoreUnavailable("the key's provider is not configured", reason="provider_missing")
        return provider

    def attestation_class(self, name: str) -> str | None:
        """Give the evidence class of a provider's keys; None where it cannot attest or is not configured."""
        provider = self._by_name.get(name)
        return None if provider is None else provider.attestation_class

    def maker(self) -> Provider:
        """Give the provider that makes keys. Raises StoreUnavailable while it is not ready."""
        return self._ready(self.authority)

    def holder(self, record: KeyRecord) -> Provider:
        """Give the provider of a key, for anything but signing. Raises StoreUnavailable, also while it is not ready."""
        return self._ready(self.provider(record.provider))

    def signer(self, record: KeyRecord) -> Provider:
        """Give the provider that may sign with a key (I-20, G-12). Raises PolicyDenied, StoreUnavailable."""
        provider = self.provider(record.provider)
        if provider is self.authority:
            return self._ready(provider)
        class_ = provider.attestation_class
        if not self._allow_sign_fallback or class_ is None or class_ != self.authority.attestation_class:
            raise PolicyDenied("the key's provider is not the signing authority", reason="not_authoritative")
        return self._ready(provider)

    def note(self, name: str, *, answered: bool, probed: bool = False) -> None:
        """Remember how a provider was found, by a probe or by an operation.

        What one operation met makes no other one fail: only a probe takes a provider out of use, and only a probe
        brings it back (OBSERVABILITY.md §2.3).
        """
        if probed:
            (self._unready.discard if answered else self._unready.add)(name)
        if not answered:
            self._away.add(name)
        elif name not in self._unready:
            self._answered_s[name] = self._clock.monotonic_s()
            self._away.discard(name)

    def _ready(self, provider: Provider) -> Provider:
        if provider.name in self._unready:
            raise StoreUnavailable("the key's backend is away", retry_after_s=RETRY_AFTER_S)
        return provider

    def outage_ms(self, name: str) -> int | None:
        """Tell how long ago a provider that is away last answered; None while it is there."""
        if name in self._by_name and name not in self._away:
            return None
        since_s = self._answered_s.get(name, 0.0)
        return max(0, int((self._clock.monotonic_s() - since_s) * 1000))
