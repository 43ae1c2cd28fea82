"""Make the dispatcher and what it works with from the configuration; change on a reload what a reload may change."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kms.admission import Admission
from kms.attestations import Attestations
from kms.custody import Custody
from kms.dispatcher import Dispatcher, Settings
from kms.erasures import Erasures
from kms.errors import KmsError
from kms.keeper import Keeper
from kms.key_locks import KeyLocks
from kms.key_record import KeyState
from kms.operation_metrics import OperationMetrics
from kms.operation_table import BY_OP
from kms.operations.batch import SignBatch, VerifyBatch
from kms.operations.checkpoint import SignCheckpoint
from kms.operations.create_key import CreateKey
from kms.operations.derive import Derive
from kms.operations.get_key import GetKey
from kms.operations.key_state import ChangeKeyState, erase
from kms.operations.operation import Services
from kms.operations.rotate import Rotate
from kms.operations.sign import Sign
from kms.operations.unwrap import Unwrap
from kms.operations.verify import Verify
from kms.operations.wrap import Wrap
from kms.policy import StaticPolicy
from kms.policy_file import read_policy
from kms.public_keys import PublicKeys
from kms.rates import Rates
from kms.refusals import Refusals
from kms.work_pool import WorkPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kms.audit_event import AuditLog
    from kms.clock import Clock
    from kms.config_sections import KmsConfig
    from kms.dispatcher import Authorise
    from kms.key_store import KeyStore
    from kms.kid import KeyName
    from kms.messages import Message
    from kms.operations.operation import Operation
    from kms.policy import PolicyClient
    from kms.principal import CallContext
    from kms.providers.provider import Provider
    from kms.telemetry import Telemetry

OPS: Final = frozenset(BY_OP)


@dataclass(frozen=True, slots=True)
class Core:
    """The core of the service. `start` it on the event loop, once the audit log is open."""

    services: Services
    dispatcher: Dispatcher
    keeper: Keeper
    rates: Rates
    admissions: Mapping[str, Admission]
    metrics: OperationMetrics
    refusals: Refusals
    telemetry: Telemetry

    async def start(self) -> None:
        """Audit what a crash left unaudited, then keep watch.

        With an audit log that takes nothing the keeper tries again, and verification is served meanwhile.
        """
        for record in self.services.store.keys:
            self.metrics.key_set(record, new=True)
            if record.state is KeyState.DESTROYED:
                # A crash, or a provider that was away, may have left private halves behind.
                self.services.erasures.add(record.name)
        with contextlib.suppress(KmsError):
            await self.dispatcher.settle(at_start=True)
        self.keeper.start()

    async def stop(self, drain_s: float) -> int:
        """Drain, then end; give how many operations were left at the deadline. The stores stay open."""
        left = await self.dispatcher.drain(drain_s)
        if left:
            self.telemetry.tasks_aborted.labels("request").inc(left)
        await self.keeper.stop()
        await self.services.erasures.stop()
        self.services.pool.close()
        return left

    def reload(self, config: KmsConfig, policy: PolicyClient | None = None) -> None:
        """Take over what may change: rates, places, cache, the phase, the tenants' table.

        `policy`: what `open_policy` made of `config`, which may have been a thread's work; None: it is read here.
        Raises PolicyDenied when the table cannot be used: then nothing has changed.
        """
        policy = policy or open_policy(config)
        self.dispatcher.settings = settings_of(config, policy)
        self.rates.configure(rate_per_s=config.security.sign_rate_limit_rps, share_min=config.limits.tenant_share_min)
        self.admissions["sign"].configure(places=sign_places(config), share_min=config.limits.tenant_share_min)
        self.admissions["verify"].configure(
            places=config.limits.max_inflight_verify, share_min=config.limits.tenant_share_min
        )
        self.services.public_keys.configure(
            max_entries=config.limits.verify_cache_max, soft_ttl_ms=config.audit.verify_cache_ttl_ms
        )
        show_phase(config, self.telemetry)


def open_policy(config: KmsConfig) -> PolicyClient:
    """Read the tenants' table. Raises PolicyDenied."""
    return StaticPolicy(
        read_policy(config.policy.path, OPS),
        produce_hybrid=config.pq.produce_hybrid,
        verify_mode=config.pq.verify_mode,
        rollout_percent=config.pq.rollout_percent,
    )


