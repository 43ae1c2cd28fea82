"""The request and response bodies of `/v1/kms`, which gRPC mirrors field for field (API.md §2).

Decoding refuses unknown fields, wrong types and values beyond their bounds (I-13). Texts that hold a kid, hex or base64
are decoded by the operation that uses them. A member that is `None` is left out of what is sent.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from kms.kid import MAX_KID_CHARS

MAX_KID_SET: Final = 64
MAX_SIGNATURES: Final = 4
MAX_BATCH_ITEMS: Final = 128
MAX_WRAPPED_KEY_BYTES: Final = 4096
MAX_CONSISTENCY_HASHES: Final = 128
MAX_HINTS: Final = 16
MAX_HINT_CHARS: Final = 256
MAX_HINTS_BYTES: Final = 4096
"""All hints of a key together, names and texts in UTF-8: they stay in memory as long as the key does."""

KidText = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KID_CHARS)]
PayloadB3 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z", description="BLAKE3 of the canonical payload, hex")]
HashHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z", description="SHA-256, hex")]
OpId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\Z",
        description="the caller's own UUID; a repeated request with it has one effect",
    ),
]
Base64Text = Annotated[str, msgspec.Meta(max_length=16_384, description="standard base64 with padding")]
Label = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
SignatureAlg = Literal["ed25519", "ml-dsa", "ecdsa-p256-sha256", "ml-dsa-44", "ml-dsa-87"]
KeyAlg = Literal[
    "ed25519", "ml-dsa", "hybrid", "x25519", "ml-kem", "ecdsa-p256-sha256", "ml-dsa-44", "ml-dsa-87", "hkdf"
]
VerifyMode = Literal["or", "and", "pq_only"]
HintName = Annotated[str, msgspec.Meta(max_length=MAX_HINT_CHARS)]
HintText = Annotated[str, msgspec.Meta(max_length=MAX_HINT_CHARS)]
HintNumber = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
PolicyHints = Annotated[dict[HintName, HintText | HintNumber | bool], msgspec.Meta(max_length=MAX_HINTS)]
TreeSize = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What every body has in common: it is frozen and an unknown field refuses it."""


# sign and verify


class KidSelector(Message, frozen=True):
    """One kid, or a set of which the first that may sign does. Exactly one member is given."""

    kid: KidText | None = None
    kid_set: Annotated[list[KidText], msgspec.Meta(min_length=1, max_length=MAX_KID_SET)] | None = None


class SignPolicy(Message, frozen=True):
    """What the caller asks for; the service's own policy may want more (PQ-I1)."""

    produce_hybrid: bool | None = None


class VerifyPolicy(Message, frozen=True):
    """The mode that the caller asks for; the service's own mode may be stricter."""

    mode: VerifyMode | None = None


class Signature(Message, frozen=True, omit_defaults=False):
    """One signature over the 32-byte digest."""

    alg: SignatureAlg
    signature_b64: Base64Text


class AttestationEvidence(Message, frozen=True, omit_defaults=False):
    """Where the key lives, as its provider can show it (I-12). `evidence` is base64."""

    class_: str = msgspec.field(name="class")
    evidence: str


class SignRequest(Message, frozen=True):
    """POST /sign."""

    kid_or_set: KidSelector
    payload_b3: PayloadB3
    policy: SignPolicy | None = None
    op_id: OpId | None = None


class SignResponse(Message, frozen=True):
    """What was signed and by which version."""

    sigs: list[Signature]
    kid: str
    attestation: AttestationEvidence | None = None


class VerifyRequest(Message, frozen=True):
    """POST /verify. Without `kid_or_set` the caller's tenant's keys are tried, newest first, at most 64."""

    payload_b3: PayloadB3
    sigs: Annotated[list[Signature], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)]
    policy: VerifyPolicy | None = None
    kid_or_set: KidSelector | None = None


class VerifyDetails(Message, frozen=True):
    """Which signatures were checked, under which mode, and with which key."""

    checked: list[str]
    satisfied_mode: VerifyMode | None = None
    kid: str | None = None


class VerifyResponse(Message, frozen=True, omit_defaults=False):
    """The verdict. `cache_age_ms` is there when cached public keys were used."""

    ok: bool
    details: VerifyDetails
    cache_age_ms: int | msgspec.UnsetType = msgspec.UNSET


class SignBatchRequest(Message, frozen=True):
    """POST /sign/batch."""

    items: Annotated[list[SignRequest], msgspec.Meta(min_length=1, max_length=MAX_BATCH_ITEMS)]


class VerifyBatchRequest(Message, frozen=True):
    """POST /verify/batch."""

    items: Annotated[list[VerifyRequest], msgspec.Meta(min_length=1, max_length=MAX_BATCH_ITEMS)]


# wrap and unwrap


