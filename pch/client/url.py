"""Split a URL into the connection's origin and the request target, without rewriting either (PCH §1.2)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode, urljoin

from pch.client.errors import InvalidRequest
from pch.client.limits import MAX_URL_CHARS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_URL: Final = re.compile(r"(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?", re.DOTALL)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@\s]+)(?::(?P<port>[0-9]{1,5}))?")
_HOST: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?")
_KEPT_IN_TARGET: Final = "".join(chr(c) for c in range(0x21, 0x7F))
"""What quoting leaves alone: a `%` too, since the caller's escapes are the caller's."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes: `host` is lower-case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int

    @property
    def is_tls(self) -> bool:
        """Tell whether the scheme is https."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Give the Host and :authority value, without a default port (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Url:
    """One request's origin and target; `target` is path and query as sent, ASCII."""

    origin: Origin
    target: str

    def __str__(self) -> str:
        return f"{self.origin.scheme}://{self.origin.authority}{self.target}"

    def join(self, reference: str) -> Url:
        """Resolve the redirect `reference` against this URL (RFC 3986 §5.2)."""
        return parse_url(urljoin(str(self), reference))


def parse_url(
    url: str, params: Mapping[str, str | int | float | bool] | Sequence[tuple[str, str]] | None = None
) -> Url:
    """Read an absolute http or https URL; the fragment is dropped, spaces and non-ASCII are escaped.

    `params` are appended to the query. Dot segments and escapes stay as given: the verifier signs what is
    sent. Raises `InvalidRequest`.
    """
    if len(url) > MAX_URL_CHARS:
        raise InvalidRequest(f"the URL is longer than {MAX_URL_CHARS} characters")
    match = _URL.fullmatch(url)
    if not match or match["scheme"].lower() not in DEFAULT_PORTS:
        raise InvalidRequest("the URL is not an absolute http or https URL")
    scheme = match["scheme"].lower()
    target = match["target"] if match["target"].startswith("/") else "/" + match["target"]
    if params:
        target += ("&" if "?" in target else "?") + urlencode(list(_pairs(params)))
    return Url(_origin(scheme, match["authority"]), quote(target, safe=_KEPT_IN_TARGET))


def _pairs(
    params: Mapping[str, str | int | float | bool] | Sequence[tuple[str, str]],
) -> Sequence[tuple[str, str]]:
    items = params if not hasattr(params, "items") else list(params.items())
    return [(name, value if isinstance(value, str) else str(value)) for name, value in items]


def _origin(scheme: str, authority: str) -> Origin:
    match = _AUTHORITY.fullmatch(authority)
    if not match:
        raise InvalidRequest("the URL has no usable host; user names and passwords in URLs are not accepted")
    port = int(match["port"]) if match["port"] else DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise InvalidRequest("the URL's port is out of range")
    return Origin(scheme, _host(match["host"]), port)


def _host(text: str) -> str:
    try:
        if text.startswith("["):
            return ipaddress.IPv6Address(text[1:-1]).compressed
        host = text.encode("idna").decode("ascii").lower()
    except (ValueError, UnicodeError) as error:
        raise InvalidRequest("the URL's host is neither a name nor an address") from error
    if not _HOST.fullmatch(host) or ".." in host:
        raise InvalidRequest("the URL's host is neither a name nor an address")
    return host
