"""The Accept-Signature field, RFC 9421 §5: what a signature should cover and carry."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pch.httpsig.component import ComponentId, bare
from pch.httpsig.errors import FieldSyntaxError
from pch.httpsig.signature_input import (
    INTEGER_PARAMETERS,
    MAX_LABELS,
    MAX_PARAMETERS,
    MAX_SIGNATURE_INPUT_BYTES,
    STRING_PARAMETERS,
    check_unique,
    read_components,
)
from pch.httpsig.structured_field import check_key, join_lines, parse, serialise_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class SignatureRequest:
    """One requested signature, RFC 9421 §5.1.

    `params`: `created` and `expires` are True (the signer chooses the time), the others Strings to be
    repeated.
    """

    components: tuple[ComponentId, ...]
    params: Mapping[str, object]

    @property
    def serialised(self) -> str:
        """The member's inner list in canonical form."""
        covered = " ".join([component.serialised for component in self.components])
        return f"({covered}){serialise_parameters(self.params.items())}"


def make_signature_request(
    components: Iterable[ComponentId | str],
    *,
    created: bool = True,
    expires: bool = True,
    keyid: str | None = None,
    alg: str | None = None,
    nonce: str | None = None,
    tag: str | None = None,
) -> SignatureRequest:
    """Make a member of Accept-Signature, RFC 9421 §5.1.

    `components`: identifiers, or names for bare ones. `created`, `expires`: whether the signer must say these
    times. Raises ComponentError, DuplicateError.
    """
    covered = tuple([bare(item) if isinstance(item, str) else item for item in components])
    check_unique(covered)
    given: dict[str, object] = {
        "created": created or None,
        "expires": expires or None,
        "keyid": keyid,
        "alg": alg,
        "nonce": nonce,
        "tag": tag,
    }
    return SignatureRequest(
        covered, MappingProxyType({name: value for name, value in given.items() if value is not None})
    )


def serialise_accept_signature(requests: Mapping[str, SignatureRequest]) -> str:
    """Serialise the Accept-Signature field, RFC 9421 §5.1.

    Raises FieldSyntaxError for a label that is no key.
    """
    if not requests:
        raise FieldSyntaxError("no signature requests to serialise")
    for label in requests:
        check_key(label)
    return ", ".join([f"{label}={request.serialised}" for label, request in requests.items()])


def parse_accept_signature(lines: Sequence[bytes]) -> dict[str, SignatureRequest]:
    """Parse the Accept-Signature field, RFC 9421 §5.1: requests by label.

    Raises FieldSyntaxError (grammar, types, limits), DuplicateError, ComponentError.
    """
    if not lines:
        return {}
    dictionary = parse(join_lines(lines, MAX_SIGNATURE_INPUT_BYTES), "dictionary")
    if len(dictionary) > MAX_LABELS:
        raise FieldSyntaxError("too many signature requests")
    requests: dict[str, SignatureRequest] = {}
    for label, (items, params) in dictionary.items():
        if type(items) is not list or len(params) > MAX_PARAMETERS:
            raise FieldSyntaxError("member is not an inner list, or has too many parameters")
        _check_types(params)
        requests[label] = SignatureRequest(read_components(items), MappingProxyType(params))
    return requests


def _check_types(params: Mapping[str, object]) -> None:
    for name, value in params.items():
        if name in INTEGER_PARAMETERS and value is not True:
            raise FieldSyntaxError("requested time has a value")
        if name in STRING_PARAMETERS and type(value) is not str:
            raise FieldSyntaxError("requested parameter is not a string")
