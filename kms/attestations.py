"""Evidence of where keys live, fresh enough to answer with, and the gate that wants it before a signature (I-12)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from kms.errors import AttestationMissing, KmsError, Timeout
from kms.operation_metrics import NO_ALG

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.clock import Clock
    from kms.providers.provider import Attestation, KeyHandle, Provider
    from kms.telemetry import Telemetry
    from kms.work_pool import WorkPool

AttestRequirement = Literal["never", "if-available", "required"]

NONCE_BYTES: Final = 32
# Evidence stands for a session, not for one signature: a quote takes a TPM longer than signing does.
FRESH_S: Final = 60.0
# After a failure the provider is not asked again at once; a signature that needs none does not wait for it.
RETRY_S: Final = 5.0
MAX_ENTRIES: Final = 4096


_Key = tuple[str, "KeyHandle"]
# Evidence, or why there is none.
_Found = tuple["Attestation | None", Exception | None]


@dataclass(frozen=True, slots=True)
class _Entry:
    attestation: Attestation | None
    taken_s: float


class Attestations:
    """The evidence by key. The event loop owns it."""

    def __init__(
        self,
        requirement: AttestRequirement,
        pool: WorkPool,
        telemetry: Telemetry,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        *,
        deadline_s: float,
    ) -> None:
        self.requirement = requirement
        self._pool, self._telemetry, self._clock, self._random_bytes = pool, telemetry, clock, random_bytes
        self._deadline_s = deadline_s
        self._entries: OrderedDict[tuple[str, KeyHandle], _Entry] = OrderedDict()
        # Look-ups under way: who waits for one may give up, and it goes on to its deadline all the same.
        self._looks: dict[_Key, asyncio.Task[_Found]] = {}
        # When a provider's evidence last did not come in time.
        self._hung_s: dict[str, float] = {}
        # Told of each attempt: the backend, the class of the evidence (None where there is none), whether it was had.
        self.on_refresh: Callable[[str, str | None, bool], None] = lambda _backend, _class, _ok: None

    @property
    def ready(self) -> bool:
        """Tell whether evidence was had whenever it was last asked for; of keys never asked for, nothing is known."""
        newest = next(reversed(self._entries.values()), None)
        return newest is None or newest.attestation is not None

    async def gate(self, tenant: str, provider: Provider, handle: KeyHandle) -> Attestation | None:
        """Give evidence of a key before it signs, or None where none is wanted or there.

        While a provider's evidence hangs, one look-up at a time asks for it and nobody else waits. Raises
        AttestationMissing when evidence is required and not to be had.
        """
        if self.requirement == "never":
            return None
        if provider.attestation_class is None:
            self._check_missing(provider, None)
            return None
        key = (provider.name, handle)
        entry = self._entries.get(key)
        if entry is not None:
            kept_s = FRESH_S if entry.attestation is not None else RETRY_S
            if self._clock.monotonic_s() - entry.taken_s <= kept_s:
                if entry.attestation is None:
                    self._check_missing(provider, None)
                return entry.attestation
        look = self._looks.get(key)
        if look is None:
            if self._hangs(provider.name) or len(self._looks) >= MAX_ENTRIES:
                self._check_missing(provider, None)
                return None
            look = self._begin_look(key, tenant, provider)
        if entry is not None and entry.attestation is None and self.requirement != "required":
            return None
        # Not awaited itself: given up here, it goes on and its outcome is kept.
        await asyncio.wait([look])
        attestation, cause = (None, None) if look.cancelled() else look.result()
        if attestation is None:
            self._check_missing(provider, cause)
        return attestation

    def _begin_look(self, key: _Key, tenant: str, provider: Provider) -> asyncio.Task[_Found]:
        look = self._looks[key] = asyncio.create_task(self._look(tenant, provider, key[1]), name="kms-attest")

        def ended(done: asyncio.Task[_Found]) -> None:
            del self._looks[key]
            if not done.cancelled():
                done.exception()  # Looked at, so that the loop does not report what nobody waited for.

        look.add_done_callback(ended)
        return look

    def _hangs(self, name: str) -> bool:
        """Tell whether a provider's evidence did not come in time and is not due to be tried, or is being tried."""
        since_s = self._hung_s.get(name)
        if since_s is None:
            return False
        return self._clock.monotonic_s() - since_s <= RETRY_S or any(each == name for each, _ in self._looks)

    async def _look(self, tenant: str, provider: Provider, handle: KeyHandle) -> _Found:
        """Ask for evidence and keep what came of it."""
        attestation, cause = await self._take(tenant, provider, handle)
        now_s = self._clock.monotonic_s()
        if isinstance(cause, TimeoutError | Timeout):
            self._hung_s[provider.name] = now_s
        else:
            self._hung_s.pop(provider.name, None)
        self.on_refresh(provider.name, None if attestation is None else attestation.class_, attestation is not None)
        key = (provider.name, handle)
        self._entries[key] = _Entry(attestation, now_s)
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)
        return attestation, cause

    async def _take(self, tenant: str, provider: Provider, handle: KeyHandle) -> _Found:
        nonce = self._random_bytes(NONCE_BYTES)
        try:
            async with asyncio.timeout(self._deadline_s):
                attestation = await self._pool.run(tenant, lambda: provider.attest(handle, nonce))
        except TimeoutError as error:
            self._telemetry.io_timeouts.labels("attest").inc()
            self._count(provider, "err")
            return None, error
        except KmsError as error:
            self._count(provider, "err")
            return None, error
        self._count(provider, "err" if attestation is None else "ok")
        return attestation, None

    def _count(self, provider: Provider, result: str) -> None:
        self._telemetry.attest.labels(provider.name, result).inc()
        self._telemetry.ops.labels("attest", NO_ALG, result).inc()

    def _check_missing(self, provider: Provider, cause: Exception | None) -> None:
        if self.requirement == "required":
            self._telemetry.attest.labels(provider.name, "missing").inc()
            raise AttestationMissing("attestation is required and not there") from cause