def settings_of(config: KmsConfig, policy: PolicyClient) -> Settings:
    """Gather what a reload may change in the dispatcher."""
    return Settings(policy, config.deadlines.sign_ms / 1000, config.security.verify_with_read)


def sign_places(config: KmsConfig) -> int:
    """Give the places of operations that use private keys: the queue's and the cap's are the same places."""
    return min(config.queues.sign, config.limits.max_inflight_sign)


def show_phase(config: KmsConfig, telemetry: Telemetry) -> None:
    """Set the metrics of the migration's phase."""
    for mode in ("or", "and", "pq_only"):
        telemetry.pq_mode.labels(mode).set(mode == config.pq.verify_mode)
    telemetry.pq_rollout_percent.set(config.pq.rollout_percent)


def build_core(
    config: KmsConfig,
    *,
    store: KeyStore,
    authority: Provider,
    providers: Mapping[str, Provider],
    audit: AuditLog,
    authorise: Authorise,
    telemetry: Telemetry,
    clock: Clock,
    random_bytes: Callable[[int], bytes] = os.urandom,
    further: Callable[[Services], Mapping[str, Operation]] | None = None,
) -> Core:
    """Build the core. `further`: operations of other parts by name. Raises PolicyDenied."""
    custody = Custody(authority, providers, allow_sign_fallback=config.service.allow_sign_fallback, clock=clock)
    pool = WorkPool(config.service.worker_threads)
    public_keys = PublicKeys(
        custody,
        clock,
        telemetry,
        max_entries=config.limits.verify_cache_max,
        soft_ttl_ms=config.audit.verify_cache_ttl_ms,
    )
    telemetry.verify_cache_size.set_function(lambda: len(public_keys))
    for name in providers:
        telemetry.begin_backend(name)
    attestations = Attestations(
        config.security.attest_require,
        pool,
        telemetry,
        clock,
        random_bytes,
        deadline_s=config.deadlines.attest_ms / 1000,
    )
    services = Services(
        store,
        custody,
        public_keys,
        attestations,
        pool,
        KeyLocks(),
        clock,
        random_bytes,
        frozenset(config.service.allowed_algs),
        Erasures(clock),
    )
    share_min = config.limits.tenant_share_min
    rates = Rates(clock, rate_per_s=config.security.sign_rate_limit_rps, share_min=share_min)
    admissions = {
        "sign": Admission("sign", telemetry, places=sign_places(config), share_min=share_min),
        "verify": Admission("verify", telemetry, places=config.limits.max_inflight_verify, share_min=share_min),
    }
    metrics = OperationMetrics(telemetry)
    refusals = Refusals(audit, clock)
    operations = own_operations(services)

    def call_item(op: str, request: Message, context: CallContext) -> Awaitable[Message]:
        return dispatcher.call_item(op, request, context)

    operations["sign_batch"] = SignBatch(services, operations["sign"], call_item)
    operations["verify_batch"] = VerifyBatch(services, operations["verify"], call_item)
    if further is not None:
        operations.update(further(services))
    dispatcher = Dispatcher(
        {op: (operation, BY_OP[op].scope) for op, operation in operations.items()},
        services,
        audit,
        authorise,
        rates,
        admissions,
        metrics,
        refusals,
        settings_of(config, open_policy(config)),
    )
    show_phase(config, telemetry)

    def erase_left(name: KeyName) -> Awaitable[bool]:
        return erase(services, store.keys.find(name))

    keeper = Keeper(custody, dispatcher, refusals, telemetry, lambda: services.erasures.look(erase_left))
    return Core(services, dispatcher, keeper, rates, admissions, metrics, refusals, telemetry)


def own_operations(services: Services) -> dict[str, Operation]:
    """Make the operations of this part."""
    return {
        "sign": Sign(services),
        "verify": Verify(services),
        "checkpoint": SignCheckpoint(services),
        "wrap": Wrap(services),
        "unwrap": Unwrap(services),
        "derive": Derive(services),
        "create_key": CreateKey(services),
        "rotate": Rotate(services),
        "get_key": GetKey(services),
        "disable": ChangeKeyState(services, "disable", KeyState.DISABLED),
        "enable": ChangeKeyState(services, "enable", KeyState.ENABLED),
        "destroy": ChangeKeyState(services, "destroy", KeyState.DESTROYED),
    }
