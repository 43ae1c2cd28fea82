from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyHint(_message.Message):
    __slots__ = ("text", "number", "flag")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: int
    flag: bool
    def __init__(self, text: _Optional[str] = ..., number: _Optional[int] = ..., flag: _Optional[bool] = ...) -> None: ...

class KidSelector(_message.Message):
    __slots__ = ("kid", "kid_set")
    KID_FIELD_NUMBER: _ClassVar[int]
    KID_SET_FIELD_NUMBER: _ClassVar[int]
    kid: str
    kid_set: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kid: _Optional[str] = ..., kid_set: _Optional[_Iterable[str]] = ...) -> None: ...

class SignPolicy(_message.Message):
    __slots__ = ("produce_hybrid",)
    PRODUCE_HYBRID_FIELD_NUMBER: _ClassVar[int]
    produce_hybrid: bool
    def __init__(self, produce_hybrid: _Optional[bool] = ...) -> None: ...

class SignRequest(_message.Message):
    __slots__ = ("kid_or_set", "payload_b3", "policy", "op_id")
    KID_OR_SET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_B3_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    kid_or_set: KidSelector
    payload_b3: str
    policy: SignPolicy
    op_id: str
    def __init__(self, kid_or_set: _Optional[_Union[KidSelector, _Mapping]] = ..., payload_b3: _Optional[str] = ..., policy: _Optional[_Union[SignPolicy, _Mapping]] = ..., op_id: _Optional[str] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("alg", "signature_b64")
    ALG_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_B64_FIELD_NUMBER: _ClassVar[int]
    alg: str
    signature_b64: str
    def __init__(self, alg: _Optional[str] = ..., signature_b64: _Optional[str] = ...) -> None: ...

class AttestationEvidence(_message.Message):
    __slots__ = ("evidence",)
    CLASS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    evidence: str
    def __init__(self, evidence: _Optional[str] = ..., **kwargs) -> None: ...

class SignResponse(_message.Message):
    __slots__ = ("sigs", "kid", "attestation")
    SIGS_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    sigs: _containers.RepeatedCompositeFieldContainer[Signature]
    kid: str
    attestation: AttestationEvidence
    def __init__(self, sigs: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ..., kid: _Optional[str] = ..., attestation: _Optional[_Union[AttestationEvidence, _Mapping]] = ...) -> None: ...

class VerifyPolicy(_message.Message):
    __slots__ = ("mode",)
    MODE_FIELD_NUMBER: _ClassVar[int]
    mode: str
    def __init__(self, mode: _Optional[str] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("payload_b3", "sigs", "policy", "kid_or_set")
    PAYLOAD_B3_FIELD_NUMBER: _ClassVar[int]
    SIGS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KID_OR_SET_FIELD_NUMBER: _ClassVar[int]
    payload_b3: str
    sigs: _containers.RepeatedCompositeFieldContainer[Signature]
    policy: VerifyPolicy
    kid_or_set: KidSelector
    def __init__(self, payload_b3: _Optional[str] = ..., sigs: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ..., policy: _Optional[_Union[VerifyPolicy, _Mapping]] = ..., kid_or_set: _Optional[_Union[KidSelector, _Mapping]] = ...) -> None: ...

class VerifyDetails(_message.Message):
    __slots__ = ("checked", "satisfied_mode", "kid")
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    SATISFIED_MODE_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    checked: _containers.RepeatedScalarFieldContainer[str]
    satisfied_mode: str
    kid: str
    def __init__(self, checked: _Optional[_Iterable[str]] = ..., satisfied_mode: _Optional[str] = ..., kid: _Optional[str] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("ok", "details", "cache_age_ms")
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    CACHE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    details: VerifyDetails
    cache_age_ms: int
    def __init__(self, ok: _Optional[bool] = ..., details: _Optional[_Union[VerifyDetails, _Mapping]] = ..., cache_age_ms: _Optional[int] = ...) -> None: ...

class WrapRequest(_message.Message):
    __slots__ = ("kid", "plaintext_key_b64", "size", "kem_mode", "op_id")
    KID_FIELD_NUMBER: _ClassVar[int]
    PLAINTEXT_KEY_B64_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    KEM_MODE_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    kid: str
    plaintext_key_b64: str
    size: int
    kem_mode: str
    op_id: str
    def __init__(self, kid: _Optional[str] = ..., plaintext_key_b64: _Optional[str] = ..., size: _Optional[int] = ..., kem_mode: _Optional[str] = ..., op_id: _Optional[str] = ...) -> None: ...

class WrapResponse(_message.Message):
    __slots__ = ("wrapped_b64", "alg", "kid")
    WRAPPED_B64_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    wrapped_b64: str
    alg: str
    kid: str
    def __init__(self, wrapped_b64: _Optional[str] = ..., alg: _Optional[str] = ..., kid: _Optional[str] = ...) -> None: ...

class UnwrapRequest(_message.Message):
    __slots__ = ("kid", "wrapped_b64")
    KID_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_B64_FIELD_NUMBER: _ClassVar[int]
    kid: str
    wrapped_b64: str
    def __init__(self, kid: _Optional[str] = ..., wrapped_b64: _Optional[str] = ...) -> None: ...

class UnwrapResponse(_message.Message):
    __slots__ = ("plaintext_key_b64", "alg", "kid")
    PLAINTEXT_KEY_B64_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    plaintext_key_b64: str
    alg: str
    kid: str
    def __init__(self, plaintext_key_b64: _Optional[str] = ..., alg: _Optional[str] = ..., kid: _Optional[str] = ...) -> None: ...

class CreateKeyRequest(_message.Message):
    __slots__ = ("tenant", "purpose", "alg", "policy_hints", "op_id")
    class PolicyHintsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: PolicyHint
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[PolicyHint, _Mapping]] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    POLICY_HINTS_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    purpose: str
    alg: str
    policy_hints: _containers.MessageMap[str, PolicyHint]
    op_id: str
    def __init__(self, tenant: _Optional[str] = ..., purpose: _Optional[str] = ..., alg: _Optional[str] = ..., policy_hints: _Optional[_Mapping[str, PolicyHint]] = ..., op_id: _Optional[str] = ...) -> None: ...

class PublicPart(_message.Message):
    __slots__ = ("alg", "pubkey_b64")
    ALG_FIELD_NUMBER: _ClassVar[int]
    PUBKEY_B64_FIELD_NUMBER: _ClassVar[int]
    alg: str
    pubkey_b64: str
    def __init__(self, alg: _Optional[str] = ..., pubkey_b64: _Optional[str] = ...) -> None: ...

class PublicMaterial(_message.Message):
    __slots__ = ("alg", "pubkey_b64", "parts")
    ALG_FIELD_NUMBER: _ClassVar[int]
    PUBKEY_B64_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    alg: str
    pubkey_b64: str
    parts: _containers.RepeatedCompositeFieldContainer[PublicPart]
    def __init__(self, alg: _Optional[str] = ..., pubkey_b64: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[PublicPart, _Mapping]]] = ...) -> None: ...

