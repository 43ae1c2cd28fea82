"""Signing keys in a PKCS#11 token (an HSM, a smart card), named by an RFC 7512 URI.

    pkcs11:token=hsm;object=alice?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin

Needs the optional package `python-pkcs11`. Its modules are not safe to call from several threads, so one thread owns
the session for the signer's life. It is a daemon: a token that hangs keeps no program from ending.
"""

from __future__ import annotations

import base64
import hashlib
import queue
import re
import stat
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote

from pch.algorithms import ECDSA_P256_SHA256, ED25519
from pch.client.errors import InvalidRequest, TokenFailed, Unsupported
from pch.errors import BadSignature
from pch.keys import KeyFormatError, public_key_from_jwk, thumbprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from pch.algorithms import Algorithm, KeyId

T = TypeVar("T")
SCHEME: Final = "pkcs11:"
MAX_URI_CHARS: Final = 2048
MAX_PIN_BYTES: Final = 256
TOKEN_TIMEOUT_S: Final = 15.0
"""How long one operation of the token may take: opening, or a signature."""

_PATH_ATTRIBUTES: Final = frozenset({"token", "object", "id"})
_QUERY_ATTRIBUTES: Final = frozenset({"module-path", "pin-source"})
_P256_OID: Final = bytes.fromhex("06082a8648ce3d030107")
_PROBE: Final = b"PCH/1 key check"


@dataclass(frozen=True, slots=True)
class TokenUri:
    """What a URI names: a token by its label, a key by its label or id, the module, and the file that holds the PIN."""

    token: str
    label: str | None
    key_id: bytes | None
    module: str
    pin_file: Path | None


def parse_uri(uri: str) -> TokenUri:
    """Read a PKCS#11 URI, RFC 7512 §2.3, of the attributes that are used here.

    Raises `InvalidRequest` for others (`pin-value` among them: a PIN does not belong on a command line).
    """
    if len(uri) > MAX_URI_CHARS or not uri.startswith(SCHEME):
        raise InvalidRequest("a key in a token is named by a pkcs11: URI")
    path, _, query = uri.removeprefix(SCHEME).partition("?")
    named = _attributes(path.split(";"), _PATH_ATTRIBUTES) | _attributes(query.split("&"), _QUERY_ATTRIBUTES)
    if "token" not in named or "module-path" not in named or not {"object", "id"} & named.keys():
        raise InvalidRequest("a pkcs11: URI names token, object or id, and module-path")
    pin_source = named.get("pin-source")
    return TokenUri(
        token=_text(named["token"]),
        label=_text(named["object"]) if "object" in named else None,
        key_id=named.get("id"),
        module=_text(named["module-path"]),
        pin_file=None if pin_source is None else Path(_text(pin_source).removeprefix("file:")),
    )


