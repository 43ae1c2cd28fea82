"""What a value in the configuration may be: kinds of settings with their ranges and units.

A settings class is a frozen dataclass whose fields carry `metadata=rule(kind)`. `read_values` checks a
TOML table against one and refuses whatever the class does not declare. Messages name the key and the rule,
never the value, because a URL may hold a password.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

MAX_TEXT_CHARS: Final = 4096
"""Characters in any text setting."""


class ConfigError(ValueError):
    """The configuration is refused; the message says `file: section.key: why`."""


class SettingError(ValueError):
    """One value is refused; the message is the rule it breaks."""


class Kind(Protocol):
    """The rule for one setting. `check` gives the accepted value or raises `SettingError`."""

    def check(self, value: object) -> object:
        """Accept a value from TOML."""
        ...

    def from_text(self, text: str) -> object:
        """Turn the text of an environment variable into what TOML would have given."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """An integer from `minimum` to `maximum`, both allowed, in `unit`."""

    minimum: int
    maximum: int
    unit: str

    def check(self, value: object) -> int:
        """Accept an integer in range; a boolean is none."""
        if not isinstance(value, int) or isinstance(value, bool) or not self.minimum <= value <= self.maximum:
            raise SettingError(f"must be an integer from {self.minimum} to {self.maximum} ({self.unit})")
        return value

    def from_text(self, text: str) -> object:
        """Read plain decimal digits."""
        return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else text


@dataclass(frozen=True, slots=True)
class Text:
    """Text that matches `pattern` whole; `expected` says so in words."""

    pattern: str
    expected: str

    def check(self, value: object) -> str:
        """Accept matching text."""
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or not re.fullmatch(self.pattern, value):
            raise SettingError(f"must be {self.expected}")
        return value

    def from_text(self, text: str) -> object:
        """Take the text as it is."""
        return text


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `values`. `later`: values the protocol knows and this version does not enforce yet."""

    values: tuple[str, ...]
    later: tuple[str, ...] = ()

    def check(self, value: object) -> str:
        """Accept one of the values."""
        if isinstance(value, str) and value in self.later:
            raise SettingError(f'"{value}" is not available in this version')
        if not isinstance(value, str) or value not in self.values:
            raise SettingError("must be one of " + ", ".join(f'"{each}"' for each in self.values))
        return value

    def from_text(self, text: str) -> object:
        """Take the text as it is."""
        return text


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def check(self, value: object) -> bool:
        """Accept a boolean."""
        if not isinstance(value, bool):
            raise SettingError("must be true or false")
        return value

    def from_text(self, text: str) -> object:
        """Read `true` or `false`."""
        return {"true": True, "false": False}.get(text, text)


@dataclass(frozen=True, slots=True)
class FileMode:
    """One of the permission `modes`, an octal integer."""

    modes: tuple[int, ...]

    def check(self, value: object) -> int:
        """Accept one of the modes."""
        if not isinstance(value, int) or isinstance(value, bool) or value not in self.modes:
            raise SettingError("must be one of " + ", ".join(f"0o{mode:o}" for mode in self.modes))
        return value

    def from_text(self, text: str) -> object:
        """Read octal digits after `0o`."""
        return int(text, 8) if re.fullmatch(r"0o[0-7]{1,4}", text) else text


@dataclass(frozen=True, slots=True)
class FilePath:
    """A file or folder; relative ones are relative to the folder of the TOML file."""

    def check(self, value: object) -> Path:
        """Accept non-empty text without NUL."""
        if not isinstance(value, str) or not value or "\0" in value or len(value) > MAX_TEXT_CHARS:
            raise SettingError("must be a path")
        return Path(value)

    def from_text(self, text: str) -> object:
        """Take the text as it is."""
        return text


@dataclass(frozen=True, slots=True)
class Url:
    """A URL with one of `schemes`; it may hold credentials, so it is neither shown nor digested whole."""

    schemes: tuple[str, ...]

    def check(self, value: object) -> str:
        """Accept a URL with a known scheme and no fragment."""
        expected = " or ".join(f"{scheme}:" for scheme in self.schemes)
        try:
            parts = urlsplit(value if isinstance(value, str) else "")
            port_is_a_number = parts.port is None or parts.port > 0
        except ValueError:
            # Not chained: the parser's message quotes the value.
            raise SettingError(f"must be a URL that starts with {expected}") from None
        if (
            parts.scheme not in self.schemes
            or parts.fragment
            or not port_is_a_number
            or not isinstance(value, str)
        ):
            raise SettingError(f"must be a URL that starts with {expected}")
        if len(value) > MAX_TEXT_CHARS or not (parts.hostname or parts.path):
            raise SettingError(f"must be a URL that starts with {expected}")
        return value

    def from_text(self, text: str) -> object:
        """Take the text as it is."""
        return text

    @staticmethod
    def redact(value: str) -> str:
        """Leave out userinfo and query, where credentials live."""
        parts = urlsplit(value)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


@dataclass(frozen=True, slots=True)
class Items:
    """A list of `minimum` to `maximum` distinct texts; `item` raises ValueError for a bad one."""

    item: Callable[[str], object]
    minimum: int
    maximum: int

    def check(self, value: object) -> tuple[str, ...]:
        """Accept the list; its order is kept."""
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise SettingError("must be a list of texts")
        if not self.minimum <= len(value) <= self.maximum:
            raise SettingError(f"must have {self.minimum} to {self.maximum} members")
        if len(set(value)) != len(value):
            raise SettingError("has a duplicate member")
        for number, each in enumerate(value, 1):
            try:
                self.item(each)
            except ValueError as error:
                raise SettingError(f"member {number} {error}") from error
        return tuple(value)

    def from_text(self, text: str) -> object:
        """Lists have no environment form."""
        raise SettingError("cannot be set by an environment variable")


@dataclass(frozen=True, slots=True)
class Parsed:
    """Text that `parse` accepts (raises ValueError otherwise)."""

    parse: Callable[[str], object]

    def check(self, value: object) -> str:
        """Accept the text."""
        if not isinstance(value, str):
            raise SettingError("must be text")
        try:
            self.parse(value)
        except ValueError as error:
            raise SettingError(str(error)) from error
        return value

    def from_text(self, text: str) -> object:
        """Take the text as it is."""
        return text


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
        name: Url.redact(value)
        if isinstance(kinds[name], Url)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in values.items()
    }


def printable(key: object, max_chars: int = 64) -> str:
    """Show a key from the file in a message: printable ASCII, cut."""
    return re.sub(r"[^!-~]", "?", str(key))[:max_chars]
