"""`[policy]` of the filter's TOML file (docs/reference/filter.toml)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from extproc.config_fields import rule
from extproc.config_kinds import Choice, FilePath, Number, Text
from policy.bundle import COMMIT

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class PolicySection:
    """`[policy]`: the engine, and where its policy is. Without `module` the one that the filter brings is used.

    `commit`: the git commit that the policy is of; empty where nobody says.
    """

    engine: str = field(default="wasm", metadata=rule(Choice(("wasm", "opa"))))
    module: Path | None = field(default=None, metadata=rule(FilePath()))
    source: Path | None = field(default=None, metadata=rule(FilePath()))
    commit: str = field(
        default="",
        metadata=rule(Text(rf"(?:{COMMIT.pattern})?", "a git commit: 40 or 64 lower-case hex digits, or empty")),
    )
    opa_host: str = field(
        default="127.0.0.1", metadata=rule(Text(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}", "a host name or an IP address"))
    )
    opa_port: int = field(default=8181, metadata=rule(Number(1, 65_535, "TCP port")))
    timeout_ms: int = field(default=100, metadata=rule(Number(1, 10_000, "milliseconds")))