class CreateKeyResponse(_message.Message):
    __slots__ = ("kid", "public")
    KID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    kid: str
    public: PublicMaterial
    def __init__(self, kid: _Optional[str] = ..., public: _Optional[_Union[PublicMaterial, _Mapping]] = ...) -> None: ...

class RotateKeyRequest(_message.Message):
    __slots__ = ("op_id", "kid")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    kid: str
    def __init__(self, op_id: _Optional[str] = ..., kid: _Optional[str] = ...) -> None: ...

class RotateResponse(_message.Message):
    __slots__ = ("kid", "previous")
    KID_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    kid: str
    previous: str
    def __init__(self, kid: _Optional[str] = ..., previous: _Optional[str] = ...) -> None: ...

class GetKeyRequest(_message.Message):
    __slots__ = ("kid",)
    KID_FIELD_NUMBER: _ClassVar[int]
    kid: str
    def __init__(self, kid: _Optional[str] = ...) -> None: ...

class GetKeyResponse(_message.Message):
    __slots__ = ("kid", "alg", "versions", "public", "attestation_class", "state", "min_version")
    KID_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_CLASS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    kid: str
    alg: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    public: PublicMaterial
    attestation_class: str
    state: str
    min_version: int
    def __init__(self, kid: _Optional[str] = ..., alg: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ..., public: _Optional[_Union[PublicMaterial, _Mapping]] = ..., attestation_class: _Optional[str] = ..., state: _Optional[str] = ..., min_version: _Optional[int] = ...) -> None: ...

