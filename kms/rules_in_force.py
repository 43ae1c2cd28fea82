"""What the service judges by, in the audit log: its settings, the tenants' table, the roots, what is revoked (K-G5).

One record says all of it at the start and whenever a part of it changed; others name each capability that was taken
back. Minting is told by no record: it needs the root key and no service. Each record of an operation names the token
and the root that it came by (docs/decisions/0016-capabilities.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kms.audit_log import service_event
from kms.config import config_digest
from kms.config_reload import changed_keys
from kms.errors import KmsError
from kms.policy import StaticPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from kms.audit_event import AuditLog
    from kms.capability import Authority
    from kms.config_sections import KmsConfig
    from kms.policy import PolicyClient

RULES_OP: Final = "rules_in_force"
REVOKED_OP: Final = "capabilities_revoked"
DROPPED_OP: Final = "revocations_dropped"
"""A revocation that is in the file no more: `revoke` lets go of those that nothing can verify under any more."""
TEXTS_A_MEMBER: Final = 6
MEMBERS_A_RECORD: Final = 16
"""A member's text is cut after 256 characters, and a record has at most 32 members; ids have 32, keys up to 40."""


class RulesInForce:
    """Looks at what is in force and writes what changed of it. One event loop owns it."""

    def __init__(
        self,
        audit: AuditLog,
        authority: Authority,
        config: Callable[[], KmsConfig],
        policy: Callable[[], PolicyClient],
    ) -> None:
        self._audit, self._authority, self._config, self._policy = audit, authority, config, policy
        self._told: Mapping[str, str] = {}
        self._told_config: KmsConfig | None = None
        self._told_revoked: frozenset[str] = frozenset()

    async def look(self) -> None:
        """Write what is not written yet; what the log does not take now is tried at the next look."""
        if self._audit.writable() is not None:
            return
        try:
            await self._tell_revocations(self._authority.revoked)
            await self._tell_rules()
        except KmsError:
            return

    async def _tell_revocations(self, revoked: frozenset[str]) -> None:
        if revoked == self._told_revoked:
            return
        for ids in _lots(revoked - self._told_revoked):
            await self._audit.append(service_event(REVOKED_OP, _members("ids", ids)))
            self._told_revoked |= frozenset(ids)
        for ids in _lots(self._told_revoked - revoked):
            await self._audit.append(service_event(DROPPED_OP, _members("ids", ids)))
            self._told_revoked -= frozenset(ids)

    async def _tell_rules(self) -> None:
        config, former = self._config(), self._told_config
        # The digest of a configuration is only made anew when it is another one.
        digest = self._told["config_digest"] if config is former else config_digest(config)
        facts = self._facts(config, digest)
        if facts == self._told:
            return
        detail = dict(facts)
        if former is not None:
            detail["changed"] = ",".join(name for name, text in facts.items() if self._told[name] != text)
            detail |= _members("keys", changed_keys(former, config))
        await self._audit.append(service_event(RULES_OP, detail))
        self._told, self._told_config = facts, config

    def _facts(self, config: KmsConfig, digest: str) -> dict[str, str]:
        policy = self._policy()
        return {
            "config_digest": digest,
            "policy_sha256": policy.file_sha256 if isinstance(policy, StaticPolicy) else "",
            "backend": config.service.backend,
            "attest_require": config.security.attest_require,
            "pq_verify_mode": config.pq.verify_mode,
            "pq_produce_hybrid": str(config.pq.produce_hybrid).lower(),
            "pq_rollout_percent": str(config.pq.rollout_percent),
            "roots": ",".join(self._authority.roots),
            "revocations": str(len(self._told_revoked)),
        }


def _lots(ids: Collection[str]) -> Iterator[list[str]]:
    """Give the ids in their order, as many at a time as a record has room for."""
    ordered, room = sorted(ids), TEXTS_A_MEMBER * MEMBERS_A_RECORD
    for at in range(0, len(ordered), room):
        yield ordered[at : at + room]


def _members(name: str, texts: list[str]) -> dict[str, str]:
    """Write a list as members of a record's details, none of them longer than is kept."""
    return {
        f"{name}.{at // TEXTS_A_MEMBER:02}": ",".join(texts[at : at + TEXTS_A_MEMBER])
        for at in range(0, len(texts), TEXTS_A_MEMBER)
    }
