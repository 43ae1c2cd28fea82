"""Every operation once: its name, path, messages and scope, for HTTP, gRPC and the OpenAPI document (API.md §1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kms import messages as m
from kms.principal import Scope

BASE_PATH: Final = "/v1/kms"
KEY_PREFIX: Final = f"{BASE_PATH}/keys/"
EMPTY_BODY: Final = b"{}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `body`: what HTTP carries (None: nothing); `request`: what the dispatcher takes.

    They differ where the path names the key: `request` is then `body` with the path's `kid`.
    """

    op: str
    rpc: str
    method: str
    path: str
    scope: Scope
    body: type[m.Message] | None
    request: type[m.Message]
    response: type[m.Message]
    summary: str
    body_optional: bool = False

    @property
    def route(self) -> str:
        """Give the label of metrics and logs: the path with `{kid}` in the place of a kid."""
        return BASE_PATH + self.path

    @property
    def names_key(self) -> bool:
        """Tell whether the path names the key."""
        return "{kid}" in self.path

    def path_for(self, kid: str) -> str:
        """Give the path as `path=` caveats see it, the same for every transport."""
        return self.route.replace("{kid}", kid)


def _post(op: str, rpc: str, scope: Scope, request: type[m.Message], response: type[m.Message], text: str) -> Operation:
    return Operation(op, rpc, "POST", "/" + op.replace("_", "/"), scope, request, request, response, text)


def _state(op: str, rpc: str, text: str) -> Operation:
    path = f"/keys/{{kid}}/{op}"
    types = (m.KeyStateRequest, m.ChangeKeyStateRequest, m.KeyStateResponse)
    return Operation(op, rpc, "POST", path, Scope.ROTATE, *types, text, body_optional=True)


OPERATIONS: Final[tuple[Operation, ...]] = (
    _post("sign", "Sign", Scope.SIGN, m.SignRequest, m.SignResponse, "Sign a digest, with a hybrid bundle where asked"),
    _post("verify", "Verify", Scope.VERIFY, m.VerifyRequest, m.VerifyResponse, "Verify signatures over a digest"),
    _post("wrap", "Wrap", Scope.WRAP, m.WrapRequest, m.WrapResponse, "Wrap a small key to a KEM key"),
    _post("unwrap", "Unwrap", Scope.UNWRAP, m.UnwrapRequest, m.UnwrapResponse, "Unwrap a wrapped key"),
    Operation(
        "create_key",
        "CreateKey",
        "POST",
        "/keys",
        Scope.ROTATE,
        m.CreateKeyRequest,
        m.CreateKeyRequest,
        m.CreateKeyResponse,
        "Create a key",
    ),
    Operation(
        "rotate",
        "Rotate",
        "POST",
        "/keys/{kid}/rotate",
        Scope.ROTATE,
        m.RotateRequest,
        m.RotateKeyRequest,
        m.RotateResponse,
        "Give a key a new version",
        body_optional=True,
    ),
    Operation(
        "get_key",
        "GetKey",
        "GET",
        "/keys/{kid}",
        Scope.READ,
        None,
        m.GetKeyRequest,
        m.GetKeyResponse,
        "Describe a key: public material and versions",
    ),
    _state("disable", "DisableKey", "Disable a key: it signs no more, and verifies above its fence"),
    _state("enable", "EnableKey", "Enable a disabled key"),
    _state("destroy", "DestroyKey", "Erase a key's private half for good"),
    _post("derive", "Derive", Scope.ROTATE, m.DeriveRequest, m.DeriveResponse, "Derive a child key of an HKDF root"),
    _post("sign_batch", "SignBatch", Scope.SIGN, m.SignBatchRequest, m.SignBatchResponse, "Sign up to 128 digests"),
    _post(
        "verify_batch",
        "VerifyBatch",
        Scope.VERIFY,
        m.VerifyBatchRequest,
        m.VerifyBatchResponse,
        "Verify up to 128 bundles",
    ),
    _post(
        "checkpoint",
        "Checkpoint",
        Scope.SIGN,
        m.CheckpointRequest,
        m.CheckpointResponse,
        "Sign the next head of a log that extends the last one signed",
    ),
)
BY_OP: Final = {operation.op: operation for operation in OPERATIONS}
FIXED_ROUTES: Final = {operation.route: operation for operation in OPERATIONS if not operation.names_key}
# What follows the kid in a path, with its method.
KEY_ACTIONS: Final = {
    operation.path.removeprefix("/keys/{kid}").removeprefix("/"): operation
    for operation in OPERATIONS
    if operation.names_key
}
