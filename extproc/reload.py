"""What a running filter cannot change by loading its configuration again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extproc.config import FilterConfig


def needs_restart(old: FilterConfig, new: FilterConfig) -> list[str]:
    """Name the settings that a running worker cannot change."""
    pairs = {
        "filter.socket_dir": (old.filter.socket_dir, new.filter.socket_dir),
        "filter.workers": (old.filter.workers, new.filter.workers),
        "filter.socket_mode": (old.filter.socket_mode, new.filter.socket_mode),
        "filter.breaker_share": (old.filter.breaker_share, new.filter.breaker_share),
        "filter.breaker_share_interval_ms": (
            old.filter.breaker_share_interval_ms,
            new.filter.breaker_share_interval_ms,
        ),
        "filter.max_age_s": (old.filter.max_age_s, new.filter.max_age_s),
        "nonce_store": (old.nonce_store, new.nonce_store),
        "receipts.url": (old.receipts.url, new.receipts.url),
        "receipts.max_refusal_receipts_per_s": (
            old.receipts.max_refusal_receipts_per_s,
            new.receipts.max_refusal_receipts_per_s,
        ),
        "log.dir": (old.log.dir, new.log.dir),
        "log.origin": (old.log.origin, new.log.origin),
        "plan.max_challenges_per_answer": (
            old.plan.max_challenges_per_answer,
            new.plan.max_challenges_per_answer,
        ),
        "plan.concurrency_window_s": (old.plan.concurrency_window_s, new.plan.concurrency_window_s),
        "keyring": (old.keyring, new.keyring),
        "sealing.path": (old.sealing.path, new.sealing.path),
        "kms": (old.kms, new.kms),
    }
    return [name for name, (before, after) in pairs.items() if before != after]
