"""Judge a bundle of signatures over one digest against one version of a key (IDB.md §3.11, I-7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kms.base64_text import decode_base64
from kms.errors import BadRequest
from kms.policy import demands_every_part, demands_post_quantum
from kms.primitive import PRIMITIVES_BY_WIRE_NAME, WIRE_NAMES
from kms.public_keys import BadSignature, check_signature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kms.messages import Signature, VerifyMode
    from kms.primitive import Primitive
    from kms.public_keys import VerifyingKey

Bundle = dict["Primitive", bytes]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the mode is satisfied, and the algorithms whose signatures were looked at."""

    ok: bool
    checked: tuple[str, ...]


def read_bundle(signatures: Sequence[Signature]) -> Bundle:
    """Decode a bundle. Raises BadRequest when it is empty, for bad base64, for two signatures of one algorithm."""
    if not signatures:
        raise BadRequest("a bundle holds at least one signature")
    bundle: Bundle = {}
    for signature in signatures:
        primitive = PRIMITIVES_BY_WIRE_NAME[signature.alg]
        if primitive in bundle:
            raise BadRequest("a bundle holds one signature of each algorithm")
        bundle[primitive] = decode_base64(signature.signature_b64, "signature_b64")
    return bundle


def judge(keys: Mapping[Primitive, VerifyingKey], bundle: Bundle, mode: VerifyMode, digest: bytes) -> Verdict:
    """Judge a bundle. `keys`: the verifying keys of one version, by part.

    `or`: one valid signature is enough. `and`: every part has signed, one of them post-quantum, and all are valid.
    `pq_only`: every post-quantum signature of the bundle is valid, and there is one; classical ones do not count.
    Signatures of algorithms that the key does not have are not looked at.
    """
    mine = [primitive for primitive in keys if primitive in bundle]
    if demands_every_part(mode):
        if len(mine) != len(keys):
            return Verdict(ok=False, checked=())
    elif demands_post_quantum(mode):
        mine = [primitive for primitive in mine if primitive.post_quantum]
    if not mine or (demands_post_quantum(mode) and not any(primitive.post_quantum for primitive in mine)):
        return Verdict(ok=False, checked=())
    checked: list[str] = []
    valid = 0
    for primitive in mine:
        checked.append(WIRE_NAMES[primitive])
        try:
            check_signature(keys[primitive], bundle[primitive], digest)
        except BadSignature:
            if mode != "or":
                break
        else:
            valid += 1
    return Verdict(ok=valid == len(mine) if mode != "or" else valid > 0, checked=tuple(checked))
