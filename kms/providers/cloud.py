"""Wrapping under a key of a cloud's key service, the AWS KMS API: `wrap` and `unwrap` only (IDB.md §3.5).

One cloud key serves every kid. What tells the kids apart is the encryption context, which the service authenticates:
the handle, which is bound to its kid, and the SHA-256 of what the caller binds. The context stands in the service's
own log in the clear, so no kid and no tenant is in it.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    NoCredentialsError,
    ReadTimeoutError,
)

from kms.errors import Backpressure, BadRequest, StoreUnavailable, Timeout, TooLarge, Unsupported
from kms.primitive import Primitive
from kms.providers.key_handle import check_handle_form, new_handle
from kms.providers.provider import Attestation, KeyHandle, ProviderKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kms.kid import Kid

CONNECT_TIMEOUT_S: Final = 0.5
READ_TIMEOUT_S: Final = 1.5
MAX_CONNECTIONS: Final = 16
MAX_PLAINTEXT_BYTES: Final = 4096
MAX_WRAPPED_BYTES: Final = 6144
MAX_AAD_BYTES: Final = 4096
KEY_STATE_TTL_S: Final = 1.0
"""How long the cloud key's state is believed: a key that was disabled there stops being used here within this time."""

# The halves of a KEM key: what names a wrapping key of a kid here, without a public half.
WRAPPING_PRIMITIVES: Final = frozenset({Primitive.X25519, Primitive.ML_KEM_768})
_USAGE: Final = "ENCRYPT_DECRYPT"
_SPEC: Final = "SYMMETRIC_DEFAULT"
_ALTERED: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_DISABLED: Final = frozenset({"DisabledException", "KMSInvalidStateException", "NotFoundException"})
_BUSY: Final = frozenset({"ThrottlingException", "LimitExceededException", "KeyUnavailableException"})
_DENIED: Final = frozenset(
    {"AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException"}
)


