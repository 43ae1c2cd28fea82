"""Listening sockets: bound once, by whoever outlives the service, and handed down as descriptors."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kms.config_values import ConfigError, SocketAddress
from kms.private_file import PrivateFileError, check_private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kms.config_sections import KmsConfig

BACKLOG: Final = 1024
SOCKET_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
_PROBE_TIMEOUT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets by role. gRPC binds its own: its library takes no descriptor of another."""

    http: socket.socket
    metrics: socket.socket
    unix: socket.socket | None

    def roles(self) -> Iterator[tuple[str, socket.socket]]:
        """Give each role with its socket."""
        yield "http", self.http
        yield "metrics", self.metrics
        if self.unix is not None:
            yield "unix", self.unix

    def describe(self) -> str:
        """Write roles and descriptors as `adopt` reads them."""
        return ",".join(f"{role}={each.fileno()}" for role, each in self.roles())

    def addresses(self) -> dict[str, str]:
        """Tell where each role listens: with the port that was chosen where the configuration says 0."""
        return {role: _address_of(each.getsockname()) for role, each in self.roles()}

    def descriptors(self) -> tuple[int, ...]:
        """Give the descriptors that a child must inherit."""
        return tuple(each.fileno() for _, each in self.roles())

    def close(self) -> None:
        """Close every socket here; a child keeps its own."""
        for _, each in self.roles():
            each.close()


def bind_all(config: KmsConfig) -> Listeners:
    """Bind and listen on every address. Raises ConfigError when one is taken or not ours."""
    opened: list[socket.socket] = []
    try:
        for name, address in (("bind_addr", config.bind_addr), ("metrics_addr", config.metrics_addr)):
            opened.append(_bind(name, address))
        if config.unix.path is not None:
            opened.append(bind_unix(config.unix.path))
    except ConfigError:
        for each in opened:
            each.close()
        raise
    return Listeners(opened[0], opened[1], opened[2] if len(opened) > 2 else None)


def rebind(former: Listeners, was: KmsConfig, fresh: KmsConfig) -> Listeners:
    """Give the sockets of a changed configuration: those whose address stayed are kept, the others bound anew.

    The new ones are bound before any old one is closed. Raises ConfigError; the former sockets then still serve.
    """
    http, metrics, unix = former.http, former.metrics, former.unix
    opened: list[socket.socket] = []
    try:
        if fresh.bind_addr != was.bind_addr:
            opened.append(http := _bind("bind_addr", fresh.bind_addr))
        if fresh.metrics_addr != was.metrics_addr:
            opened.append(metrics := _bind("metrics_addr", fresh.metrics_addr))
        if fresh.unix.path != was.unix.path:
            unix = None if fresh.unix.path is None else bind_unix(fresh.unix.path)
    except ConfigError:
        for each in opened:
            each.close()
        raise
    kept = Listeners(http, metrics, unix)
    for _, each in former.roles():
        if all(each is not other for _, other in kept.roles()):
            each.close()
    if unix is not former.unix:
        remove_unix(was)
    return kept


def remove_unix(config: KmsConfig) -> None:
    """Remove the path of the UNIX socket."""
    if config.unix.path is not None:
        config.unix.path.unlink(missing_ok=True)


def adopt(described: str) -> Listeners:
    """Take over descriptors that were handed down. Raises ConfigError when the description is not ours."""
    found: dict[str, socket.socket] = {}
    for part in described.split(","):
        role, _, number = part.partition("=")
        if role not in ("http", "metrics", "unix") or not number.isdigit():
            raise ConfigError("--listeners: is not understood")
        try:
            found[role] = socket.socket(fileno=int(number))
        except OSError as error:
            raise ConfigError(f"--listeners: {role} is no socket") from error
    if "http" not in found or "metrics" not in found:
        raise ConfigError("--listeners: lacks a socket")
    return Listeners(found["http"], found["metrics"], found.get("unix"))


def bind_unix(path: Path) -> socket.socket:
    """Listen on a path that only our own uid may open (0600), in a folder that is ours alone (0700; SECURITY.md §4).

    A folder that is missing is made; in one that others may write, they could put a socket of theirs in the place of
    ours. A leftover of a dead service is replaced. Raises ConfigError.
    """
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        check_private_folder(path.parent)
    except (OSError, PrivateFileError) as error:
        raise ConfigError(f"unix.path: {error}") from error
    _remove_leftover(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(os.fspath(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"unix.path: {path}: {error.strerror}") from error
    finally:
        os.umask(previous)
    listener.listen(BACKLOG)
    return listener


def _address_of(name: str | tuple[str, int] | tuple[str, int, int, int]) -> str:
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _remove_leftover(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"unix.path: {path}: exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"unix.path: {path}: another process serves there")


def _bind(name: str, address: SocketAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{name}: {address}: {error.strerror}") from error
    return listener
