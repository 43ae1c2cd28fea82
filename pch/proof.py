"""The PCH profile of RFC 9421: which signature counts and what it must say (docs/reference/pch.md §3).

Pure. The verifier (`extproc.verifier`) calls these in the order of PCH §4; a client can call them on its own request.
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pch.algorithms import ALGORITHMS
from pch.errors import (
    BindingMismatch,
    ExpiredSignature,
    MalformedSignature,
    MissingComponent,
    MissingSignature,
)
from pch.httpsig.errors import HttpSigError
from pch.httpsig.signature_field import parse_signature
from pch.httpsig.signature_input import SignatureParams, parse_signature_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pch.httpsig.message import RequestMessage

TAG: Final = "pch"
TAG_SECOND_HALF: Final = "pch-pq"
"""The tag of the ML-DSA half of a hybrid."""
BINDING_FIELD: Final = "pch-channel-binding"
BINDING_BYTES: Final = 32
"""The length of an RFC 9266 tls-exporter binding."""
EVIDENCE_FIELDS: Final = ("pch-evidence", "pch-evidence-digest", "pch-relaxed")
REQUEST_LINE_COMPONENTS: Final = ("@method", "@authority", "@path", "@query")
FIELD_PREFIX: Final = "pch-"
"""Request fields that begin so end at the verifier (PCH §5)."""

_PARAMETERS: Final = frozenset({"created", "expires", "keyid", "alg", "nonce", "tag"})
MAX_COMPONENT_CHARS: Final = 512
"""Longest covered component as serialised: receipts keep it (docs/reference/receipt.md §3 `covered`)."""

_REFUSED_COMPONENTS: Final = frozenset({"@request-target", "@status"})
_REFUSED_COMPONENT_PARAMS: Final = frozenset({"req", "tr"})
_BINDING_VALUE: Final = re.compile(rb"tls-exporter=:([A-Za-z0-9+/]{43}=):")


@dataclass(frozen=True, slots=True)
class Proof:
    """One PCH signature, syntactically whole and not yet verified.

    `label`: its dictionary key. Times are seconds since the epoch. `nonce` is the challenge as sent.
    """

    label: str
    params: SignatureParams
    signature: bytes
    created_s: int
    expires_s: int
    key_id: str
    algorithm: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Proofs:
    """The PCH signatures of one request: `first` under tag `pch`, `second_half` under `pch-pq` if there is one.

    `foreign`: signatures with other tags by label, ignored here and passed on.
    """

    first: Proof
    second_half: Proof | None
    foreign: Mapping[str, tuple[SignatureParams, bytes]]

    @property
    def both(self) -> tuple[Proof, ...]:
        """Give the signatures there are, one or two, the one under `pch` first."""
        return (self.first,) if self.second_half is None else (self.first, self.second_half)


def select_proofs(
    message: RequestMessage, enveloped: Mapping[str, bytes] | None = None, *, envelope_is_lost: bool = False
) -> Proofs:
    """Find the PCH signatures by tag, PCH §3 "Selection" and "Parameters" (§4 step 2).

    `enveloped`: of a relaxed request, the signatures in its envelope by label (PCH §6): ML-DSA's are there, and no
    others. `envelope_is_lost`: it said that it has one, and has none; what would be in it reads as empty. Raises
    `MissingSignature` when no signature is tagged `pch`, `MalformedSignature` for anything out of grammar.
    """
    input_lines = message.lines("signature-input")
    signature_lines = message.lines("signature")
    if not input_lines and not signature_lines:
        raise MissingSignature("no signature fields")
    try:
        inputs = parse_signature_input(input_lines)
        signatures = parse_signature(signature_lines)
    except HttpSigError as error:
        raise MalformedSignature(str(error)) from error
    if envelope_is_lost:
        enveloped = {label: b"" for label, params in inputs.items() if _is_enveloped(params)}
    if enveloped is not None:
        signatures |= _from_envelope(inputs, signatures, enveloped)
    if inputs.keys() != signatures.keys():
        raise MalformedSignature("Signature and Signature-Input do not have the same members")
    tagged: dict[str, Proof] = {}
    foreign: dict[str, tuple[SignatureParams, bytes]] = {}
    for label, params in inputs.items():
        if params.tag != TAG and params.tag != TAG_SECOND_HALF:
            foreign[label] = (params, signatures[label])
            continue
        if params.tag in tagged:
            raise MalformedSignature("more than one signature of one tag")
        tagged[params.tag] = _proof(label, params, signatures[label])
    if TAG not in tagged:
        raise MissingSignature("no signature is tagged for this protocol")
    first, second_half = tagged[TAG], tagged.get(TAG_SECOND_HALF)
    if second_half is not None:
        _check_halves(first, second_half)
    return Proofs(first, second_half, foreign)


def _from_envelope(
    inputs: Mapping[str, SignatureParams], in_header: Mapping[str, bytes], enveloped: Mapping[str, bytes]
) -> Mapping[str, bytes]:
    """Check that each signature of a relaxed request is in its one place, PCH §6. Raises `MalformedSignature`."""
    if not in_header.keys().isdisjoint(enveloped):
        raise MalformedSignature("a label is in the header and in the envelope")
    if enveloped.keys() != {label for label, params in inputs.items() if _is_enveloped(params)}:
        raise MalformedSignature("the envelope holds ML-DSA signatures of this protocol, all of them and no others")
    return enveloped


def _is_enveloped(params: SignatureParams) -> bool:
    """Tell whether this signature's place in a relaxed request is the envelope, PCH §6."""
    algorithm = ALGORITHMS.get(params.alg or "")
    return params.tag in {TAG, TAG_SECOND_HALF} and algorithm is not None and algorithm.post_quantum


