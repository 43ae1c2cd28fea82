"""Sections of the configuration: checking a TOML table against a settings class.

A settings class is a frozen dataclass whose fields carry `metadata=rule(kind)`. Whatever it does not declare
is refused. Messages name the key and the rule, never the value, because a URL may hold a password.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extproc.config_kinds import Kind, SettingError, Url


class ConfigError(ValueError):
    """The configuration is refused; the message says `file: section.key: why`."""


def rule(kind: Kind) -> Mapping[str, Kind]:
    """Make the metadata of a settings field."""
    return {"kind": kind}


def kinds_of(section: type) -> dict[str, Kind]:
    """Give the kind of every setting of a settings class."""
    return {field.name: field.metadata["kind"] for field in dataclasses.fields(section)}


def read_values(section: type, table: object, where: str) -> dict[str, Any]:
    """Check a TOML table against a settings class. Gives every setting, defaults included, paths as written.

    `where`: `file: section`, the start of every message. Raises `ConfigError`.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: must be a table")
    kinds = kinds_of(section)
    for key in table:
        if key not in kinds:
            raise ConfigError(f"{where}.{printable(key)}: unknown key")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        if field.name not in table:
            if field.default is dataclasses.MISSING:
                raise ConfigError(f"{where}.{field.name}: is required")
            values[field.name] = field.default
            continue
        try:
            values[field.name] = kinds[field.name].check(table[field.name])
        except SettingError as error:
            raise ConfigError(f"{where}.{field.name}: {error}") from error
    return values


def resolve_paths(values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Resolve relative paths against `base`."""
    return {name: base / value if isinstance(value, Path) else value for name, value in values.items()}


def digestible(kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values as the digest sees them: URLs without credentials, paths as they were written."""
    return {
        name: Url.redact(value) if isinstance(kinds[name], Url) else str(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }


def printable(key: object, max_chars: int = 64) -> str:
    """Show a key from the file in a message: printable ASCII, cut."""
    return re.sub(r"[^!-~]", "?", str(key))[:max_chars]
