"""Build the signed request of docs/reference/pch.md §3.

Pure: the challenge, the binding and the time come in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pch.client.errors import InvalidRequest
from pch.client.limits import SIGNATURE_LIFETIME_S
from pch.httpsig.content_digest import content_digest
from pch.httpsig.errors import HttpSigError
from pch.httpsig.message import HeaderLines, RequestMessage
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_field import serialise_signature
from pch.httpsig.signature_input import (
    SignatureParams,
    make_signature_params,
    parse_signature_input,
    serialise_signature_input,
)
from pch.proof import (
    BINDING_BYTES,
    BINDING_FIELD,
    FIELD_PREFIX,
    TAG,
    TAG_SECOND_HALF,
    binding_header,
    required_components,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pch.algorithms import Signer
    from pch.client.challenge import ChallengeText
    from pch.client.upload import Upload

TAGS: Final = (TAG, TAG_SECOND_HALF)
"""The tags, and here also the labels, of the first signature and of a hybrid's second half (PCH §3)."""
SIGNATURE_FIELDS: Final = ("signature-input", "signature")


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request with its proof.

    `message`: all field lines as sent. `added`: the lines that signing added. `bases`: one signature base per
    signature. `detached`: signatures that are not in the header, by label.
    """

    message: RequestMessage
    added: HeaderLines
    bases: tuple[bytes, ...]
    detached: Mapping[str, bytes]


def sign_request(
    message: RequestMessage,
    body: bytes | Upload,
    *,
    signers: Sequence[Signer],
    challenge: ChallengeText,
    binding: bytes | None,
    created_s: int,
    max_age_s: int,
    cover: Sequence[str] = (),
    own_fields: HeaderLines = (),
    detach_post_quantum: bool = False,
) -> SignedRequest:
    """Sign `message` for one connection, PCH §3.

    `binding`: the 32 exporter bytes of the connection it will be sent on, None on a route with binding
    `none`. `signers`: one, or for a hybrid the classical one and then the ML-DSA one. `created_s`: seconds
    since the epoch. `cover`: names of further fields of `message` to sign. `own_fields`: PCH fields to add and
    cover. `detach_post_quantum`: leave ML-DSA signatures to the envelope of a relaxed request (PCH §6). Raises
    `InvalidRequest` when the request cannot be signed.
    """
    if not 1 <= len(signers) <= len(TAGS):
        raise InvalidRequest("a request is signed by one key, or by the two of a hybrid")
    if binding is not None and len(binding) != BINDING_BYTES:
        raise InvalidRequest(f"a channel binding has {BINDING_BYTES} bytes")
    _refuse_own_fields(message)
    fields: list[tuple[str, bytes]] = list(own_fields)
    if binding is not None:
        fields.append((BINDING_FIELD, binding_header(binding)))
    if body:
        digest = content_digest(body) if isinstance(body, bytes) else body.digest
        fields.append(("content-digest", digest.encode("ascii")))
    draft = _with(message, fields)
    required = required_components(draft, bound=binding is not None, has_content=bool(body))
    names = tuple(dict.fromkeys((*required, *(name.lower() for name in cover))))
    try:
        inputs: dict[str, SignatureParams] = {}
        bases: dict[str, bytes] = {}
        for tag, signer in zip(TAGS, signers, strict=False):
            inputs[tag] = make_signature_params(
                names,
                created=created_s,
                expires=created_s + min(max_age_s, SIGNATURE_LIFETIME_S),
                keyid=signer.key_id,
                alg=signer.algorithm.name,
                nonce=challenge,
                tag=tag,
            )
            bases[tag] = signature_base(draft, inputs[tag])
    except HttpSigError as error:
        raise InvalidRequest(f"the request cannot be signed: {error}") from error
    signatures: dict[str, bytes] = {}
    detached: dict[str, bytes] = {}
    for tag, signer in zip(TAGS, signers, strict=False):
        place = detached if detach_post_quantum and signer.algorithm.post_quantum else signatures
        place[tag] = signer.sign(bases[tag])
    fields.append(("signature-input", serialise_signature_input(inputs).encode("ascii")))
    if signatures:
        fields.append(("signature", serialise_signature(signatures).encode("ascii")))
    return SignedRequest(_with(message, fields), tuple(fields), tuple(bases.values()), detached)


def is_own_field(name: str) -> bool:
    """Tell whether only signing writes the field `name` (lower-case)."""
    return name == "content-digest" or name.startswith(FIELD_PREFIX)


def _with(message: RequestMessage, fields: Sequence[tuple[str, bytes]]) -> RequestMessage:
    return RequestMessage(
        message.method, message.scheme, message.authority, message.target, (*message.headers, *fields)
    )


def _refuse_own_fields(message: RequestMessage) -> None:
    """Refuse what would collide with the proof; signatures of other tags pass (PCH §3 "Selection")."""
    for name, _ in message.headers:
        if is_own_field(name):
            raise InvalidRequest(f"the field {name} is written by the client itself")
    lines = message.lines("signature-input")
    if not lines:
        return
    try:
        inputs = parse_signature_input(lines)
    except HttpSigError as error:
        raise InvalidRequest("the given Signature-Input is malformed") from error
    if any(label in TAGS or params.tag in TAGS for label, params in inputs.items()):
        raise InvalidRequest("the given Signature-Input uses a label or a tag of PCH")
