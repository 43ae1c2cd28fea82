"""Everything that one serving process is made of, opened in order and closed in the reverse order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kms.audit_log import AuditSettings
from kms.audit_open import open_audit_log
from kms.capability import Authority, authorise
from kms.config_values import ConfigError
from kms.dispatch_build import Core, build_core
from kms.key_store import KeyStore
from kms.private_file import PrivateFileError
from kms.revocation import Revocations
from kms.root_key import RootKeys
from kms.spans import TracedAudit, traced_provider

if TYPE_CHECKING:
    from concurrent.futures import Future

    from kms.audit_log import ChainedAuditLog, RefusingAuditLog
    from kms.clock import Clock
    from kms.config_sections import KmsConfig
    from kms.providers.open_provider import ProviderSet
    from kms.spans import Tracing
    from kms.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """The parts of one process. `core` is started by the event loop that serves."""

    providers: ProviderSet
    store: KeyStore
    audit: ChainedAuditLog | RefusingAuditLog
    authority: Authority
    core: Core

    def close(self) -> None:
        """Close what was opened: the audit log first, which signs its last checkpoint. Blocks for a few seconds."""
        self.audit.close()
        self.store.close()
        self.providers.close()


def open_parts(
    config: KmsConfig,
    opening: Future[ProviderSet],
    telemetry: Telemetry,
    clock: Clock,
    tracing: Tracing | None = None,
) -> ServiceParts:
    """Open everything. Raises ConfigError for what an operator must mend, KmsError for what may pass.

    `opening`: gives the providers, or raises what opening them did. `tracing`: where spans of the backends and of the
    audit log go.
    """
    providers = opening.result()
    try:
        try:
            roots = RootKeys(config.security.root_key_file, clock.monotonic_s)
            revocations = Revocations(config.security.revocations_file, clock.monotonic_s)
        except PrivateFileError as error:
            raise ConfigError(f"security: {error}") from error
        _check_attestation(config, providers)
        store = KeyStore(None if config.service.amnesia else config.service.state_dir, clock)
    except BaseException:
        providers.close()
        raise
    audit = None
    try:
        store.start()
        audit = open_audit_log(
            config.audit.dir,
            providers.authority,
            telemetry=telemetry,
            state=store,
            counter=providers.rollback_counter,
            settings=_audit_settings(config),
            attested=config.audit.sealing == "attested",
            clock=clock,
        )
        by_name = providers.by_name
        if tracing is not None:
            by_name = {name: traced_provider(each, tracing) for name, each in by_name.items()}
        core = build_core(
            config,
            store=store,
            authority=by_name[providers.authority.name],
            providers=by_name,
            audit=audit if tracing is None else TracedAudit(audit, tracing),
            authorise=authorise,
            telemetry=telemetry,
            clock=clock,
        )
    except BaseException:
        if audit is not None:
            audit.close()
        store.close()
        providers.close()
        raise
    return ServiceParts(providers, store, audit, Authority(roots, revocations), core)


def _check_attestation(config: KmsConfig, providers: ProviderSet) -> None:
    """Refuse to start where attestation is required and the sign authority has none to give (CONFIG.md §4)."""
    if config.security.attest_require == "required" and providers.authority.attestation_class is None:
        raise ConfigError("security.attest_require: the backend has no attestation to give")


def _audit_settings(config: KmsConfig) -> AuditSettings:
    return AuditSettings(
        queue=config.queues.audit,
        append_s=config.deadlines.audit_append_ms / 1000,
        checkpoint_s=config.deadlines.checkpoint_ms / 1000,
        checkpoint_every=config.audit.checkpoint_interval_ops,
    )
