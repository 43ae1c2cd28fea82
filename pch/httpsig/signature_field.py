"""The Signature field, RFC 9421 §4.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pch.httpsig.errors import FieldSyntaxError
from pch.httpsig.signature_input import MAX_LABELS
from pch.httpsig.structured_field import check_key, parse_byte_sequences, serialise_byte_sequence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def parse_signature(lines: Sequence[bytes]) -> dict[str, bytes]:
    """Parse the Signature field, RFC 9421 §4.2: signatures by label.

    `lines`: the field's raw lines; none gives no signatures. Raises FieldSyntaxError, DuplicateError, and
    NonCanonicalError for base64 that an encoder would not emit.
    """
    return parse_byte_sequences(lines, MAX_LABELS)


def serialise_signature(signatures: Mapping[str, bytes]) -> str:
    """Serialise the Signature field, RFC 9421 §4.2. Raises FieldSyntaxError for a label that is no key."""
    if not signatures:
        raise FieldSyntaxError("no signatures to serialise")
    for label in signatures:
        check_key(label)
    return ", ".join([f"{label}={serialise_byte_sequence(value)}" for label, value in signatures.items()])
