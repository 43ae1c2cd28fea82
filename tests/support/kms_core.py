"""A whole core of the key service in memory: real store, provider and capabilities' check; clocks that tests set."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kms.audit_event import AuditEntry, AuditEvent
from kms.capability import authorise
from kms.clock import Clock
from kms.config_sections import KmsConfig
from kms.dispatch_build import Core, build_core
from kms.errors import KmsError
from kms.key_store import KeyStore
from kms.messages import CreateKeyRequest, KidSelector, Message, SignRequest, VerifyRequest
from kms.operation_table import BY_OP
from kms.principal import CallContext, Principal, Scope
from kms.providers.inmem import InMemoryProvider
from kms.providers.provider import Provider
from kms.telemetry import Telemetry

DIGEST = "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"
ALL_ALGS = ("ed25519", "ml-dsa", "x25519", "ml-kem", "ecdsa-p256-sha256", "ml-dsa-44", "ml-dsa-87", "hkdf")


class HandClock:
    """Clocks that only a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: 1_700_000_000_000 + int(self.now_s * 1000), lambda: self.now_s)


@dataclass
class ListedAudit:
    """An audit log in a list. A test says what it refuses, or holds appends back."""

    events: list[AuditEvent] = field(default_factory=list)
    fault: str | None = None
    error: KmsError | None = None
    gate: asyncio.Event | None = None

    async def append(self, event: AuditEvent) -> AuditEntry:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.events.append(event)
        return AuditEntry(len(self.events) - 1, "00")

    def writable(self) -> str | None:
        return self.fault

    def of(self, op: str) -> list[AuditEvent]:
        return [event for event in self.events if event.op == op]


def principal(
    *tenants: str, scopes: frozenset[Scope] = frozenset(Scope), keys: frozenset[str] = frozenset(), **rest: Any
) -> Principal:
    fields: dict[str, Any] = {"algs": frozenset(), "paths": frozenset(), "rate_per_s": None, **rest}
    token_id = fields.pop("token_id", "t-" + "-".join(tenants or ("core",)))
    return Principal(token_id, "r1", frozenset(tenants or {"core"}), scopes, keys, expires_at_s=2**40, **fields)


@dataclass
class Bench:
    """The core and everything that a test looks at or sets."""

    core: Core
    audit: ListedAudit
    hand: HandClock
    provider: Provider
    store: KeyStore
    telemetry: Telemetry

    async def call(self, op: str, request: Message, *tenants: str, who: Principal | None = None) -> Any:
        caller = who if who is not None else principal(*tenants)
        path = BY_OP[op].path_for(getattr(request, "kid", ""))
        context = CallContext(caller, "corr", "req", path, "peer", "test")
        return await self.core.dispatcher.call(op, request, context)

    async def create(self, alg: str = "ed25519", tenant: str = "core", purpose: str = "audit", **more: Any) -> str:
        request = CreateKeyRequest(tenant=tenant, purpose=purpose, alg=alg, **more)  # type: ignore[arg-type]
        return str((await self.call("create_key", request, tenant)).kid)

    async def sign(self, kid: str, digest: str = DIGEST, **more: Any) -> Any:
        request = SignRequest(kid_or_set=KidSelector(kid=kid), payload_b3=digest, **more)
        return await self.call("sign", request, kid.partition("/")[0])

    async def verify(self, sigs: Any, kid: str | None = None, digest: str = DIGEST, **more: Any) -> Any:
        selector = None if kid is None else KidSelector(kid=kid)
        tenant = more.pop("tenant", "core" if kid is None else kid.partition("/")[0])
        request = VerifyRequest(payload_b3=digest, sigs=sigs, kid_or_set=selector, **more)
        return await self.call("verify", request, tenant)

    def metric(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0


def config_of(**sections: dict[str, Any]) -> KmsConfig:
    """A configuration in memory with every algorithm and without hybrid signatures; `sections` overlay it."""
    merged: dict[str, dict[str, Any]] = {
        "service": {"backend": "inmem", "amnesia": True, "allowed_algs": ALL_ALGS, "multi_backends": ("inmem",)},
        "pq": {"produce_hybrid": False, "verify_mode": "or"},
        "security": {"sign_rate_limit_rps": 100_000},
    }
    for name, values in sections.items():
        merged[name] = {**merged.get(name, {}), **values}
    config = KmsConfig()
    for name, values in merged.items():
        section = msgspec.structs.replace(getattr(config, name), **values)
        config = msgspec.structs.replace(config, **{name: section})
    return config


def seeded_bytes(seed: int = 42) -> Callable[[int], bytes]:
    source = random.Random(seed)
    return source.randbytes


@contextlib.asynccontextmanager
async def running_core(
    *,
    provider: Provider | None = None,
    others: tuple[Provider, ...] = (),
    directory: Path | None = None,
    log: ListedAudit | None = None,
    hand: HandClock | None = None,
    started: bool = False,
    **sections: dict[str, Any],
) -> AsyncIterator[Bench]:
    """A core without its keeper, unless `started`: tests beat by themselves."""
    hand = hand or HandClock()
    audit = log or ListedAudit()
    authority = provider or InMemoryProvider()
    telemetry = Telemetry()
    store = KeyStore(directory, hand.clock)
    store.start()
    core = build_core(
        config_of(**sections),
        store=store,
        authority=authority,
        providers={each.name: each for each in (authority, *others)},
        audit=audit,
        authorise=authorise,
        telemetry=telemetry,
        clock=hand.clock,
        random_bytes=seeded_bytes(),
    )
    try:
        if started:
            await core.start()
        yield Bench(core, audit, hand, authority, store, telemetry)
    finally:
        await core.stop(1.0)
        await asyncio.to_thread(store.close)