def _attributes(parts: list[str], known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not part:
            continue
        if not equals or name not in known or name in found:
            raise InvalidRequest("the pkcs11: URI has an attribute that is unknown here, or one twice")
        found[name] = unquote(value, encoding="latin-1").encode("latin-1")
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("the pkcs11: URI is not UTF-8") from error


class Pkcs11Signer:
    """A private key in a token. Close it to log out; one thread of its own does all the token's work."""

    def __init__(self, uri: str) -> None:
        """Log in and find the key.

        Raises `InvalidRequest` (URI, PIN file, or no such key), `Unsupported` (no python-pkcs11; a key that is neither
        Ed25519 nor P-256, such as ML-DSA) and `TokenFailed`.
        """
        named = parse_uri(uri)
        pin = None if named.pin_file is None else _read_pin(named.pin_file)
        self._thread = _TokenThread()
        self._session: Any = None
        try:
            self._key, self._algorithm, jwk = self._on_thread(lambda: self._open(named, pin))
            self._jwk, self._key_id = jwk, thumbprint(jwk)
            public_key_from_jwk(jwk).verify(self.sign(_PROBE), _PROBE)
        except (KeyFormatError, BadSignature) as error:
            self.close()
            raise TokenFailed("the token's public key is not that of its private key") from error
        except BaseException:
            self.close()
            raise

    @property
    def algorithm(self) -> Algorithm:
        """Ed25519 or ECDSA P-256, as the token's key is."""
        return self._algorithm

    @property
    def key_id(self) -> KeyId:
        """The RFC 7638 thumbprint of the token's public key."""
        return self._key_id

    @property
    def public_jwk(self) -> dict[str, str]:
        """The token's public key, to be registered."""
        return dict(self._jwk)

    def sign(self, data: bytes) -> bytes:
        """Sign `data` in the token. Returns 64 bytes. Raises `TokenFailed`."""
        signature = self._on_thread(lambda: self._sign(data))
        if len(signature) != self._algorithm.signature_bytes:
            raise TokenFailed("the token gave a signature of the wrong length")
        return signature

    def close(self) -> None:
        """Log out and end the thread; the signer cannot sign any more."""
        try:
            if self._session is not None:
                self._on_thread(self._session.close)
        except TokenFailed:
            # The token is gone, and the session with it.
            pass
        finally:
            self._session = None
            self._thread.stop()

    def _on_thread(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread that owns the token. Raises `TokenFailed` past its time, and for any token error."""
        try:
            return self._thread.run(work)
        except FutureTimeoutError as error:
            raise TokenFailed("the token did not answer in time") from error
        except (InvalidRequest, Unsupported):
            raise
        except Exception as error:  # noqa: BLE001  # modules fail in every way; each of them means: not signed
            # Not chained: the class says enough, and a module's text may name what is nobody's business.
            raise TokenFailed(f"the token refused: {type(error).__name__}") from None

    def _open(self, named: TokenUri, pin: str | None) -> tuple[Any, Algorithm, dict[str, str]]:
        try:
            import pkcs11
        except ImportError as error:
            raise Unsupported("keys in a token need the package python-pkcs11 (signet[pkcs11])") from error
        self._session = pkcs11.lib(named.module).get_token(token_label=named.token).open(user_pin=pin)
        which = {pkcs11.Attribute.LABEL: named.label, pkcs11.Attribute.ID: named.key_id}
        key = self._find(pkcs11.ObjectClass.PRIVATE_KEY, which)
        algorithm, jwk = _public_part(pkcs11, self._find(pkcs11.ObjectClass.PUBLIC_KEY, which))
        return key, algorithm, jwk

    def _find(self, kind: Any, which: dict[Any, Any]) -> Any:
        import pkcs11

        wanted = {pkcs11.Attribute.CLASS: kind} | {name: value for name, value in which.items() if value is not None}
        # All of them: a search that is left before its end stays open in the token.
        found = list(self._session.get_objects(wanted))
        if not found:
            raise InvalidRequest("the token has no key pair of that name")
        if len(found) > 1:
            raise InvalidRequest("the token has several keys of that name; give their id")
        return found[0]

    def _sign(self, data: bytes) -> bytes:
        import pkcs11

        if self._algorithm is ED25519:
            return bytes(self._key.sign(data, mechanism=pkcs11.Mechanism.EDDSA))
        # The token gets the digest: many of them do ECDSA but no hash. It answers r ‖ s, as RFC 9421 §3.3.4 wants it.
        return bytes(self._key.sign(hashlib.sha256(data).digest(), mechanism=pkcs11.Mechanism.ECDSA))


class _TokenThread:
    """The thread that owns a token; owner of the queue is whoever made it."""

    def __init__(self) -> None:
        # At most as many entries as threads wait, each for TOKEN_TIMEOUT_S; None ends the thread.
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._stopped = False
        threading.Thread(target=self._serve, name="pkcs11", daemon=True).start()

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` there. Raises what it raises, RuntimeError once stopped, and TimeoutError."""
        if self._stopped:
            raise RuntimeError("the token is closed")
        done: Future[T] = Future()
        self._work.put((work, done))
        return done.result(TOKEN_TIMEOUT_S)

    def stop(self) -> None:
        """End the thread when it has done what it was given."""
        self._stopped = True
        self._work.put(None)

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  # it belongs to the thread that waits
                done.set_exception(error)


def _public_part(pkcs11: Any, public: Any) -> tuple[Algorithm, dict[str, str]]:
    """Read the token's public key as a JWK. Raises `Unsupported` for other types than Ed25519 and P-256."""
    if public.key_type is pkcs11.KeyType.EC_EDWARDS:
        point = _octets(bytes(public[pkcs11.Attribute.EC_POINT]), 32)
        return ED25519, {"kty": "OKP", "crv": "Ed25519", "x": _base64url(point)}
    if public.key_type is pkcs11.KeyType.EC and bytes(public[pkcs11.Attribute.EC_PARAMS]) == _P256_OID:
        point = _octets(bytes(public[pkcs11.Attribute.EC_POINT]), 65)
        return ECDSA_P256_SHA256, {
            "kty": "EC",
            "crv": "P-256",
            "x": _base64url(point[1:33]),
            "y": _base64url(point[33:]),
        }
    raise Unsupported("keys in a token are ed25519 or ecdsa-p256-sha256 here; ML-DSA keys are kept in files")


def _octets(value: bytes, length: int) -> bytes:
    """Unwrap the DER OCTET STRING around a point, PKCS#11 §2.3.3; some tokens leave the wrapping out."""
    if len(value) == length + 2 and value[:2] == bytes((0x04, length)):
        value = value[2:]
    if len(value) != length:
        raise Unsupported("the token's public key has an unknown form")
    return value


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


def _read_pin(path: Path) -> str:
    """Read a PIN from a file that is its owner's alone. Raises `InvalidRequest`, without the PIN."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise InvalidRequest("the PIN's file is open to other users; chmod 600 it")
            content = file.read(MAX_PIN_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"the PIN's file cannot be read: {error.strerror}") from error
    pin = content.removesuffix(b"\n")
    if len(content) > MAX_PIN_BYTES or not re.fullmatch(rb"[\x20-\x7e]+", pin):
        raise InvalidRequest("the PIN's file does not hold one line of ASCII")
    return pin.decode("ascii")
