"""An open session on a PKCS#11 token: every call to the module is here, on the thread that owns it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import (
    NoSuchKey,
    ObjectHandleInvalid,
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
)

from kms.errors import NotFound, StoreUnavailable
from kms.primitive import Primitive
from kms.providers.connection import ConnectionLostError, GiveUpError
from kms.providers.provider import Attestation, KeyHandle

if TYPE_CHECKING:
    from pathlib import Path

    from kms.kid import Kid

ATTESTATION_CLASS: Final = "pkcs11-attributes"
MARKER_LABEL: Final = "signet-kms token identity"
# Not 32 bytes long: no handle of a key can be it.
MARKER_ID: Final = b"signet-kms-token-identity"
MAX_CACHED_OBJECTS: Final = 1024

# The curves as DER object identifiers: 1.2.840.10045.3.1.7 (RFC 5480) and 1.3.101.112 (RFC 8410).
_CURVES: Final = {
    Primitive.ECDSA_P256_SHA256: (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, bytes.fromhex("06082a8648ce3d030107")),
    Primitive.ED25519: (KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, bytes.fromhex("06032b6570")),
}
_SIGNING: Final = {Primitive.ECDSA_P256_SHA256: Mechanism.ECDSA, Primitive.ED25519: Mechanism.EDDSA}
_NEEDED: Final = {primitive: {_CURVES[primitive][1], _SIGNING[primitive]} for primitive in _CURVES}
# DER OCTET STRING around the point: 65 bytes uncompressed, 32 bytes of RFC 8032.
_POINT_HEADERS: Final = {Primitive.ECDSA_P256_SHA256: b"\x04\x41", Primitive.ED25519: b"\x04\x20"}
_PRIVATE_TEMPLATE: Final = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.COPYABLE: False,
    Attribute.MODIFIABLE: False,
    Attribute.SIGN: True,
    Attribute.SIGN_RECOVER: False,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
_PUBLIC_TEMPLATE: Final = {
    Attribute.MODIFIABLE: False,
    Attribute.VERIFY: True,
    Attribute.ENCRYPT: False,
    Attribute.WRAP: False,
}
# What the token must say of every private key; it is read back, never assumed.
_CUSTODY: Final = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
}
_PIN_REFUSED: Final = (PinIncorrect, PinLocked, PinExpired, PinInvalid, PinLenRange)


class TokenSession:
    """A logged-in session. `marker_public` is the key by which this token is known again after a loss."""

    def __init__(self, module: Path, label: str, pin: str, expected_marker: bytes | None) -> None:
        """Open the token. Raises ConnectionLostError when it is away or another one, GiveUpError for a refused PIN.

        `expected_marker`: the token's marker when it was first opened, None at the first time; it is then made where
        it is missing.
        """
        try:
            # Initialises the module again when `close` or a failure left it without.
            self._library = pkcs11.lib(str(module))
            self._token = self._library.get_token(token_label=label)
            self._session = self._token.open(rw=True, user_pin=pin)
            self.primitives = self._claims()
            self._objects: dict[KeyHandle, Any] = {}
            self._marker = self._find_marker(expected_marker)
        except _PIN_REFUSED as error:
            self.close()
            raise GiveUpError from error
        except PKCS11Error as error:
            self.close()
            raise ConnectionLostError from error
        except (ConnectionLostError, StoreUnavailable):
            self.close()
            raise

    def close(self) -> None:
        """Let go of the module, which closes every session; never raises."""
        library = getattr(self, "_library", None)
        if library is not None and library.initialized:
            try:
                library.finalize()
            except PKCS11Error:
                return

    def generate(self, primitive: Primitive, kid: Kid, handle: KeyHandle) -> bytes:
        """Make a key pair that never leaves the token. Returns its raw public key."""
        try:
            return self._generate(primitive, str(kid), bytes.fromhex(handle))
        except PKCS11Error as error:
            raise self._fault() from error

    def sign(self, handle: KeyHandle, primitive: Primitive, message: bytes) -> bytes:
        """Sign; ECDSA over the SHA-256 of the message, which is computed here. Raises NotFound."""
        data = hashlib.sha256(message).digest() if primitive is Primitive.ECDSA_P256_SHA256 else message
        try:
            return self._sign(handle, primitive, data)
        except PKCS11Error as error:
            raise self._fault() from error

    def destroy(self, handle: KeyHandle) -> None:
        """Destroy both halves of a key; one that is gone is no error."""
        try:
            self._objects.pop(handle, None)
            for found in list(self._session.get_objects({Attribute.ID: bytes.fromhex(handle)})):
                found.destroy()
        except PKCS11Error as error:
            raise self._fault() from error
        self.check()

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation:
        """State what the token says of a key, signed by the token's marker key."""
        try:
            private = self._private(handle)
            public = next(iter(self._session.get_objects(_public_query(bytes.fromhex(handle)))))
            statement = {
                "attributes": {name.name.lower(): bool(private[name]) for name in sorted(_CUSTODY)},
                "class": ATTESTATION_CLASS,
                "model": self._token.model.strip(),
                "nonce": nonce.hex(),
                "point": public[Attribute.EC_POINT].hex(),
                "serial": self._token.serial.decode("ascii", "replace").strip(),
                "token_identity": self.marker_public.hex(),
            }
            content = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
            signature = self._marker.sign(hashlib.sha256(content).digest(), mechanism=Mechanism.ECDSA)
        except (PKCS11Error, StopIteration) as error:
            raise self._fault() from error
        return Attestation(ATTESTATION_CLASS, content + b"\n" + signature)

    def check(self) -> None:
        """Raise ConnectionLostError unless the token's marker is found afresh."""
        try:
            found = list(self._session.get_objects(_private_query(MARKER_ID)))
        except PKCS11Error as error:
            raise ConnectionLostError from error
        if len(found) != 1:
            raise ConnectionLostError

    def _claims(self) -> frozenset[Primitive]:
        mechanisms = self._token.slot.get_mechanisms()
        return frozenset(primitive for primitive, needed in _NEEDED.items() if needed <= mechanisms)

    def _find_marker(self, expected: bytes | None) -> Any:
        found = list(self._session.get_objects(_public_query(MARKER_ID)))
        if not found and expected is None:
            self._generate(Primitive.ECDSA_P256_SHA256, MARKER_LABEL, MARKER_ID)
            found = list(self._session.get_objects(_public_query(MARKER_ID)))
        if len(found) != 1:
            raise ConnectionLostError
        self.marker_public: bytes = bytes(found[0][Attribute.EC_POINT])
        if expected is not None and self.marker_public != expected:
            raise StoreUnavailable("another token has the name of ours", reason="token_replaced")
        marker = self._session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=MARKER_ID)
        self._refuse_if_it_comes_out(marker)
        return marker

    def _refuse_if_it_comes_out(self, private: Any) -> None:
        """Try to wrap a key out: modules exist that say EXTRACTABLE=False and do it all the same (I-1)."""
        _check_custody(private)
        try:
            wrapping: Any = self._session.generate_key(KeyType.AES, 256, store=False)
            wrapping.wrap_key(private)
        except PKCS11Error:
            return
        raise StoreUnavailable("the token lets private keys out", reason="token_exports_keys")

    def _generate(self, primitive: Primitive, label: str, key_id: bytes) -> bytes:
        key_type, mechanism, curve = _CURVES[primitive]
        parameters = self._session.create_domain_parameters(key_type, {Attribute.EC_PARAMS: curve}, local=True)
        public, private = parameters.generate_keypair(
            id=key_id,
            label=label,
            store=True,
            mechanism=mechanism,
            private_template=_PRIVATE_TEMPLATE,
            public_template=_PUBLIC_TEMPLATE,
        )
        try:
            _check_custody(private)
            return _raw_point(primitive, bytes(public[Attribute.EC_POINT]))
        except StoreUnavailable:
            private.destroy()
            public.destroy()
            raise

    def _sign(self, handle: KeyHandle, primitive: Primitive, data: bytes) -> bytes:
        for again in (False, True):
            private = self._private(handle)
            if private.key_type is not _CURVES[primitive][0]:
                raise NotFound("no such key of this algorithm", reason="handle_of_another_key")
            try:
                return bytes(private.sign(data, mechanism=_SIGNING[primitive]))
            except ObjectHandleInvalid:
                # Objects may be numbered afresh by another process's change: look it up once more.
                self._objects.pop(handle, None)
                if again:
                    raise
        raise AssertionError

    def _private(self, handle: KeyHandle) -> Any:
        """Find a private key by its CKA_ID. Raises NotFound when the token is there and the key is not."""
        private = self._objects.get(handle)
        if private is not None:
            return private
        try:
            private = self._session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=bytes.fromhex(handle))
        except NoSuchKey as error:
            self.check()
            raise NotFound("no such key") from error
        _check_custody(private)
        while len(self._objects) >= MAX_CACHED_OBJECTS:
            self._objects.pop(next(iter(self._objects)))
        self._objects[handle] = private
        return private

    def _fault(self) -> Exception:
        """Tell a lost token, as ConnectionLostError, from one that is there and could not do this."""
        try:
            self.check()
        except ConnectionLostError as lost:
            return lost
        return StoreUnavailable("the token could not do this", reason="token_fault")


def _check_custody(private: Any) -> None:
    if any(private[name] is not wanted for name, wanted in _CUSTODY.items()):
        raise StoreUnavailable("the token does not keep this key to itself", reason="token_key_extractable")


def _raw_point(primitive: Primitive, encoded: bytes) -> bytes:
    header = _POINT_HEADERS[primitive]
    if not encoded.startswith(header) or len(encoded) != len(header) + header[1]:
        raise StoreUnavailable("the token's public key has not its form", reason="token_bad_point")
    return encoded[len(header) :]


def _private_query(key_id: bytes) -> dict[Attribute, Any]:
    return {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id}


def _public_query(key_id: bytes) -> dict[Attribute, Any]:
    return {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: key_id}
