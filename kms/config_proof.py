"""Try what a configuration names before a process that serves is ended for it (CONFIG.md §5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kms.clock import SYSTEM_CLOCK
from kms.config_values import ConfigError
from kms.errors import PolicyDenied
from kms.operation_table import BY_OP
from kms.policy_file import read_policy
from kms.private_file import PrivateFileError
from kms.revocation import Revocations
from kms.root_key import RootKeys
from kms.tls_context import load_context

if TYPE_CHECKING:
    from kms.config_sections import KmsConfig


def prove_openable(config: KmsConfig) -> None:
    """Open what needs no lock, and let go of it: TLS files, root keys, revocations, the policy. Raises ConfigError."""
    if config.tls.enabled:
        load_context(config.tls)
    try:
        RootKeys(config.security.root_key_file, SYSTEM_CLOCK.monotonic_s)
        Revocations(config.security.revocations_file, SYSTEM_CLOCK.monotonic_s)
    except PrivateFileError as error:
        raise ConfigError(f"security: {error}") from error
    try:
        read_policy(config.policy.path, frozenset(BY_OP))
    except PolicyDenied as error:
        raise ConfigError(f"policy.path: {error.message}") from error
