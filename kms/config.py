"""The service's configuration: flags over environment over file over defaults (CONFIG.md §1), one frozen object.

`load_config` reads all sources, checks every value and every rule between values, and returns what is in force.
Whatever no rule knows is refused: a misspelt key never means its default.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.config_check import check_config
from kms.config_keys import KEYS
from kms.config_sections import KmsConfig
from kms.config_texts import CONFIG_ENV, lay_texts, texts_of_environment
from kms.config_values import ConfigError, decode_value, encode_value

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ConfigError", "KmsConfig", "LoadedConfig", "config_digest", "load_config"]

MAX_CONFIG_BYTES: Final = 1_048_576
DEFAULT_FILE: Final = Path("Config.toml")
DEFAULT_AUDIT_DIR: Final = Path("kms-audit")
CONFIG_ENV_ALIAS: Final = "RON_CONFIG"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """What is in force, the file it came from (None: no file) and what the operator should be told.

    `current`: False for a configuration of before, while its sources say another one that cannot be used.
    """

    config: KmsConfig
    path: Path | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    current: bool = True


def load_config(flags: Mapping[str, str], environ: Mapping[str, str]) -> LoadedConfig:
    """Read and check the configuration. `flags`: by flag name, `config` among them; a switch's text is `true`.

    Raises ConfigError when a source cannot be read, holds what is not known, or breaks a rule.
    """
    warnings: list[str] = []
    path = _find_file(flags.get("config"), environ, warnings)
    merged: dict[str, Any] = {} if path is None else _read_file(path)
    lay_texts(merged, texts_of_environment(environ, merged, warnings))
    lay_texts(merged, {key: flags[key.flag] for key in KEYS if key.flag and key.flag in flags})
    config = _resolve(_convert(merged))
    warnings += check_config(config, environ)
    notes = () if path is not None else (f"no {DEFAULT_FILE} here: built-in defaults are used",)
    return LoadedConfig(config, path, notes, tuple(warnings))


def config_digest(config: KmsConfig) -> str:
    """Hash the settings in force: SHA-256, hex, over their canonical JSON, the bus's URL left out."""
    document = msgspec.to_builtins(config, enc_hook=encode_value, builtin_types=(), str_keys=True)
    document.pop("bus", None)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _find_file(flag: str | None, environ: Mapping[str, str], warnings: list[str]) -> Path | None:
    named = flag or environ.get(CONFIG_ENV)
    if named is None and (named := environ.get(CONFIG_ENV_ALIAS)) is not None:
        warnings.append(f"{CONFIG_ENV_ALIAS} is an alias of {CONFIG_ENV}")
    if named is None:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    path = Path(named)
    if not path.is_absolute() and not path.exists():
        beside = Path(__file__).parent.parent / path
        path = beside if beside.exists() else path
    return path


def _read_file(path: Path) -> dict[str, Any]:
    """Read TOML, or JSON where the name says so."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        text = raw.decode()
        document = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is neither TOML nor JSON") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must hold a table")
    return _empty_texts_unset(document)


def _empty_texts_unset(table: dict[str, Any]) -> dict[str, Any]:
    """Drop keys whose text is empty: the documents write `""` for a path that is not set."""
    return {
        key: _empty_texts_unset(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value != "" or key == "grpc_addr"
    }


def _convert(merged: dict[str, Any]) -> KmsConfig:
    if merged.get("grpc_addr") == "":
        merged["grpc_addr"] = None
    try:
        return msgspec.convert(merged, KmsConfig, dec_hook=decode_value)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error).replace("`$.", "`")) from error


def _resolve(config: KmsConfig) -> KmsConfig:
    """Fill in what follows from other keys: the list of backends, and where the audit log is."""
    service, audit = config.service, config.audit
    if not service.multi_backends:
        service = msgspec.structs.replace(service, multi_backends=(service.backend,))
    if audit.dir is None and not service.amnesia:
        audit = msgspec.structs.replace(audit, dir=DEFAULT_AUDIT_DIR)
    return msgspec.structs.replace(config, service=service, audit=audit)