class ChangeKeyStateRequest(_message.Message):
    __slots__ = ("op_id", "min_version", "kid")
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    op_id: str
    min_version: int
    kid: str
    def __init__(self, op_id: _Optional[str] = ..., min_version: _Optional[int] = ..., kid: _Optional[str] = ...) -> None: ...

class KeyStateResponse(_message.Message):
    __slots__ = ("kid", "state", "min_version")
    KID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    kid: str
    state: str
    min_version: int
    def __init__(self, kid: _Optional[str] = ..., state: _Optional[str] = ..., min_version: _Optional[int] = ...) -> None: ...

class DeriveRequest(_message.Message):
    __slots__ = ("kid", "context", "alg", "op_id")
    KID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    kid: str
    context: str
    alg: str
    op_id: str
    def __init__(self, kid: _Optional[str] = ..., context: _Optional[str] = ..., alg: _Optional[str] = ..., op_id: _Optional[str] = ...) -> None: ...

class DeriveResponse(_message.Message):
    __slots__ = ("kid", "public")
    KID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    kid: str
    public: PublicMaterial
    def __init__(self, kid: _Optional[str] = ..., public: _Optional[_Union[PublicMaterial, _Mapping]] = ...) -> None: ...

class SignBatchRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[SignRequest]
    def __init__(self, items: _Optional[_Iterable[_Union[SignRequest, _Mapping]]] = ...) -> None: ...

class ErrorBody(_message.Message):
    __slots__ = ("code", "message", "retryable", "ts", "request_id", "hint")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    TS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retryable: bool
    ts: str
    request_id: str
    hint: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ..., ts: _Optional[str] = ..., request_id: _Optional[str] = ..., hint: _Optional[str] = ...) -> None: ...

class SignBatchItem(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: SignResponse
    error: ErrorBody
    def __init__(self, result: _Optional[_Union[SignResponse, _Mapping]] = ..., error: _Optional[_Union[ErrorBody, _Mapping]] = ...) -> None: ...

class SignBatchResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[SignBatchItem]
    def __init__(self, items: _Optional[_Iterable[_Union[SignBatchItem, _Mapping]]] = ...) -> None: ...

class VerifyBatchRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[VerifyRequest]
    def __init__(self, items: _Optional[_Iterable[_Union[VerifyRequest, _Mapping]]] = ...) -> None: ...

class VerifyBatchItem(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: VerifyResponse
    error: ErrorBody
    def __init__(self, result: _Optional[_Union[VerifyResponse, _Mapping]] = ..., error: _Optional[_Union[ErrorBody, _Mapping]] = ...) -> None: ...

class VerifyBatchResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[VerifyBatchItem]
    def __init__(self, items: _Optional[_Iterable[_Union[VerifyBatchItem, _Mapping]]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("kid", "origin", "old_size", "new_size", "root", "consistency")
    KID_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    OLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NEW_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    kid: str
    origin: str
    old_size: int
    new_size: int
    root: str
    consistency: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kid: _Optional[str] = ..., origin: _Optional[str] = ..., old_size: _Optional[int] = ..., new_size: _Optional[int] = ..., root: _Optional[str] = ..., consistency: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("kid", "note")
    KID_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    kid: str
    note: str
    def __init__(self, kid: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class ErrorEnvelope(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: ErrorBody
    def __init__(self, error: _Optional[_Union[ErrorBody, _Mapping]] = ...) -> None: ...
