"""What a reload may change, and what it takes to change the rest (CONFIG.md §5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from kms.config_keys import KEYS, KEYS_BY_PATH

if TYPE_CHECKING:
    from kms.config_sections import KmsConfig


def value_at(config: KmsConfig, path: str) -> Any:
    """Give the value of a key by its dotted path in a file."""
    value: Any = config
    for step in path.split("."):
        names = {field.encode_name: field.name for field in msgspec.structs.fields(value)}
        value = getattr(value, names[step])
    return value


def changed_keys(former: KmsConfig, fresh: KmsConfig) -> list[str]:
    """List the keys whose values differ, in the order of the documents. Values never appear: some name secrets."""
    return [key.path for key in KEYS if value_at(former, key.path) != value_at(fresh, key.path)]


def needs_restart(changed: list[str]) -> list[str]:
    """Pick the keys that only a restart of the service takes over: sockets, TLS, backends, stores."""
    return [path for path in changed if not KEYS_BY_PATH[path].reloads]