def _check_halves(first: Proof, second: Proof) -> None:
    """Check that two signatures say the same of one request, PCH §3 "Hybrids". Raises `MalformedSignature`."""
    covered = [[component.serialised for component in half.params.components] for half in (first, second)]
    if covered[0] != covered[1]:
        raise MalformedSignature("the halves of a hybrid do not cover the same in the same order")
    if (first.created_s, first.expires_s, first.nonce) != (second.created_s, second.expires_s, second.nonce):
        raise MalformedSignature("the halves of a hybrid differ in created, expires or nonce")
    if first.key_id == second.key_id:
        raise MalformedSignature("both halves of a hybrid name the same key")


def _proof(label: str, params: SignatureParams, signature: bytes) -> Proof:
    if frozenset(params.params) != _PARAMETERS:
        raise MalformedSignature("the signature's parameters are not exactly the required ones")
    created, expires = params.created, params.expires
    key_id, algorithm, nonce = params.keyid, params.alg, params.nonce
    if created is None or expires is None or key_id is None or algorithm is None or nonce is None:
        raise MalformedSignature("a signature parameter is of the wrong type")
    for component in params.components:
        if component.name in _REFUSED_COMPONENTS:
            raise MalformedSignature("a component is refused by the profile")
        if any(name in _REFUSED_COMPONENT_PARAMS for name, _ in component.params):
            raise MalformedSignature("a component parameter is refused by the profile")
        if len(component.serialised) > MAX_COMPONENT_CHARS:
            raise MalformedSignature("a component is too long")
    return Proof(label, params, signature, created, expires, key_id, algorithm, nonce)


def binding_header(binding: bytes) -> bytes:
    """Give the value of PCH-Channel-Binding for the 32 exporter bytes `binding`, PCH §3."""
    return b"tls-exporter=:" + base64.b64encode(binding) + b":"


def check_binding_syntax(message: RequestMessage) -> bytes | None:
    """Read PCH-Channel-Binding, PCH §3 (§4 step 2).

    Returns its one value, or None if absent. Raises `MalformedSignature` if repeated or out of grammar.
    """
    lines = message.lines(BINDING_FIELD)
    if not lines:
        return None
    if len(lines) > 1 or not _BINDING_VALUE.fullmatch(lines[0]):
        raise MalformedSignature("the channel binding field is malformed")
    return lines[0]


def check_binding(sent: bytes | None, binding: bytes) -> None:
    """Compare the binding the client signed for with the connection's, in constant time (PCH §4 step 3).

    `sent`: the field's value. `binding`: the 32 bytes that the edge vouches for. Raises `MissingComponent`,
    `BindingMismatch`.
    """
    if sent is None:
        raise MissingComponent("the channel binding field is absent")
    if not hmac.compare_digest(sent, binding_header(binding)):
        raise BindingMismatch("the request was signed for another connection")


def check_times(proof: Proof, *, now_ms: int, max_age_s: int, skew_s: int) -> None:
    """Check created and expires, PCH §3 "Parameters" (§4 step 6). Raises `ExpiredSignature`."""
    if proof.created_s * 1000 > now_ms + skew_s * 1000:
        raise ExpiredSignature("created lies in the future")
    if proof.expires_s * 1000 < now_ms - skew_s * 1000:
        raise ExpiredSignature("expires lies in the past")
    if not 0 <= proof.expires_s - proof.created_s <= max_age_s:
        raise ExpiredSignature("expires is too far from created")


def required_components(message: RequestMessage, *, bound: bool, has_content: bool) -> tuple[str, ...]:
    """List the components that the signature of `message` must cover bare, PCH §3 "Components"."""
    required = list(REQUEST_LINE_COMPONENTS)
    if has_content:
        required.append("content-digest")
    if bound:
        required.append(BINDING_FIELD)
    required.extend(name for name in EVIDENCE_FIELDS if message.lines(name))
    return tuple(required)


def check_components(proof: Proof, required: tuple[str, ...]) -> None:
    """Check that `proof` covers every name of `required`, bare (PCH §4 step 7). Raises `MissingComponent`."""
    bare = {component.name for component in proof.params.components if not component.params}
    if not bare.issuperset(required):
        raise MissingComponent("a required component is not covered")
