"""Kinds of settings: what one value in the configuration may be, with its range and unit.

Messages say the rule and never the value, because a URL may hold a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TEXT_CHARS: Final = 4096
"""Characters in any text setting."""


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
    """One of `values`."""

    values: tuple[str, ...]

    def check(self, value: object) -> str:
        """Accept one of the values."""
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
        if parts.scheme not in self.schemes or parts.fragment or not port_is_a_number or not isinstance(value, str):
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
