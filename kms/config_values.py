"""How durations, sizes, addresses and lists are written in the configuration (CONFIG.md §3)."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Final

MAX_DURATION_MS: Final = 24 * 3_600_000
MAX_SIZE_BYTES: Final = 1 << 30
MAX_PATH_CHARS: Final = 1024
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h)\Z")
_DURATION_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_SIZE: Final = re.compile(r"([0-9]{1,12})(B|KB|KiB|MB|MiB)?\Z")
_SIZE_UNITS_BYTES: Final = {"B": 1, "KB": 1000, "KiB": 1024, "MB": 1_000_000, "MiB": 1_048_576}


class ConfigError(Exception):
    """The configuration is refused. The message says which key and which rule, never a value that may be secret."""


class DurationMs(int):
    """Milliseconds, written `250ms`, `5s`, `1m` or `1h`."""

    @classmethod
    def parse(cls, written: object) -> DurationMs:
        """Read a duration with its unit; a bare number has none and is refused. Raises ValueError."""
        match = _DURATION.match(written) if isinstance(written, str) else None
        if match is None:
            raise ValueError("must be a number with one of ms, s, m, h, such as 5s")
        value = int(match[1]) * _DURATION_UNITS_MS[match[2]]
        if not 1 <= value <= MAX_DURATION_MS:
            raise ValueError("must be from 1ms to 24h")
        return cls(value)


class SizeBytes(int):
    """Bytes, written `1MiB`, `64KiB`, `1MB`, `512B` or as a bare number."""

    @classmethod
    def parse(cls, written: object) -> SizeBytes:
        """Read a size. Raises ValueError."""
        match = _SIZE.match(str(written)) if isinstance(written, str | int) and not isinstance(written, bool) else None
        if match is None:
            raise ValueError("must be a number of bytes, or with one of B, KB, KiB, MB, MiB")
        value = int(match[1]) * _SIZE_UNITS_BYTES[match[2] or "B"]
        if value > MAX_SIZE_BYTES:
            raise ValueError("must be at most 1024MiB")
        return cls(value)


class SocketAddress(str):
    """A literal IP address and a port, in one spelling: `127.0.0.1:9446`, `[::1]:9446`. Port 0: the system chooses."""

    __slots__ = ()

    @classmethod
    def parse(cls, written: object) -> SocketAddress:
        """Read an address; names are refused, they would be looked up. Raises ValueError."""
        host, colon, port = written.rpartition(":") if isinstance(written, str) else ("", "", "")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError("must be <ip>:<port>, an IPv6 address in brackets")
        try:
            address = ipaddress.ip_address(host)
        except ValueError as error:
            raise ValueError("must be <ip>:<port> with a literal IP address") from error
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError("must be <ip>:<port> with a port from 0 to 65535")
        return cls(f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}")

    @property
    def host(self) -> str:
        """Give the address without brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Give the port."""
        return int(self.rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Tell whether only this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback


def parse_path(written: object) -> Path:
    """Read a path; an empty one is refused. Raises ValueError."""
    if not isinstance(written, str) or not 0 < len(written) <= MAX_PATH_CHARS or "\0" in written:
        raise ValueError("must be a path")
    return Path(written)


def decode_value(kind: type, written: Any) -> Any:
    """Decode what msgspec does not know by itself (its `dec_hook`)."""
    if kind is Path:
        return parse_path(written)
    if issubclass(kind, DurationMs | SizeBytes | SocketAddress):
        return kind.parse(written)
    raise NotImplementedError(kind)


def encode_value(value: Any) -> Any:
    """Encode the same for a digest or a dump (msgspec's `enc_hook`)."""
    if isinstance(value, DurationMs | SizeBytes):
        return int(value)
    return str(value)
