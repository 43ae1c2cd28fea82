"""What the service judges by is in the audit log: when it starts, and whenever it changes."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from kms.audit_record import encode_event, parse_record
from kms.capability import Authority
from kms.config import config_digest
from kms.config_keys import KEYS
from kms.config_sections import KmsConfig, PqSection
from kms.dispatch_build import OPS
from kms.errors import Timeout
from kms.policy import PolicyClient, StaticPolicy
from kms.policy_file import EVERY_TENANT, read_policy
from kms.revocation import MAX_REVOCATIONS, Revocations, revoke
from kms.root_key import MAX_MINTING_AGE_S, RootKeys, create_root_file, rotate_root
from kms.rules_in_force import DROPPED_OP, REVOKED_OP, RULES_OP, RulesInForce
from tests.support.kms_core import HandClock, ListedAudit

NOW_S = 1_700_000_000
RELAXED = msgspec.structs.replace(KmsConfig(), pq=PqSection(verify_mode="or", produce_hybrid=False))


def policy_of(path: Path | None = None) -> StaticPolicy:
    table = EVERY_TENANT if path is None else read_policy(path, OPS)
    return StaticPolicy(table, produce_hybrid=True, verify_mode="and", rollout_percent=100)


@dataclass
class Stage:
    """Real files of roots and revocations, an audit log in a list."""

    folder: Path
    audit: ListedAudit = field(default_factory=ListedAudit)
    config: KmsConfig = field(default_factory=KmsConfig)
    policy: PolicyClient = field(default_factory=policy_of)

    def __post_init__(self) -> None:
        self.roots, self.revocations, self.hand = self.folder / "root.json", self.folder / "revoked.json", HandClock()
        self.first_root = create_root_file(self.roots, NOW_S, os.urandom).id
        self.rules = self.started()

    def started(self) -> RulesInForce:
        """What a service makes that starts now."""
        clock = self.hand.clock
        authority = Authority(RootKeys(self.roots, clock.monotonic_s), Revocations(self.revocations, clock.monotonic_s))
        return RulesInForce(self.audit, authority, lambda: self.config, lambda: self.policy)

    async def look(self) -> list[tuple[str, dict[str, str]]]:
        """Look two seconds later; give what was written."""
        self.hand.now_s += 2
        before = len(self.audit.events)
        await self.rules.look()
        assert all(each.result == "ok" and each.context is None for each in self.audit.events[before:])
        return [(each.op, dict(each.detail)) for each in self.audit.events[before:]]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_at_the_start_everything_in_force_is_said_once(stage: Stage) -> None:
    [(op, detail)] = await stage.look()
    assert op == RULES_OP
    assert detail == {
        "config_digest": config_digest(KmsConfig()),
        "policy_sha256": "",
        "backend": "file",
        "attest_require": "if-available",
        "pq_verify_mode": "and",
        "pq_produce_hybrid": "true",
        "pq_rollout_percent": "100",
        "roots": stage.first_root,
        "revocations": "0",
    }
    assert await stage.look() == [], "nothing changed"


async def test_a_reload_is_told_with_the_keys_that_changed(stage: Stage) -> None:
    await stage.look()
    stage.config = RELAXED
    [(op, detail)] = await stage.look()
    assert (op, detail["pq_verify_mode"], detail["pq_produce_hybrid"]) == (RULES_OP, "or", "false")
    assert detail["changed"] == "config_digest,pq_verify_mode,pq_produce_hybrid"
    assert detail["keys.00"] == "pq.produce_hybrid,pq.verify_mode"
    assert await stage.look() == []


async def test_another_tenants_table_is_told_by_its_files_hash(stage: Stage, tmp_path: Path) -> None:
    await stage.look()
    path = tmp_path / "tenants.toml"
    path.write_text('[tenants.core]\nverify_mode = "or"\n')
    stage.policy = policy_of(path)
    [(_, detail)] = await stage.look()
    assert detail["policy_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert detail["changed"] == "policy_sha256"
    assert "keys.00" not in detail


async def test_a_rotated_root_is_told(stage: Stage) -> None:
    await stage.look()
    second = rotate_root(stage.roots, NOW_S + 1, os.urandom)
    [(_, detail)] = await stage.look()
    assert detail["roots"] == f"{stage.first_root},{second.id}"
    assert detail["changed"] == "roots"
    assert second.key_b64.hex() not in str(detail)


async def test_what_is_revoked_is_named_and_so_is_what_was_let_go_of(stage: Stage) -> None:
    await stage.look()
    token, root = "ab" * 16, "cd" * 8
    revoke(stage.revocations, NOW_S, token_ids=(token,), root_ids=(root,))
    [revoked, (_, detail)] = await stage.look()
    assert revoked == (REVOKED_OP, {"ids.00": f"{token},{root}"})
    assert (detail["revocations"], detail["changed"]) == ("2", "revocations")
    stage.revocations.write_text('{"version":1,"tokens":{},"roots":{}}')
    [dropped, (_, detail)] = await stage.look()
    assert dropped == (DROPPED_OP, {"ids.00": f"{token},{root}"})
    assert detail["revocations"] == "0"
    assert await stage.look() == []


async def test_a_service_that_starts_names_what_was_revoked_while_it_was_away(stage: Stage) -> None:
    await stage.look()
    revoke(stage.revocations, NOW_S, token_ids=("ab" * 16,))
    stage.rules = stage.started()
    assert [op for op, _ in await stage.look()] == [REVOKED_OP, RULES_OP]


async def test_however_many_are_revoked_none_is_cut_off(stage: Stage) -> None:
    ids = tuple(f"{number:032x}" for number in range(MAX_REVOCATIONS))
    revoke(stage.revocations, NOW_S, token_ids=ids)
    await stage.look()
    named: list[str] = []
    for event in stage.audit.of(REVOKED_OP):
        record = parse_record(encode_event(event, 0, "", 0))
        assert record.detail == event.detail, "a record keeps all of it"
        named += [each for text in record.detail.values() for each in text.split(",")]
    assert tuple(sorted(named)) == ids


async def test_a_change_of_every_key_fits_into_one_record(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.look()
    paths = [key.path for key in KEYS]
    monkeypatch.setattr("kms.rules_in_force.changed_keys", lambda _former, _fresh: paths)
    stage.config = RELAXED
    await stage.look()
    event = stage.audit.of(RULES_OP)[-1]
    record = parse_record(encode_event(event, 0, "", 0))
    assert record.detail == event.detail
    told = [text for name, text in sorted(record.detail.items()) if re.match(r"keys\.\d\d\Z", name)]
    assert ",".join(told).split(",") == paths


async def test_what_the_log_does_not_take_is_written_when_it_does(stage: Stage) -> None:
    stage.audit.fault = "audit_disk"
    assert await stage.look() == []
    stage.audit.fault, stage.audit.error = None, Timeout("late")
    revoke(stage.revocations, NOW_S, token_ids=("ab" * 16,))
    assert await stage.look() == []
    stage.audit.error = None
    assert [op for op, _ in await stage.look()] == [REVOKED_OP, RULES_OP]


async def test_a_file_that_broke_changes_nothing_that_was_told(stage: Stage) -> None:
    revoke(stage.revocations, NOW_S, token_ids=("ab" * 16,))
    await stage.look()
    stage.revocations.write_text("{")
    assert await stage.look() == []


def test_a_root_that_mints_no_more_is_due_for_rotation(stage: Stage) -> None:
    authority = Authority(RootKeys(stage.roots, stage.hand.clock.monotonic_s), None)
    assert not authority.rotation_due(NOW_S + MAX_MINTING_AGE_S - 1)
    assert authority.rotation_due(NOW_S + MAX_MINTING_AGE_S)
    assert authority.revoked == frozenset()
