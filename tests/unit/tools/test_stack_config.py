"""The configuration of a local stack: it names the commit of the policy only where that is so."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tools import stack_config
from tools.stack_config import Ports, StackSettings, filter_toml, policy_commit


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a repository with a commit of the policy, and a later one of something else."""
    folder = tmp_path / "checkout"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy/shield.rego").write_text("package one\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "policy")
    (folder / "other").write_text("x")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "other")
    monkeypatch.setattr(stack_config, "REPOSITORY", folder)
    return folder


def section(folder: Path, **changes: Any) -> object:
    return tomllib.loads(filter_toml(StackSettings(folder / "var", Ports(), **changes))).get("policy")


def test_the_policys_own_commit_is_named(checkout: Path) -> None:
    assert policy_commit() == git(checkout, "rev-parse", "HEAD~1")
    assert section(checkout) == {"commit": policy_commit()}


def test_a_policy_from_elsewhere_or_changed_since_is_of_no_commit(checkout: Path) -> None:
    assert section(checkout, toml={"policy": {"module": "own.wasm"}}) == {"module": "own.wasm"}
    (checkout / "policy/shield.rego").write_text("package two\n")
    assert policy_commit() is None
    assert section(checkout) is None


def test_without_git_there_is_no_commit(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_config, "REPOSITORY", tmp_path / "absent")
    assert policy_commit() is None
    monkeypatch.setattr(stack_config, "REPOSITORY", checkout)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert policy_commit() is None
