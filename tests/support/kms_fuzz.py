"""Fuzz targets of the key service: each takes any bytes and raises only where the code under it is wrong.

Every target has seeds that it accepts: a fuzzer begins at good input, and a test shows that it is good.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa

from kms.audit_event import AuditEvent
from kms.audit_record import AuditRecordError, encode_event, parse_record, record_hash
from kms.base64_text import encode_base64
from kms.bundle import judge, read_bundle
from kms.capability import read_token
from kms.errors import KmsError
from kms.grpc_codec import request_from_bytes, response_to_bytes
from kms.http_api import decode_request, route
from kms.http_body import inflate
from kms.kem_envelope import KemPublic, open_envelope, seal
from kms.kid import parse_kid, parse_kid_or_name
from kms.messages import Signature
from kms.operation_table import OPERATIONS
from kms.primitive import Primitive
from kms.providers.inmem import InMemoryProvider
from kms.providers.provider import KeyHandle
from kms.public_keys import load_verifying_key
from tests.support.sealed_fuzz import fuzz_sealed_key, fuzz_sealed_root
from tests.support.token_fuzz import PRIMITIVES, VERBS, fuzz_pkcs11_adapter

KID: Final = "core/app/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v3"
KEM_KID: Final = parse_kid("core/kem/x25519/3c8b1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v2")
DIGEST: Final = "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"
MAX_BODY_BYTES: Final = 65_536
RATIO_CAP: Final = 10
JSON: Final = b"application/json"
_CODINGS: Final = (None, b"gzip", b"deflate", b"br", b"gzip, gzip")


def fuzz_json_api(data: bytes) -> None:
    """Take the first bytes as operation and content coding, the rest as the body."""
    if len(data) < 2:
        return
    operation, coding = OPERATIONS[data[0] % len(OPERATIONS)], _CODINGS[data[1] % len(_CODINGS)]
    try:
        body = inflate(data[2:], coding, MAX_BODY_BYTES, RATIO_CAP)
        assert len(body) <= MAX_BODY_BYTES, "past the bound"
        assert coding is None or len(body) <= RATIO_CAP * max(1, len(data) - 2), "past the ratio"
        request = decode_request(operation, KID, body, JSON)
    except KmsError:
        return
    assert msgspec.json.decode(msgspec.json.encode(request), type=operation.request) == request


def fuzz_json_path(data: bytes) -> None:
    """Take a path, as it would arrive."""
    try:
        operation, kid = route(data, "POST")
        if operation.names_key:
            assert str(parse_kid_or_name(kid)) == kid
    except KmsError:
        return


def fuzz_grpc_api(data: bytes) -> None:
    """Take the first byte as the method, the rest as its message."""
    if not data:
        return
    kind = OPERATIONS[data[0] % len(OPERATIONS)].request
    try:
        request = request_from_bytes(data[1:], kind)
    except KmsError:
        return
    # What was taken is what HTTP would have taken.
    assert msgspec.json.decode(msgspec.json.encode(request), type=kind) == request


class _Bundles:
    """One hybrid key and the one bundle of it that is valid."""

    def __init__(self) -> None:
        classical = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
        quantum = mldsa.MLDSA65PrivateKey.from_seed_bytes(bytes(32))
        digest = bytes.fromhex(DIGEST)
        self.valid = {"ed25519": classical.sign(digest), "ml-dsa": quantum.sign(digest)}
        self.keys = {
            Primitive.ED25519: load_verifying_key(Primitive.ED25519, classical.public_key().public_bytes_raw()),
            Primitive.ML_DSA_65: load_verifying_key(Primitive.ML_DSA_65, quantum.public_key().public_bytes_raw()),
        }
        self.seed = json.dumps(
            [{"alg": alg, "signature_b64": encode_base64(made)} for alg, made in self.valid.items()]
        ).encode()


BUNDLES: Final = _Bundles()


def fuzz_bundle(data: bytes) -> None:
    """Take a bundle as JSON. Nothing satisfies a mode but the signatures that were made."""
    try:
        signatures = msgspec.json.decode(data, type=list[Signature])
        bundle = read_bundle(signatures)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KmsError):
        return
    mine = {Primitive.ED25519: BUNDLES.valid["ed25519"], Primitive.ML_DSA_65: BUNDLES.valid["ml-dsa"]}
    good = {part for part, made in mine.items() if bundle.get(part) == made}
    digest = bytes.fromhex(DIGEST)
    assert judge(BUNDLES.keys, bundle, "or", digest).ok == bool(good)
    assert judge(BUNDLES.keys, bundle, "and", digest).ok == (len(good) == len(mine))
    assert judge(BUNDLES.keys, bundle, "pq_only", digest).ok == (Primitive.ML_DSA_65 in good)


class _Envelopes:
    """One KEM key and an envelope sealed to it."""

    plaintext = bytes(range(32))

    def __init__(self) -> None:
        self.provider = InMemoryProvider()
        self.classical = self.provider.generate(Primitive.X25519, KEM_KID)
        self.quantum = self.provider.generate(Primitive.ML_KEM_768, KEM_KID)
        self.public = KemPublic(self.classical.public, self.quantum.public)
        self.seed = seal(KEM_KID, self.public, self.plaintext, b"\x07" * 12)

    def open(self, data: bytes) -> bytes:
        handles: tuple[KeyHandle, KeyHandle] = (self.classical.handle, self.quantum.handle)
        provider = self.provider
        return open_envelope(
            KEM_KID,
            self.public,
            data,
            lambda peer: provider.agree(handles[0], peer),
            lambda ciphertext: provider.decapsulate(handles[1], ciphertext),
        )


ENVELOPES: Final = _Envelopes()


def fuzz_envelope(data: bytes) -> None:
    """Take an envelope. Nothing opens but the one that was sealed."""
    try:
        ENVELOPES.open(data)
    except KmsError:
        return
    assert data == ENVELOPES.seed


def fuzz_capability(data: bytes) -> None:
    """Take a token as text."""
    try:
        token = read_token(data.decode("latin-1"))
    except KmsError:
        return
    assert token.serialize() == data.decode("latin-1")


def fuzz_audit_record(data: bytes) -> None:
    """Take a line of the audit log."""
    try:
        parse_record(data)
    except AuditRecordError:
        return
    assert len(record_hash(data)) == 32


def _capability_seed() -> bytes:
    from kms.mint import Grant, mint
    from kms.root_key import RootKey

    root = RootKey("r1a2b3c4", bytes(32), 1_700_000_000, 1_702_000_000)
    return mint(root, Grant(("kms:sign",), ("core",), expires_at_s=1_700_003_600), 1_700_000_000, lambda n: bytes(n))[
        0
    ].encode()


def _seeds() -> dict[str, list[bytes]]:
    sign = json.dumps({"kid_or_set": {"kid": KID}, "payload_b3": DIGEST}).encode()
    create = json.dumps({"tenant": "core", "purpose": "app", "alg": "hybrid"}).encode()
    index = {operation.op: number for number, operation in enumerate(OPERATIONS)}
    forms = {"sign": sign, "create_key": create}
    bodies = [bytes([index[op], 0]) + body for op, body in forms.items()]
    bodies += [bytes([index["sign"], 1]) + gzip.compress(sign), bytes([index["sign"], 2]) + zlib.compress(sign)]
    by_op = {operation.op: operation for operation in OPERATIONS}
    messages = [
        bytes([index[op]]) + response_to_bytes(msgspec.json.decode(body, type=by_op[op].request))
        for op, body in forms.items()
    ]
    record = encode_event(AuditEvent("sign", "ok", "", "core", KID, "ed25519", DIGEST, "", None), 0, "", 1_700_000)
    return {
        "json_api": bodies,
        "json_path": [b"/v1/kms/sign", b"/v1/kms/keys/" + KID.partition("#")[0].encode() + b"/rotate"],
        "grpc_api": messages,
        "codec_bundle": [BUNDLES.seed],
        "envelope": [ENVELOPES.seed],
        "capability": [_capability_seed()],
        "audit_record": [record],
        "sealed_key": [],
        "sealed_root": [],
        "pkcs11_adapter": [
            bytes([verb, primitive]) for verb in range(len(VERBS)) for primitive in range(len(PRIMITIVES))
        ],
    }


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "json_api": fuzz_json_api,
    "json_path": fuzz_json_path,
    "grpc_api": fuzz_grpc_api,
    "codec_bundle": fuzz_bundle,
    "envelope": fuzz_envelope,
    "capability": fuzz_capability,
    "audit_record": fuzz_audit_record,
    "sealed_key": fuzz_sealed_key,
    "sealed_root": fuzz_sealed_root,
    "pkcs11_adapter": fuzz_pkcs11_adapter,
}
SEEDS: Final = _seeds()
