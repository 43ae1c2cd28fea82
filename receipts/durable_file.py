"""Small files that are on disk, whole, once a call returns: the log's notes, tiles and keys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

FILE_MODE: Final = 0o600
UNFINISHED: Final = ".tmp"
"""End of the name under which a file is written before it takes the place of another."""


def write_synced(path: Path, data: bytes) -> None:
    """Write the file `path`, over what lies there but through no link, and sync it. Raises OSError.

    Its name is durable only when the folder is synced as well.
    """
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, FILE_MODE), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_unsynced(path: Path, data: bytes) -> None:
    """Replace the file `path` by one that is synced; the folder, and so the change, is not yet. Raises OSError.

    For one writer at a time, who writes over what a crash left beside it.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    write_synced(unfinished, data)
    unfinished.replace(path)


def replace_synced(path: Path, data: bytes) -> None:
    """Replace the file `path` as `replace_unsynced` does, durably. Raises OSError."""
    replace_unsynced(path, data)
    sync(path.parent)


def sync(path: Path) -> None:
    """Sync a folder, and with it the names in it, or a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
