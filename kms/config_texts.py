"""Settings from flags and environment variables: texts typed as in a file (CONFIG.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.config_keys import ENV_PREFIX, KEYS_BY_ALIAS, KEYS_BY_ENV, Key
from kms.config_sections import KmsConfig
from kms.config_values import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_TEXT_CHARS: Final = 4096
MAX_NUMBER_CHARS: Final = 16
CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"
_BOOLEANS: Final = {"1": True, "true": True, "0": False, "false": False}


def _defaults(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the path of every setting with its default."""
    for field in msgspec.structs.fields(value):
        inner, path = getattr(value, field.name), prefix + field.encode_name
        if isinstance(inner, msgspec.Struct):
            yield from _defaults(inner, f"{path}.")
        else:
            yield path, inner


_KINDS: Final[Mapping[str, type]] = {path: type(default) for path, default in _defaults(KmsConfig())}


def texts_of_environment(environ: Mapping[str, str], file: Mapping[str, Any], warnings: list[str]) -> dict[Key, str]:
    """Collect the variables that set keys; an alias is reported in `warnings` and gives way to the real name.

    `file`: what the file gave, in which the name of the PIN's variable may stand. Raises ConfigError for a variable
    with our prefix that is no key: a misspelt one must not mean its default.
    """
    found: dict[Key, str] = {}
    for alias, key in KEYS_BY_ALIAS.items():
        if alias in environ:
            if found.setdefault(key, environ[alias]) != environ[alias]:
                raise ConfigError(f"environment: {alias}: another alias of {key.env} says otherwise")
            warnings.append(f"environment: {alias} is an alias of {key.env}")
    known = {CONFIG_ENV, _pin_variable(environ, file)}
    for name, text in environ.items():
        if (key_of_name := KEYS_BY_ENV.get(name)) is not None:
            found[key_of_name] = text
        elif name.startswith(ENV_PREFIX) and name not in known:
            raise ConfigError(f"environment: {name[:64]}: unknown key")
    return found


def lay_texts(merged: dict[str, Any], texts: Mapping[Key, str]) -> None:
    """Lay texts over what lower sources gave. An empty text takes a key back to its default; raises ConfigError."""
    for key, text in texts.items():
        if len(text) > MAX_TEXT_CHARS:
            raise ConfigError(f"{key.path}: is too long")
        table = merged
        for step in key.steps[:-1]:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{step}: must be a table")
        if text == "" and key.path != "grpc_addr":
            table.pop(key.steps[-1], None)
        else:
            table[key.steps[-1]] = _typed(key, text)


def _typed(key: Key, text: str) -> Any:
    kind = _KINDS[key.path]
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"{key.path}: must be 1, 0, true or false")
        return _BOOLEANS[text.lower()]
    if kind is tuple:
        items = [item.strip() for item in text.split(",")]
        return [_number(key, int, item) for item in items] if key.path == "unix.allowed_uids" else items
    return _number(key, kind, text) if kind in (int, float) else text


def _number(key: Key, kind: type, text: str) -> Any:
    try:
        if len(text) > MAX_NUMBER_CHARS or not text.isascii() or "_" in text:
            raise ValueError
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{key.path}: must be a number") from error


def _pin_variable(environ: Mapping[str, str], file: Mapping[str, Any]) -> object:
    """Find the name of the variable that holds the token's PIN: it may carry our prefix."""
    backends = file.get("backends")
    pkcs11 = backends.get("pkcs11") if isinstance(backends, dict) else None
    written = pkcs11.get("pin_env") if isinstance(pkcs11, dict) else None
    return environ.get(ENV_PREFIX + "PKCS11_PIN_ENV", written)
