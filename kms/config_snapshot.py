"""A configuration handed to a process as it was in force, whatever its file says by now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from kms.config import LoadedConfig, load_config
from kms.config_check import check_config
from kms.config_sections import KmsConfig
from kms.config_values import ConfigError, DurationMs, decode_value, encode_value

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_snapshot(config: KmsConfig) -> int:
    """Put a configuration into memory of its own; give its descriptor, for a child to read once."""
    descriptor = os.memfd_create("kms-config")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(msgspec.json.encode(config, enc_hook=_encode))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_snapshot(descriptor: int, flags: Mapping[str, str], environ: Mapping[str, str]) -> LoadedConfig:
    """Take a configuration over, and tell whether the sources of today still say the same. Raises ConfigError."""
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read()
    try:
        config = msgspec.json.decode(raw, type=KmsConfig, dec_hook=decode_value)
    except msgspec.MsgspecError as error:
        raise ConfigError("--config-fd: holds no configuration") from error
    warnings = check_config(config, environ)
    try:
        current = load_config(flags, environ).config == config
    except ConfigError:
        current = False
    return LoadedConfig(config, None, (), tuple(warnings), current)


def _encode(value: Any) -> Any:
    return f"{int(value)}ms" if isinstance(value, DurationMs) else encode_value(value)
