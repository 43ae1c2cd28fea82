"""Requests with two PCH signatures, each half as a test wants it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pch.httpsig.content_digest import content_digest
from pch.httpsig.message import RequestMessage
from pch.httpsig.sign import sign
from pch.httpsig.signature_field import serialise_signature
from pch.httpsig.signature_input import make_signature_params, serialise_signature_input
from pch.proof import binding_header
from tests.support.filter_parts import AUTHORITY, BINDING, DEFAULT_COMPONENTS, NOW_MS, KeyPair


@dataclass(frozen=True)
class Half:
    """One signature. `params` replace signature parameters; `components` replace what is covered."""

    key: KeyPair
    tag: str
    components: tuple[str, ...] | None = None
    params: dict[str, Any] = field(default_factory=dict)


def hybrid_keys(subject: str, classical: str = "ed25519", **extra: Any) -> tuple[KeyPair, KeyPair]:
    """Make the two keys of a hybrid, registered as each other's partners."""
    first, second = KeyPair.new(subject, classical, **extra), KeyPair.new(subject, "ml-dsa-65", **extra)
    first.partner, second.partner = second.signer.key_id, first.signer.key_id
    return first, second


def halves(first: KeyPair, second: KeyPair) -> tuple[Half, Half]:
    """Give the two halves as PCH §3 wants them."""
    return Half(first, "pch"), Half(second, "pch-pq")


def hybrid_message(
    signed_by: tuple[Half, ...],
    challenge: str,
    *,
    method: str = "GET",
    target: str = "/hybrid",
    body: bytes = b"",
    binding: bytes | None = BINDING,
    created_s: int = NOW_MS // 1000,
    authority: str = AUTHORITY,
) -> RequestMessage:
    """Sign one request with every half of `signed_by`; a half's tag is its label too."""
    fields: list[tuple[str, bytes]] = []
    covered = list(DEFAULT_COMPONENTS)
    if body:
        fields += [("content-length", str(len(body)).encode()), ("content-digest", content_digest(body).encode())]
        covered.append("content-digest")
    if binding is not None:
        fields.append(("pch-channel-binding", binding_header(binding)))
        covered.append("pch-channel-binding")
    message = RequestMessage(method, "https", authority, target, tuple(fields))
    inputs, signatures = {}, {}
    for half in signed_by:
        values = {
            "created": created_s,
            "expires": created_s + 60,
            "keyid": half.key.signer.key_id,
            "alg": half.key.signer.algorithm.name,
            "nonce": challenge,
            "tag": half.tag,
        } | half.params
        inputs[half.tag] = make_signature_params(covered if half.components is None else half.components, **values)
        signatures[half.tag] = sign(message, inputs[half.tag], half.key.signer)
    fields += [
        ("signature-input", serialise_signature_input(inputs).encode()),
        ("signature", serialise_signature(signatures).encode()),
    ]
    return RequestMessage(method, "https", authority, target, tuple(fields))


def members(message: RequestMessage, name: str) -> dict[str, bytes]:
    """Split a signature field of one line into its members by label, without the label."""
    found = {}
    for member in message.lines(name)[0].split(b", "):
        label, _, value = member.partition(b"=")
        found[label.decode()] = value
    return found


def with_halves(message: RequestMessage, halves_: dict[str, tuple[bytes, bytes]]) -> RequestMessage:
    """Put other members in place of the two signature fields: label to Signature-Input and Signature member."""
    kept = tuple(line for line in message.headers if line[0] not in {"signature-input", "signature"})
    inputs = b", ".join(label.encode() + b"=" + member for label, (member, _) in halves_.items())
    signatures = b", ".join(label.encode() + b"=" + member for label, (_, member) in halves_.items())
    headers = (*kept, ("signature-input", inputs), ("signature", signatures))
    return RequestMessage(message.method, message.scheme, message.authority, message.target, headers)


def half_of(message: RequestMessage, label: str) -> tuple[bytes, bytes]:
    """Take one half's members out of a message."""
    return members(message, "signature-input")[label], members(message, "signature")[label]
