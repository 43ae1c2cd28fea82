"""What the workers decide by, as the admin process sees it: the policy in force, and the algorithms accepted."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from extproc.config import load_config, read_config_file
from extproc.config_fields import ConfigError
from extproc.policy_engine import read_policy_bundle
from extproc.supervisor import ACCEPTED_FILE
from policy.evaluator import PolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.config import FilterConfig

LOG: Final = logging.getLogger("signet.policy")
OPA_REREAD_S: Final = 5.0
"""How old what is known of an OPA server's policy may be."""


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
        self._bundle_lock = threading.Lock()
        self._bundle = b""  # These three owned by `_bundle_lock`.
        self._bundle_of: FilterConfig | None = None
        self._bundle_read_s = 0.0

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
        """Give the policy in force as one document; the last one known, or none, where it cannot be had now."""
        config = self.config()
        with self._bundle_lock:
            now_s = time.monotonic()
            # An OPA server may change its policy by itself; a compiled one changes with the configuration.
            aged = config.policy.engine == "opa" and now_s - self._bundle_read_s >= OPA_REREAD_S
            if config is not self._bundle_of or aged:
                self._bundle_of, self._bundle_read_s = config, now_s
                try:
                    self._bundle = read_policy_bundle(config)
                except PolicyError as error:
                    LOG.error("the policy in force could not be read: %s", error)
            return self._bundle