class WrapRequest(Message, frozen=True):
    """POST /wrap: a small key to wrap, or the size of one to make."""

    kid: KidText
    plaintext_key_b64: Base64Text | None = None
    size: Annotated[int, msgspec.Meta(ge=16, le=MAX_WRAPPED_KEY_BYTES)] | None = None
    kem_mode: Literal["hybrid"] = "hybrid"
    op_id: OpId | None = None

    def __repr__(self) -> str:
        return f"WrapRequest(kid={self.kid!r})"


class WrapResponse(Message, frozen=True):
    """The envelope. `plaintext_key_b64` is never answered: a made key is had by unwrapping."""

    wrapped_b64: str
    alg: str
    kid: str


class UnwrapRequest(Message, frozen=True):
    """POST /unwrap."""

    kid: KidText
    wrapped_b64: Base64Text


class UnwrapResponse(Message, frozen=True):
    """The key that was wrapped."""

    plaintext_key_b64: str
    alg: str
    kid: str

    def __repr__(self) -> str:
        return f"UnwrapResponse(kid={self.kid!r})"


# keys


class PublicPart(Message, frozen=True):
    """One public key. `pubkey_b64` is the raw encoding of its standard, base64."""

    alg: str
    pubkey_b64: str


class PublicMaterial(Message, frozen=True):
    """The public key, or for a key of two halves both of them in `parts`, the classical one first."""

    alg: str
    pubkey_b64: str
    parts: list[PublicPart] = []


class CreateKeyRequest(Message, frozen=True):
    """POST /keys."""

    tenant: Label
    purpose: Label
    alg: KeyAlg
    policy_hints: PolicyHints | None = None
    op_id: OpId | None = None


class CreateKeyResponse(Message, frozen=True):
    """The kid of the first version and its public half."""

    kid: str
    public: PublicMaterial


class RotateRequest(Message, frozen=True):
    """POST /keys/{kid}/rotate. An empty body is the same as `{}`."""

    op_id: OpId | None = None


class RotateResponse(Message, frozen=True):
    """The new version and the one before it."""

    kid: str
    previous: str


class GetKeyResponse(Message, frozen=True, omit_defaults=False):
    """GET /keys/{kid}: public material only."""

    kid: str
    alg: str
    versions: list[str]
    public: PublicMaterial
    attestation_class: str | msgspec.UnsetType = msgspec.UNSET
    state: Literal["enabled", "disabled", "destroyed"] = "enabled"
    min_version: int = 1


class KeyStateRequest(Message, frozen=True):
    """POST /keys/{kid}/disable, /enable and /destroy; `min_version` fences every version below it."""

    op_id: OpId | None = None
    min_version: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


class KeyStateResponse(Message, frozen=True, omit_defaults=False):
    """The state after the change."""

    kid: str
    state: Literal["enabled", "disabled", "destroyed"]
    min_version: int


# The same with the kid of the path: what `Dispatcher.call` takes for these operations, and gRPC's messages for them.


class GetKeyRequest(Message, frozen=True):
    """The key, with or without a version, that `get_key` describes."""

    kid: KidText


class RotateKeyRequest(RotateRequest, frozen=True, kw_only=True):
    """The key that `rotate` gives a new version."""

    kid: KidText


class ChangeKeyStateRequest(KeyStateRequest, frozen=True, kw_only=True):
    """The key that `disable`, `enable` or `destroy` changes."""

    kid: KidText


class DeriveRequest(Message, frozen=True):
    """POST /derive: a child key of an `hkdf` key. The child's bytes never leave."""

    kid: KidText
    context: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:/-]+\Z")]
    alg: KeyAlg
    op_id: OpId | None = None


class DeriveResponse(Message, frozen=True):
    """The child's kid, which is the same for the same parent version, context and algorithm."""

    kid: str
    public: PublicMaterial


# tree heads


class CheckpointRequest(Message, frozen=True, omit_defaults=False):
    """POST /checkpoint: the next head of a log, for a key of purpose `tlog`."""

    kid: KidText
    origin: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\s+]+\Z")]
    old_size: TreeSize
    new_size: TreeSize
    root: HashHex
    consistency: Annotated[list[HashHex], msgspec.Meta(max_length=MAX_CONSISTENCY_HASHES)] = []


class CheckpointResponse(Message, frozen=True, omit_defaults=False):
    """The signed note, with an Ed25519 line and an ML-DSA-44 cosignature line."""

    kid: str
    note: str


# batches


class ErrorBody(Message, frozen=True):
    """The inside of the error envelope."""

    code: str
    message: str
    retryable: bool
    ts: str
    request_id: str
    hint: str | None = None


class SignBatchItem(Message, frozen=True):
    """The result of one item: one of the two members."""

    result: SignResponse | None = None
    error: ErrorBody | None = None


class VerifyBatchItem(Message, frozen=True):
    """The result of one item: one of the two members."""

    result: VerifyResponse | None = None
    error: ErrorBody | None = None


class SignBatchResponse(Message, frozen=True):
    """One result per item, in their order."""

    items: list[SignBatchItem]


class VerifyBatchResponse(Message, frozen=True):
    """One result per item, in their order."""

    items: list[VerifyBatchItem]
