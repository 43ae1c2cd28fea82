from __future__ import annotations

from pathlib import Path

import pytest

from kms.dispatch_build import OPS
from kms.errors import PolicyDenied
from kms.policy import TenantRules
from kms.policy_file import EVERY_TENANT, MAX_POLICY_BYTES, read_policy


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [default]
        allow = false
        [tenants.core]
        verify_mode = "and"
        produce_hybrid = true
        in_rollout = true
        ops = ["sign", "verify"]
        purposes = ["audit"]
        algs = ["ed25519", "hybrid"]
        rate_per_s = 200
        [tenants.acme]
        """,
    )
    table = read_policy(path, OPS)
    assert table.default == TenantRules(allow=False)
    assert table.tenants["acme"] == TenantRules()
    assert table.tenants["core"] == TenantRules(
        produce_hybrid=True,
        verify_mode="and",
        in_rollout=True,
        ops=frozenset({"sign", "verify"}),
        purposes=frozenset({"audit"}),
        algs=frozenset({"ed25519", "hybrid"}),
        rate_per_s=200,
    )


def test_without_a_file_every_tenant_has_the_services_own_settings() -> None:
    assert read_policy(None, OPS) is EVERY_TENANT


def test_an_empty_file_allows_nobody(tmp_path: Path) -> None:
    table = read_policy(write(tmp_path, ""), OPS)
    assert (dict(table.tenants), table.default) == ({}, None)


@pytest.mark.parametrize(
    "text",
    [
        "[tenants.core]\nallowed = true",
        "[tenant.core]",
        "[tenants.core]\nverify_mode = 'maybe'",
        "[tenants.core]\nverify_mode = 'OR'",
        "[tenants.core]\nops = ['export']",
        "[default]\nops = ['export']",
        "[tenants.core]\nalgs = ['rsa']",
        "[tenants.core]\npurposes = ['A/B']",
        "[tenants.core]\nrate_per_s = 0",
        "[tenants.core]\nproduce_hybrid = 'yes'",
        "[tenants.'a/b']",
        "[tenants.Core]",
        "[tenants.core",
        "\ud800",
        "x" * (MAX_POLICY_BYTES + 1),
    ],
)
def test_a_file_that_is_not_understood_whole_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(PolicyDenied) as refused:
        read_policy(path, OPS)
    assert refused.value.reason == "policy_unavailable"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyDenied):
        read_policy(tmp_path / "policy.toml", OPS)
