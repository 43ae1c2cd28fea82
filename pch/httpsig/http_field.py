"""HTTP fields as components, RFC 9421 §2.1."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pch.httpsig.errors import ComponentError, HttpSigError
from pch.httpsig.structured_field import parse, serialise, serialise_byte_sequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pch.httpsig.component import ComponentId

MAX_STRUCTURED_BYTES: Final = 4096
"""Longest field covered with `sf` or `key`: 32 components parse it again each, which bounds their cost."""

STRUCTURED_FIELD_KINDS: Final = {
    "accept-signature": "dictionary",
    "cache-status": "list",
    "cdn-cache-control": "dictionary",
    "client-cert": "item",
    "client-cert-chain": "list",
    "content-digest": "dictionary",
    "pch-challenge": "list",
    "pch-channel-binding": "dictionary",
    "pch-evidence": "item",
    "pch-evidence-digest": "dictionary",
    "pch-relaxed": "item",
    "priority": "dictionary",
    "proxy-status": "list",
    "repr-digest": "dictionary",
    "signature": "dictionary",
    "signature-input": "dictionary",
    "want-content-digest": "dictionary",
    "want-repr-digest": "dictionary",
}
"""Fields whose structured type is known, which `sf` requires (RFC 9421 §2.1.1)."""

MAX_PARSED_DICTIONARIES: Final = 32
"""Parsed fields kept, each of at most MAX_STRUCTURED_BYTES: as many as one signature can cover (MAX_COMPONENTS), so
that each costs one parse, in whatever order its members are covered."""

# obs-fold, other control characters and non-ASCII have more than one reading on the way (PCH §3).
_FIELD_VALUE: Final = re.compile(rb"[\x20-\x7e\t]*")


def field_value(lines: Sequence[bytes], component: ComponentId) -> str:
    """Give the value of a field component, RFC 9421 §2.1.

    `lines`: the field's raw lines, in order. Raises ComponentError when the field is absent, holds obs-fold,
    a control character or a non-ASCII byte, or is not of the type that `sf` or `key` asks for.
    """
    if not lines:
        raise ComponentError("covered field is absent")
    stripped = [line.strip(b" \t") for line in lines]
    for line in stripped:
        if not _FIELD_VALUE.fullmatch(line):
            raise ComponentError("covered field holds obs-fold, a control character or non-ASCII")
    if component.params:
        return _value_by_params(stripped, component)
    return (stripped[0] if len(stripped) == 1 else b", ".join(stripped)).decode("ascii")


def _value_by_params(stripped: Sequence[bytes], component: ComponentId) -> str:
    if component.param("req") or component.param("tr"):
        raise ComponentError("neither trailers nor the request that a response answers are known here")
    if component.param("bs"):
        return ", ".join([serialise_byte_sequence(line) for line in stripped])
    joined = b", ".join(stripped)
    if len(joined) > MAX_STRUCTURED_BYTES:
        raise ComponentError("covered structured field is too long")
    key = component.param("key")
    try:
        if isinstance(key, str):
            return _dictionary_member(joined, component.name, key)
        return _strict(joined, component.name)
    except ComponentError:
        raise
    except HttpSigError as error:
        raise ComponentError("covered field is not the structured field that it is covered as") from error


def _strict(joined: bytes, name: str) -> str:
    """Serialise a structured field strictly, RFC 9421 §2.1.1 (`sf`)."""
    kind = STRUCTURED_FIELD_KINDS.get(name)
    if kind is None:
        raise ComponentError("covered field is not known to be a structured field")
    # An empty list or dictionary has no serialisation and is refused by it.
    return serialise(parse(joined, kind))


@lru_cache(maxsize=MAX_PARSED_DICTIONARIES)
def _parsed_dictionary(joined: bytes) -> Any:
    """Parse a dictionary once for all the members that one signature covers; nothing changes what this gives."""
    return parse(joined, "dictionary")


def _dictionary_member(joined: bytes, name: str, key: str) -> str:
    """Serialise one member of a dictionary, RFC 9421 §2.1.2 (`key`)."""
    if STRUCTURED_FIELD_KINDS.get(name, "dictionary") != "dictionary":
        raise ComponentError("covered field is not a dictionary")
    dictionary = _parsed_dictionary(joined)
    if key not in dictionary:
        raise ComponentError("covered dictionary member is absent")
    # A list of one is serialised as its one member, item or inner list, also when that is the Boolean true.
    return serialise([dictionary[key]])
