"""What a supervisor accepted last, kept beside its sockets: the configuration, and the policy files that it named.

Workers that start again or load again take both from here, and so does the admin process: a policy file that was
changed since decides nothing before a reload accepts it. The policy's file says of which configuration it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from extproc.config import ConfigError, load_config, read_config_file
from extproc.policy_engine import MAX_SOURCE_BYTES, PolicyFiles, read_policy_files
from extproc.rules import rules_of
from policy.evaluator import PolicyError
from policy.wasm import MAX_WASM_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from extproc.rules import Rules

ACCEPTED_FILE: Final = "accepted.toml"
POLICY_FILE: Final = "accepted.policy"
PRIVATE_MODE: Final = 0o600
MAX_POLICY_BYTES: Final = 2 * (MAX_WASM_BYTES + MAX_SOURCE_BYTES)
"""Of the policy's file: base64 and JSON's escapes make more of what they hold."""
READ_TRIES: Final = 5
READ_PAUSE_S: Final = 0.02
"""The two files are replaced one after the other: how often a reader that comes between looks, and how long apart."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """`content`: the bytes of the TOML file. `policy`: what was compiled; None where an OPA server has the policy."""

    content: bytes
    policy: PolicyFiles | None

    def rules(self, path: Path, environ: Mapping[str, str]) -> Rules:
        """Build the rules that this states, as of the TOML file `path`. Raises ConfigError."""
        return rules_of(load_config(path, environ, content=self.content), self.policy)


class _KeptPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`content_sha256`: of the configuration that this was accepted with, lower-case hex."""

    content_sha256: str
    files: PolicyFiles | None


def take(path: Path, environ: Mapping[str, str]) -> tuple[Accepted, Rules]:
    """Read the TOML file and the policy files that it names, once, and build the rules. Raises ConfigError."""
    content = read_config_file(path)
    config = load_config(path, environ, content=content)
    try:
        accepted = Accepted(content, read_policy_files(config))
    except PolicyError as error:
        raise ConfigError(f"{path}: policy: {error}") from error
    return accepted, rules_of(config, accepted.policy)


def read_accepted(path: Path) -> Accepted:
    """Read what a supervisor keeps as `path` and beside it. Raises ConfigError when it is not whole."""
    policy_path = path.with_name(POLICY_FILE)
    for attempt in range(READ_TRIES):
        if attempt:
            time.sleep(READ_PAUSE_S)
        content = read_config_file(path)
        kept = _read_policy(policy_path)
        if kept is not None and kept.content_sha256 == hashlib.sha256(content).hexdigest():
            return Accepted(content, kept.files)
    raise ConfigError(f"{policy_path}: is not the policy of {path.name}")


def _read_policy(path: Path) -> _KeptPolicy | None:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_POLICY_BYTES + 1)
        return msgspec.json.decode(raw, type=_KeptPolicy) if len(raw) <= MAX_POLICY_BYTES else None
    except (OSError, msgspec.DecodeError):
        return None


class AcceptedFiles:
    """The files of one supervisor in `folder`, which is its own. Single-threaded."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ACCEPTED_FILE
        self._policy_path = folder / POLICY_FILE
        self._kept: dict[Path, tuple[int, int, int]] = {}

    def keep(self, accepted: Accepted) -> None:
        """Put `accepted` in the place of what was accepted before. Raises OSError, and then nothing is replaced."""
        kept = _KeptPolicy(hashlib.sha256(accepted.content).hexdigest(), accepted.policy)
        files = {self._policy_path: msgspec.json.encode(kept), self.path: accepted.content}
        written = {path: _write(_temporary(path), content) for path, content in files.items()}
        for path in files:
            _temporary(path).replace(path)
        self._kept = written

    def drop(self) -> None:
        """Remove what this supervisor kept, and never what one that took over meanwhile did."""
        for path, identity in self._kept.items():
            with contextlib.suppress(FileNotFoundError):
                if _identity(path.stat()) == identity:
                    path.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def _write(path: Path, content: bytes) -> tuple[int, int, int]:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        return _identity(os.fstat(file.fileno()))


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """Tell one file from another under the same name; the number of one that is gone may come again, its time not."""
    return status.st_dev, status.st_ino, status.st_mtime_ns
