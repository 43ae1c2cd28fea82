"""The rules in force: built whole from a configuration, and told apart by their digest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from extproc.config import load_config
from extproc.rules import Rules, rules_of
from pch.errors import NoRoute
from policy.evaluator import PolicyInput

CONFIG = """
[[route]]
name = "alice-only"
path = "/alice"
subjects = ["alice"]
[[route]]
name = "everyone"
path = "/all"
"""


def rules(folder: Path, text: str = CONFIG) -> Rules:
    path = folder / "filter.toml"
    path.write_text(text)
    return rules_of(load_config(path, {}))


def asked(route: str, subject: str) -> PolicyInput:
    return PolicyInput(
        time_ms=1,
        route=route,
        method="GET",
        authority="app.example",
        path="/",
        subject=subject,
        key_ids=("k",),
        algorithms=("ed25519",),
        binding="tls-exporter",
        mode="and",
        evidence=False,
        body_bytes=0,
    )


async def test_routes_and_policy_say_what_the_configuration_says(tmp_path: Path) -> None:
    made = rules(tmp_path)
    assert made.routes.match("app.example", "/alice", "GET").name == "alice-only"
    with pytest.raises(NoRoute):
        made.routes.match("app.example", "/bob", "GET")
    verdicts = [
        (await made.policy.evaluate(asked(route, subject))).allow
        for route, subject in (("alice-only", "alice"), ("alice-only", "bob"), ("everyone", "bob"))
    ]
    assert verdicts == [True, False, True]


def test_equal_rules_have_equal_digests_in_any_folder(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert rules(tmp_path).plan_digest == rules(other).plan_digest
    assert len(bytes.fromhex(rules(tmp_path).plan_digest)) == 32


@pytest.mark.parametrize(
    "changed",
    [
        CONFIG.replace("/alice", "/alicia"),
        CONFIG.replace('["alice"]', '["alice", "bob"]'),
        CONFIG + "max_body_bytes = 1\n",
        "[filter]\nmax_age_s = 61\n" + CONFIG,
        '[filter]\nrealm = "other"\n' + CONFIG,
    ],
)
def test_any_change_of_a_rule_changes_the_digest(tmp_path: Path, changed: str) -> None:
    assert rules(tmp_path).plan_digest != rules(tmp_path, changed).plan_digest


def test_rules_cannot_be_changed(tmp_path: Path) -> None:
    made = rules(tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.plan_digest = "0" * 64  # type: ignore[misc]
