"""What the workers decide by, as the admin process sees it: the policy in force, and the algorithms accepted."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from extproc.accepted import ACCEPTED_FILE, read_accepted
from extproc.config import load_config
from extproc.config_fields import ConfigError
from extproc.policy_engine import read_policy_bundle
from policy.evaluator import PolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.config import FilterConfig
    from extproc.policy_engine import PolicyFiles

LOG: Final = logging.getLogger("signet.policy")
OPA_REREAD_S: Final = 5.0
"""How old what is known of an OPA server's policy may be."""


def request_algorithms(config: FilterConfig) -> tuple[str, ...]:
    """Name the signature algorithms that some route accepts, for a pack's bill of materials."""
    accepted = (name for route in config.routes if route.guard == "pch" for name in route.algorithms)
    return tuple(sorted(set(accepted)))


class PolicyInForce:
    """What the workers decide by: what their supervisor accepted last, read again when it changes.

    `config`: what counts while no supervisor has left any; `environ` overrides scalars of either. Any thread may call.
    """

    def __init__(self, config: FilterConfig, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._path = config.filter.socket_dir / ACCEPTED_FILE
        self._lock = threading.Lock()
        self._config = config  # These three owned by `_lock`.
        self._files: PolicyFiles | None = None
        self._version: tuple[int, int] | None = None
        self._bundle_lock = threading.Lock()
        self._bundle = b""  # These three owned by `_bundle_lock`.
        self._bundle_of: FilterConfig | None = None
        self._bundle_read_s = 0.0

    def config(self) -> FilterConfig:
        """Give the configuration in force; the last one known where the file cannot be read now."""
        return self._accepted()[0]

    def _accepted(self) -> tuple[FilterConfig, PolicyFiles | None]:
        with self._lock:
            try:
                status = self._path.stat()
                version = status.st_ino, status.st_mtime_ns
                if version != self._version:
                    accepted = read_accepted(self._path)
                    self._config = load_config(self._config.path, self._environ, content=accepted.content)
                    self._files, self._version = accepted.policy, version
            except (OSError, ConfigError):
                # The supervisor loaded these bytes before it put them there; it may be gone, or not have begun.
                pass
            return self._config, self._files

    def bundle(self) -> bytes:
        """Give the policy in force as one document; the last one known, or none, where it cannot be had now."""
        config, files = self._accepted()
        with self._bundle_lock:
            now_s = time.monotonic()
            # An OPA server may change its policy by itself; a compiled one changes with the configuration.
            aged = config.policy.engine == "opa" and now_s - self._bundle_read_s >= OPA_REREAD_S
            if config is not self._bundle_of or aged:
                self._bundle_of, self._bundle_read_s = config, now_s
                try:
                    self._bundle = read_policy_bundle(config, files)
                except PolicyError as error:
                    LOG.error("the policy in force could not be read: %s", error)
            return self._bundle
