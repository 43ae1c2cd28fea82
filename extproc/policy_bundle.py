"""The policy in force as bytes, whose SHA-256 receipts carry as `policy.digest`.

For the route table these are the ones that `policy.route_table` digests.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec

from extproc.config import load_config, read_config_file
from extproc.config_fields import ConfigError
from extproc.supervisor import ACCEPTED_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.config import FilterConfig


def policy_bundle(config: FilterConfig) -> bytes:
    """Write the route table that `config` states: each route's name with the subjects that it admits, sorted."""
    subjects = {route.name: sorted(set(route.subjects)) for route in config.routes}
    return msgspec.json.encode({name: subjects[name] for name in sorted(subjects)})


def request_algorithms(config: FilterConfig) -> tuple[str, ...]:
    """Name the signature algorithms that some route accepts, for a pack's bill of materials."""
    accepted = (name for route in config.routes if route.guard == "pch" for name in route.algorithms)
    return tuple(sorted(set(accepted)))


class PolicyInForce:
    """What the workers decide by: the configuration that their supervisor accepted last, read again when it changes.

    `config`: what counts while no supervisor has left one; `environ` overrides scalars of either. Any thread may call.
    """

    def __init__(self, config: FilterConfig, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._path = config.filter.socket_dir / ACCEPTED_FILE
        self._lock = threading.Lock()
        self._config = config  # Both owned by `_lock`.
        self._version: tuple[int, int] | None = None

    def config(self) -> FilterConfig:
        """Give the configuration in force; the last one known where the file cannot be read now."""
        with self._lock:
            try:
                status = self._path.stat()
                version = status.st_ino, status.st_mtime_ns
                if version != self._version:
                    content = read_config_file(self._path)
                    self._config = load_config(self._config.path, self._environ, content=content)
                    self._version = version
            except (OSError, ConfigError):
                # The supervisor loaded these bytes before it put them there; it may be gone, or not have begun.
                pass
            return self._config

    def bundle(self) -> bytes:
        """Write the policy bundle of the configuration in force."""
        return policy_bundle(self.config())
