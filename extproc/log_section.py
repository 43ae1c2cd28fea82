"""`[log]` of the filter's TOML file (docs/reference/filter.toml)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from extproc.config_fields import rule
from extproc.config_kinds import FilePath, Number, Text


@dataclass(frozen=True, slots=True)
class LogSection:
    """`[log]`: the transparency log of the receipts; the admin server alone writes it."""

    dir: Path = field(default=Path("log"), metadata=rule(FilePath()))
    origin: str = field(
        default="signet.local/receipts",
        metadata=rule(
            Text(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", "1 to 128 of A-Z a-z 0-9 . _ : / -, a name for ever")
        ),
    )
    max_batch_receipts: int = field(default=8192, metadata=rule(Number(1, 1_000_000, "receipts")))
    max_batch_age_ms: int = field(default=500, metadata=rule(Number(0, 60_000, "milliseconds")))
    poll_interval_ms: int = field(default=50, metadata=rule(Number(1, 10_000, "milliseconds")))
    max_key_age_days: int = field(default=90, metadata=rule(Number(1, 90, "days")))
