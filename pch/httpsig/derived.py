"""Derived components, RFC 9421 §2.2: values taken from a message's control data."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote

from pch.httpsig.errors import ComponentError
from pch.httpsig.message import RequestMessage, ResponseMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pch.httpsig.component import ComponentId

MAX_QUERY_PARAMETERS: Final = 128
"""Most parameters of a query that `@query-param` is covered of; 32 components look through them each."""

MAX_PARSED_QUERIES: Final = 4
"""Parsed queries kept: a query costs one parse, however many of its parameters one signature covers."""

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
# Visible ASCII without "#": a fragment is never sent (RFC 9110 §7.1), and a control character would start a
# new line of the signature base.
_TARGET: Final = re.compile(r"[!-\"$-~]*")
# Host names, IPv4 and bracketed IPv6. Userinfo, lists and percent-encoding are refused: each has two
# readings.
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?")
_UNPADDED_PORT: Final = re.compile(r"0|[1-9][0-9]*")
_SAFE_QUERY_CHARACTERS: Final = "*-._"


def derived_value(message: RequestMessage | ResponseMessage, component: ComponentId) -> str:
    """Give the value of a derived component, RFC 9421 §2.2.

    Raises ComponentError when the component does not apply to this message or has no single, safe value.
    """
    if component.params and component.param("req"):
        raise ComponentError("the request that a response answers is not known here")
    if isinstance(message, ResponseMessage):
        if component.name != "@status":
            raise ComponentError("component does not apply to a response")
        return _status(message)
    if component.name == "@query-param":
        name = component.param("name")
        return query_param(message, name if isinstance(name, str) else "")
    resolve = _REQUEST_COMPONENTS.get(component.name)
    if resolve is None:
        raise ComponentError("component does not apply to a request")
    return resolve(message)


def _status(message: ResponseMessage) -> str:
    if not 100 <= message.status <= 999:
        raise ComponentError("status is not a three-digit code")
    return str(message.status)


def method(message: RequestMessage) -> str:
    """Give `@method`, RFC 9421 §2.2.1: as sent, case kept."""
    if not _METHOD.fullmatch(message.method):
        raise ComponentError("method is not a token")
    return message.method


def scheme(message: RequestMessage) -> str:
    """Give `@scheme`, RFC 9421 §2.2.4: `http` or `https`."""
    lowered = message.scheme.lower()
    if lowered not in _DEFAULT_PORTS:
        raise ComponentError("scheme is not http or https")
    return lowered


def authority(message: RequestMessage) -> str:
    """Give `@authority`, RFC 9421 §2.2.3: lower-case, without the scheme's default port."""
    return normalised_authority(message.authority, scheme(message))


def normalised_authority(received: str, message_scheme: str) -> str:
    """Normalise an authority, RFC 9421 §2.2.3 and RFC 9110 §4.2.3.

    `received`: Host or :authority as sent. `message_scheme`: lower-case `http` or `https`. Returns lower-case
    ASCII. Raises ComponentError for anything but a host name or address with an optional port of 1 to 65535.
    """
    match = _AUTHORITY.fullmatch(received)
    if match is None:
        raise ComponentError("authority is not a host with an optional port")
    host, port = match.groups()
    # An empty port is the default one (RFC 3986 §6.2.3); a padded one has two spellings and is refused.
    if not port or port == _DEFAULT_PORTS.get(message_scheme):
        return host.lower()
    if not _UNPADDED_PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:
        raise ComponentError("port is not a number from 1 to 65535 without leading zeros")
    return f"{host.lower()}:{port}"


def _split_target(message: RequestMessage) -> tuple[str, str]:
    """Split the target into path and query (with its "?", empty when there is none).

    The absolute, authority and asterisk forms are refused: this layer is told the authority separately.
    """
    if not _TARGET.fullmatch(message.target):
        raise ComponentError("target holds characters that a target cannot hold")
    path, mark, query = message.target.partition("?")
    if path and not path.startswith("/"):
        raise ComponentError("target is not in origin form")
    return path or "/", mark + query


def path(message: RequestMessage) -> str:
    """Give `@path`, RFC 9421 §2.2.6: as sent and not decoded; an empty path is "/"."""
    return _split_target(message)[0]


def query(message: RequestMessage) -> str:
    """Give `@query`, RFC 9421 §2.2.7: with the leading "?", which stands alone when there is no query."""
    return _split_target(message)[1] or "?"


def request_target(message: RequestMessage) -> str:
    """Give `@request-target`, RFC 9421 §2.2.5: the target as it was sent."""
    if not message.target or not _TARGET.fullmatch(message.target):
        raise ComponentError("target holds characters that a target cannot hold")
    return message.target


def target_uri(message: RequestMessage) -> str:
    """Give `@target-uri`, RFC 9421 §2.2.2: scheme, normalised authority, path and query."""
    target_path, target_query = _split_target(message)
    return f"{scheme(message)}://{authority(message)}{target_path}{target_query}"


def query_param(message: RequestMessage, name: str) -> str:
    """Give `@query-param`, RFC 9421 §2.2.8: one parameter's value, form-decoded and percent-encoded again.

    `name`: the encoded name. Raises ComponentError when the parameter is absent or occurs twice, and,
    stricter than the RFC, when the query is not UTF-8: every bad byte would decode to the same character, and
    the signature would hold for other bytes than were signed.
    """
    _, raw_query = _split_target(message)
    try:
        pairs = _query_pairs(raw_query[1:])
    except ValueError as error:
        raise ComponentError("query is not UTF-8 or has too many parameters") from error
    wanted = unquote(name)
    values = [value for key, value in pairs if key == wanted]
    if len(values) != 1 or _encode(wanted) != name:
        raise ComponentError("query parameter is absent or occurs more than once")
    return _encode(values[0])


@lru_cache(maxsize=MAX_PARSED_QUERIES)
def _query_pairs(raw_query: str) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl(raw_query, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_PARAMETERS))


def _encode(text: str) -> str:
    # The application/x-www-form-urlencoded percent-encode set leaves ASCII letters, digits and *-._ alone;
    # urllib would leave "~" too.
    return quote(text, safe=_SAFE_QUERY_CHARACTERS).replace("~", "%7E")


_REQUEST_COMPONENTS: Final[dict[str, Callable[[RequestMessage], str]]] = {
    "@method": method,
    "@target-uri": target_uri,
    "@authority": authority,
    "@scheme": scheme,
    "@request-target": request_target,
    "@path": path,
    "@query": query,
}
