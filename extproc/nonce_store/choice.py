"""Which nonce store the configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.config import FilterConfig
    from extproc.nonce_store import NonceStore


def open_nonce_store(config: FilterConfig, clock_ms: Callable[[], int]) -> NonceStore:
    """Build the store of `[nonce_store]`; `start` makes it ready. Loads the chosen store's libraries alone."""
    section, max_age_s = config.nonce_store, config.filter.max_age_s
    timeout_s = section.timeout_ms / 1000
    if section.kind == "memory":
        from extproc.nonce_store.memory import MemoryNonceStore

        return MemoryNonceStore(max_age_s=max_age_s, clock_ms=clock_ms, max_entries=section.max_entries)
    if section.kind == "sqlite":
        from extproc.nonce_store.sqlite import SqliteNonceStore

        return SqliteNonceStore(
            section.path,
            max_age_s=max_age_s,
            clock_ms=clock_ms,
            timeout_s=timeout_s,
            max_pending=section.max_pending,
        )
    from extproc.nonce_store.redis import RedisNonceStore

    return RedisNonceStore(
        section.url,
        max_age_s=max_age_s,
        clock_ms=clock_ms,
        timeout_s=timeout_s,
        max_pending=section.max_pending,
    )