class CloudProvider:
    """The provider `cloud`. Any thread may use its client; each call is bounded in time and not repeated."""

    name = "cloud"
    attestation_class: str | None = None
    primitives: frozenset[Primitive] = WRAPPING_PRIMITIVES
    wraps_itself = True
    in_process = False
    max_keys: int | None = None

    def __init__(self, client: Any, key_id: str, monotonic_s: Callable[[], float]) -> None:
        self._client = client
        self._key_id = key_id
        self._monotonic_s = monotonic_s
        # Guards when the key's state was last seen to be Enabled.
        self._lock = threading.Lock()
        self._enabled_until_s = float("-inf")
        self._closed = False

    def generate(self, primitive: Primitive, kid: Kid) -> ProviderKey:
        """Name a wrapping key of `kid`, by a handle for the encryption context; see `Provider.primitives`."""
        if primitive not in WRAPPING_PRIMITIVES:
            raise Unsupported("this provider wraps and unwraps only")
        self.check()
        return ProviderKey(primitive, new_handle(kid, primitive), b"")

    def wrap(self, handle: KeyHandle, plaintext: bytes, aad: bytes) -> bytes:
        """Encrypt up to 4096 bytes under the cloud's key, bound to handle and `aad`. See `Provider.wrap`."""
        if not 0 < len(plaintext) <= MAX_PLAINTEXT_BYTES:
            raise TooLarge("what is wrapped must have 1 to 4096 bytes")
        context = _context(handle, aad)
        self._require_enabled()
        with _cloud_errors():
            answer = self._client.encrypt(KeyId=self._key_id, Plaintext=plaintext, EncryptionContext=context)
            return bytes(answer["CiphertextBlob"])

    def unwrap(self, handle: KeyHandle, wrapped: bytes, aad: bytes) -> bytes:
        """Decrypt what `wrap` gave for the same handle and `aad`, and nothing of another cloud key."""
        if not 0 < len(wrapped) <= MAX_WRAPPED_BYTES:
            raise BadRequest("what is unwrapped has a wrong length", reason="unwrap_failed")
        context = _context(handle, aad)
        self._require_enabled()
        with _cloud_errors(_unwrap_error):
            answer = self._client.decrypt(KeyId=self._key_id, CiphertextBlob=wrapped, EncryptionContext=context)
            return bytes(answer["Plaintext"])

    def sign(self, handle: KeyHandle, primitive: Primitive, message: bytes) -> NoReturn:
        """Refuse."""
        raise Unsupported("this provider wraps and unwraps only")

    def agree(self, handle: KeyHandle, peer_public: bytes) -> NoReturn:
        """Refuse."""
        raise Unsupported("this provider wraps and unwraps only")

    def decapsulate(self, handle: KeyHandle, ciphertext: bytes) -> NoReturn:
        """Refuse."""
        raise Unsupported("this provider wraps and unwraps only")

    def derive(self, handle: KeyHandle, info: bytes, primitive: Primitive, kid: Kid) -> NoReturn:
        """Refuse."""
        raise Unsupported("this provider wraps and unwraps only")

    def destroy(self, handle: KeyHandle) -> None:
        """Do nothing: a handle is a name. The record's state keeps it from use; the cloud's key serves the others."""

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation | None:
        """Attest nothing: the service gives no evidence for a symmetric key. Raises NotFound for a malformed handle."""
        check_handle_form(handle)
        return None

    def check(self) -> None:
        """Ask the service for the key's state; raise StoreUnavailable unless it is enabled and encrypts."""
        if self._closed:
            raise StoreUnavailable("the provider is closed", reason="closed")
        asked_s = self._monotonic_s()
        with _cloud_errors():
            key = self._client.describe_key(KeyId=self._key_id)["KeyMetadata"]
        # The service refuses a disabled key itself; it is checked here too, since not every service of this API does.
        if key.get("KeyState") != "Enabled" or not key.get("Enabled", False):
            raise self._disabled()
        usage, spec = key.get("KeyUsage", _USAGE), key.get("KeySpec", _SPEC)
        if (usage, spec) != (_USAGE, _SPEC):
            raise StoreUnavailable("the cloud's key is not one that wraps", reason="cloud_key_usage")
        with self._lock:
            self._enabled_until_s = asked_s + KEY_STATE_TTL_S

    def close(self) -> None:
        """Let go of the connections. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def _require_enabled(self) -> None:
        with self._lock:
            fresh = self._monotonic_s() < self._enabled_until_s
        if self._closed or not fresh:
            self.check()

    def _disabled(self) -> StoreUnavailable:
        with self._lock:
            self._enabled_until_s = float("-inf")
        return StoreUnavailable("the cloud's key is not enabled", reason="cloud_key_disabled")


def open_cloud_provider(key_id: str, endpoint_url: str, region: str, monotonic_s: Callable[[], float]) -> CloudProvider:
    """Connect to the key service; credentials come from the SDK's own chain. Empty texts mean the SDK's defaults.

    Raises StoreUnavailable when the service is away or the key is not an enabled symmetric one, Unsupported for an
    endpoint in the clear that is not on this machine.
    """
    check_endpoint(endpoint_url)
    settings = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=MAX_CONNECTIONS,
    )
    with _cloud_errors():
        client = boto3.Session().client(
            "kms", endpoint_url=endpoint_url or None, region_name=region or None, config=settings
        )
    provider = CloudProvider(client, key_id, monotonic_s)
    try:
        provider.check()
    except BaseException:
        provider.close()
        raise
    return provider


def check_endpoint(endpoint_url: str) -> None:
    """Refuse an endpoint to which what is wrapped would travel in the clear. Raises Unsupported."""
    if not endpoint_url:
        return
    parts = urlsplit(endpoint_url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname and _is_loopback(parts.hostname):
        return
    raise Unsupported("backends.cloud.endpoint_url must be https, or http on this machine", reason="cloud_endpoint")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(handle: KeyHandle, aad: bytes) -> dict[str, str]:
    """Build the encryption context. An empty handle names the service's own use, outside of every kid."""
    if handle:
        check_handle_form(handle)
    if len(aad) > MAX_AAD_BYTES:
        raise TooLarge("what a wrapping is bound to is too long")
    return {
        "signet-kms": "v1",
        "signet-kms-handle": handle or "service",
        "signet-kms-aad-sha256": hashlib.sha256(aad).hexdigest(),
    }


@contextmanager
def _cloud_errors(of_code: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """Turn the SDK's errors into ours. Messages of the service are not shown: they name accounts and keys."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise (of_code or _client_error)(code) from error
    except (ConnectTimeoutError, ReadTimeoutError) as error:
        raise Timeout("the cloud's key service did not answer in time", reason="cloud_timeout") from error
    except NoCredentialsError as error:
        raise StoreUnavailable("there are no credentials for the cloud", reason="cloud_credentials") from error
    except BotoCoreError as error:
        raise StoreUnavailable("the cloud's key service is away", reason="cloud_away") from error


def _client_error(code: str) -> Exception:
    if code in _ALTERED:
        return BadRequest("what is unwrapped does not open with this key", reason="unwrap_failed")
    if code in _DISABLED:
        return StoreUnavailable("the cloud's key is not enabled", reason="cloud_key_disabled")
    if code in _BUSY:
        return Backpressure("the cloud's key service is busy", reason="cloud_busy")
    if code in _DENIED:
        return StoreUnavailable("the cloud does not let us use its key", reason="cloud_denied")
    return StoreUnavailable("the cloud's key service refuses", reason="cloud_refuses")


def _unwrap_error(code: str) -> Exception:
    # Services of this API differ in how they refuse what another key sealed; the key itself was just seen to be ours.
    if code == "AccessDeniedException":
        return BadRequest("this does not open with our key, or we may not use it", reason="unwrap_denied")
    return _client_error(code)
