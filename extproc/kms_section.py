"""`[kms]` of the filter's TOML file: keys held by the key service, for those who say so (docs/guides/kms.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from extproc.config_fields import rule
from extproc.config_kinds import FilePath, Number, Parsed
from kms.client_wire import Endpoint
from kms.errors import BadRequest
from kms.kid import KeyName, parse_key_name
from kms.primitive import KEY_ALGORITHMS, TLOG_PURPOSE


def _url(text: str) -> None:
    if text:
        Endpoint.parse(text)


def _sealing_key(text: str) -> None:
    if text and not KEY_ALGORITHMS[_name(text).alg].is_kem:
        raise ValueError("must be the name of a key that wraps")


def _log_key(text: str) -> None:
    if text and _name(text).purpose != TLOG_PURPOSE:
        raise ValueError(f"must be the name of a key of purpose {TLOG_PURPOSE}")


def _name(text: str) -> KeyName:
    try:
        return parse_key_name(text)
    except BadRequest as error:
        raise ValueError("must be <tenant>/<purpose>/<alg>/<uuid>, without a version") from error


@dataclass(frozen=True, slots=True)
class KmsSection:
    """`[kms]`: with an empty `url` all keys are in sealed files, as they are with an empty name of a key."""

    url: str = field(default="", metadata=rule(Parsed(_url)))
    token_file: Path = field(default=Path("kms-token"), metadata=rule(FilePath()))
    ca_file: Path | None = field(default=None, metadata=rule(FilePath()))
    timeout_ms: int = field(default=2000, metadata=rule(Number(50, 30_000, "milliseconds")))
    sealing_key: str = field(default="", metadata=rule(Parsed(_sealing_key)))
    sealing_path: Path = field(default=Path("sealing-wrapped.json"), metadata=rule(FilePath()))
    log_key: str = field(default="", metadata=rule(Parsed(_log_key)))

    @property
    def seals(self) -> bool:
        """Whether the key service unwraps the keys that seal challenges."""
        return bool(self.url and self.sealing_key)

    @property
    def signs_log(self) -> bool:
        """Whether the key service signs the log's heads."""
        return bool(self.url and self.log_key)
