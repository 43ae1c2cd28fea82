"""Where the filter's own keys are: in sealed files, or with the key service, as `[kms]` says."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, Protocol

from extproc.errors import ServerFault
from extproc.kms_sealing_keys import KmsSealingKeys
from extproc.sealing_keys import FileSealingKeys, SealingKeys, rotate
from extproc.wrapped_keys import rotate_wrapped
from kms.checkpoint_signer import KmsCheckpointSigner
from kms.client import Endpoint, KmsClient, TokenFile
from kms.errors import KmsError
from kms.kid import parse_key_name
from kms.private_file import PrivateFileError
from receipts.checkpoint_keys import FileCheckpointSigner, KeyFileError
from receipts.cli_places import KEYS_NAME, now_s, open_signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.config import FilterConfig
    from extproc.kms_section import KmsSection

LOG_KEYS_NAME: Final = "checkpoint-kms.json"
"""In the log's folder: the public halves of the keys with which the key service signs its heads."""


class KeptSealingKeys(SealingKeys, Protocol):
    """Sealing keys that somebody looks after."""

    @property
    def problem(self) -> str | None:
        """Say why the newest keys are not in force; None when they are."""
        ...

    def reload(self) -> None:
        """Look for a change now."""
        ...


def open_sealing_keys(config: FilterConfig, clock_ms: Callable[[], int]) -> KeptSealingKeys:
    """Open the keys that seal challenges. Raises ServerFault."""
    if not config.kms.seals:
        return FileSealingKeys(config.sealing.path, clock_ms, config.filter.max_age_s)
    kms = config.kms
    keys = KmsSealingKeys(kms.sealing_path, open_client(kms), kms.sealing_key, clock_ms, config.filter.max_age_s)
    keys.start()
    return keys


def degraded_text(keys: KeptSealingKeys) -> str | None:
    """Say that the key service is away while its keys here still serve; None when all is well."""
    return keys.degraded if isinstance(keys, KmsSealingKeys) else None


def rotate_sealing_key(config: FilterConfig, clock_ms: Callable[[], int]) -> int:
    """Begin a new epoch of sealing keys; return it. Raises ServerFault."""
    if not config.kms.seals:
        return rotate(config.sealing.path, clock_ms, config.filter.max_age_s)
    kms, client = config.kms, open_client(config.kms)
    try:
        return rotate_wrapped(kms.sealing_path, client, kms.sealing_key, clock_ms, config.filter.max_age_s)
    except KmsError as error:
        raise ServerFault(f"kms: {error.reason}: {error.message}") from error


def open_log_signer(config: FilterConfig, *, create: bool) -> FileCheckpointSigner | KmsCheckpointSigner:
    """Open what signs the log's heads; with `create`, begin with it where the log has no keys yet.

    Raises KeyFileError, also when the log's keys are held elsewhere than `[kms]` says; LogUnavailable.
    """
    folder, origin = config.log.dir, config.log.origin
    if not config.kms.signs_log:
        if (folder / LOG_KEYS_NAME).exists():
            raise KeyFileError("the log's keys are with the key service: set kms.url and kms.log_key")
        return open_signer(folder, origin, create=create)
    if (folder / KEYS_NAME).exists():
        raise KeyFileError("the log's keys are in a file of its own: begin another log for the key service's")
    path = folder / LOG_KEYS_NAME
    if not create and not path.exists():
        raise KeyFileError("the log has no keys yet")
    try:
        client = open_client(config.kms)
    except ServerFault as error:
        raise KeyFileError(str(error)) from error
    return KmsCheckpointSigner(path, client, parse_key_name(config.kms.log_key), origin, now_s)


@functools.cache
def open_client(section: KmsSection) -> KmsClient:
    """Make the process's client of the key service. Raises ServerFault."""
    try:
        token = TokenFile(section.token_file)
        endpoint = Endpoint.parse(section.url)
        return KmsClient(endpoint, token, ca_file=section.ca_file, timeout_s=section.timeout_ms / 1000)
    except (PrivateFileError, OSError, ValueError) as error:
        raise ServerFault(f"kms: {error}") from error
