"""Signature parameters and the Signature-Input field, RFC 9421 §2.3 and §4.1."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pch.httpsig.component import MAX_COMPONENTS, ComponentId, bare, parse_component
from pch.httpsig.errors import DuplicateError, FieldSyntaxError
from pch.httpsig.structured_field import check_canonical, check_key, join_lines, parse, serialise_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_LABELS: Final = 8
"""Most signatures that one message carries."""

MAX_PARAMETERS: Final = 16
"""Most parameters of one signature; RFC 9421 registers six."""

MAX_SIGNATURE_INPUT_BYTES: Final = 8192
"""Longest Signature-Input field: eight signatures of 32 components fit; it bounds what nonsense costs to parse."""

MAX_SEPARATORS: Final = MAX_LABELS * (2 * MAX_COMPONENTS + MAX_PARAMETERS)
"""Most spaces, semicolons and commas: what the limits above can need. Counted first, since parsing costs more."""

INTEGER_PARAMETERS: Final = frozenset({"created", "expires"})
"""Parameters that are Integers, in seconds since 1970, RFC 9421 §2.3."""

STRING_PARAMETERS: Final = frozenset({"keyid", "alg", "nonce", "tag"})
"""Parameters that are Strings, RFC 9421 §2.3."""


@dataclass(frozen=True, slots=True)
class SignatureParams:
    """The covered components and parameters of one signature, RFC 9421 §2.3.

    `params`: in the order of the field, with the types of §2.3; unregistered ones as they were parsed.
    `serialised`: the inner list in canonical form, which is also the value of the `@signature-params` line.
    """

    components: tuple[ComponentId, ...]
    params: Mapping[str, object]
    serialised: str

    @property
    def created(self) -> int | None:
        """Creation time in seconds since 1970."""
        return self._integer("created")

    @property
    def expires(self) -> int | None:
        """Expiry time in seconds since 1970."""
        return self._integer("expires")

    @property
    def keyid(self) -> str | None:
        """Key identifier."""
        return self._string("keyid")

    @property
    def alg(self) -> str | None:
        """Algorithm name of the RFC 9421 registry."""
        return self._string("alg")

    @property
    def nonce(self) -> str | None:
        """Value that makes the signature unique."""
        return self._string("nonce")

    @property
    def tag(self) -> str | None:
        """Application that the signature is for."""
        return self._string("tag")

    def _integer(self, name: str) -> int | None:
        value = self.params.get(name)
        return value if type(value) is int else None

    def _string(self, name: str) -> str | None:
        value = self.params.get(name)
        return value if type(value) is str else None


def parse_signature_input(lines: Sequence[bytes]) -> dict[str, SignatureParams]:
    """Parse the Signature-Input field, RFC 9421 §4.1.

    `lines`: the field's raw lines; none gives no signatures. Returns the parameters by label, in order.
    Raises FieldSyntaxError (grammar, types, limits), DuplicateError (label, parameter or component),
    ComponentError, NonCanonicalError (a member that differs from its own serialisation, PCH §3).
    """
    if not lines:
        return {}
    raw = join_lines(lines, MAX_SIGNATURE_INPUT_BYTES)
    if raw.count(b" ") + raw.count(b";") + raw.count(b",") > MAX_SEPARATORS:
        raise FieldSyntaxError("Signature-Input has too many parts")
    dictionary = parse(raw, "dictionary")
    if len(dictionary) > MAX_LABELS:
        raise FieldSyntaxError("too many signatures")
    parsed = {label: read_member(member) for label, member in dictionary.items()}
    check_canonical(raw.decode("ascii"), [f"{label}={params.serialised}" for label, params in parsed.items()])
    return parsed


def read_member(member: Any) -> SignatureParams:
    """Read one parsed member of Signature-Input: an inner list of components with typed parameters."""
    items, params = member
    if type(items) is not list:
        raise FieldSyntaxError("member is not an inner list")
    components = read_components(items)
    check_parameter_types(params)
    return SignatureParams(components, MappingProxyType(params), _serialised(components, params))


def read_components(items: Sequence[Any]) -> tuple[ComponentId, ...]:
    """Read an inner list's items as component identifiers, each once (RFC 9421 §2).

    Raises ComponentError, DuplicateError, FieldSyntaxError past MAX_COMPONENTS.
    """
    if len(items) > MAX_COMPONENTS:
        raise FieldSyntaxError("too many covered components")
    components = tuple([parse_component(item) for item in items])
    check_unique(components)
    return components


def check_unique(components: Sequence[ComponentId]) -> None:
    """Check that no component is covered twice, RFC 9421 §2. Raises DuplicateError."""
    if len({component.identity for component in components}) != len(components):
        raise DuplicateError("component is covered twice")


def check_parameter_types(params: Mapping[str, object]) -> None:
    """Check the registered parameters' types, RFC 9421 §2.3. Raises FieldSyntaxError.

    A Boolean or a Decimal is no Integer here, and a Token is no String; times are not negative.
    """
    if len(params) > MAX_PARAMETERS:
        raise FieldSyntaxError("too many signature parameters")
    for name, value in params.items():
        if name in INTEGER_PARAMETERS:
            if type(value) is not int or value < 0:
                raise FieldSyntaxError("signature time is not a non-negative integer")
        elif name in STRING_PARAMETERS and type(value) is not str:
            raise FieldSyntaxError("signature parameter is not a string")


def _serialised(components: Iterable[ComponentId], params: Mapping[str, object]) -> str:
    covered = " ".join([component.serialised for component in components])
    return f"({covered}){serialise_parameters(params.items())}"


def make_signature_params(
    components: Iterable[ComponentId | str],
    *,
    created: int | None = None,
    expires: int | None = None,
    keyid: str | None = None,
    alg: str | None = None,
    nonce: str | None = None,
    tag: str | None = None,
) -> SignatureParams:
    """Make the parameters of a new signature, RFC 9421 §2.3, in the order of this signature's arguments.

    `components`: identifiers, or names for bare ones. Times in seconds since 1970. Raises as parsing does.
    """
    covered = tuple([bare(item) if isinstance(item, str) else item for item in components])
    if len(covered) > MAX_COMPONENTS:
        raise FieldSyntaxError("too many covered components")
    check_unique(covered)
    given: dict[str, object] = {
        "created": created,
        "expires": expires,
        "keyid": keyid,
        "alg": alg,
        "nonce": nonce,
        "tag": tag,
    }
    params = {name: value for name, value in given.items() if value is not None}
    check_parameter_types(params)
    return SignatureParams(covered, MappingProxyType(params), _serialised(covered, params))


def serialise_signature_input(signatures: Mapping[str, SignatureParams]) -> str:
    """Serialise the Signature-Input field, RFC 9421 §4.1.

    Raises FieldSyntaxError for a label that is no key.
    """
    if not signatures:
        raise FieldSyntaxError("no signatures to serialise")
    for label in signatures:
        check_key(label)
    return ", ".join([f"{label}={params.serialised}" for label, params in signatures.items()])
