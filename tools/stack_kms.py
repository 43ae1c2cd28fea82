"""The stack's key service: its folder, its keys for the filter, and capabilities that allow just what is needed."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from typing import TYPE_CHECKING, Final

from kms.client import Endpoint, KmsClient, TokenFile
from kms.errors import KmsError, NoCapability
from kms.messages import CreateKeyRequest, GetKeyRequest, KeyAlg
from kms.mint import Grant, mint
from kms.private_file import PrivateFileError, create_private, replace_private
from kms.root_key import create_root_file, read_roots, rotate_root
from tools.stack_config import StackError, StackFiles

if TYPE_CHECKING:
    from pathlib import Path

    from tools.stack_config import StackSettings

TENANT: Final = "signet"
FILTER_TOKEN_LIFE_S: Final = 30 * 86_400
PROVISION_TOKEN_LIFE_S: Final = 300
FILTER_RATE_PER_S: Final = 200
PASSPHRASE_BYTES: Final = 32
PROBE_TIMEOUT_S: Final = 2.0
KEYS: Final[dict[str, tuple[str, KeyAlg]]] = {"sealing_key": ("sealing", "ml-kem"), "log_key": ("tlog", "hybrid")}
"""What the filter needs: the name of each in `[kms]` of its TOML file, its purpose and its algorithm."""


def kms_command(settings: StackSettings) -> tuple[str, ...]:
    """Give the command line of the key service."""
    return (sys.executable, "-m", "kms", "serve", "--config", str(StackFiles(settings.var).kms_toml))


def prepare_kms(settings: StackSettings) -> None:
    """Make the folder, the passphrase, the root key and the configuration. Raises `StackError`."""
    files, now_s = StackFiles(settings.var), int(time.time())
    files.kms.mkdir(mode=0o700, exist_ok=True)
    try:
        if not files.kms_passphrase.exists():
            create_private(files.kms_passphrase, secrets.token_hex(PASSPHRASE_BYTES).encode() + b"\n")
        if not files.kms_root.exists():
            create_root_file(files.kms_root, now_s, os.urandom)
        elif not read_roots(files.kms_root)[-1].mints_at(now_s + 1):
            rotate_root(files.kms_root, now_s, os.urandom)
        replace_private(files.kms_toml, _toml(settings).encode())
    except PrivateFileError as error:
        raise StackError(f"the key service: {error}") from error


def kms_ready(settings: StackSettings) -> bool:
    """Tell whether the key service answers: it refuses, as it should, what the capability does not cover."""
    files = StackFiles(settings.var)
    client = _client(files, Grant(("kms:read",), (TENANT,), keys=(f"{TENANT}/none/*",)))
    try:
        client.get_key(GetKeyRequest(kid=f"{TENANT}/other/ed25519/00000000-0000-4000-8000-000000000000"))
    except NoCapability:
        return True
    except KmsError:
        return False
    finally:
        client.close()
    return False


def provision_kms(settings: StackSettings) -> dict[str, str | int | bool]:
    """Make the filter's keys where they are missing, mint its capability, and give `[kms]` of its TOML file.

    A log that began with keys in a file of its own keeps them. Raises `StackError`.
    """
    files = StackFiles(settings.var)
    try:
        names = _ensure_keys(files)
        grant = Grant(
            ("kms:read", "kms:sign", "kms:wrap", "kms:unwrap"),
            (TENANT,),
            keys=tuple(names.values()),
            rate_per_s=FILTER_RATE_PER_S,
        )
        _write_token(files, files.kms_filter_token, grant, FILTER_TOKEN_LIFE_S)
    except (KmsError, PrivateFileError) as error:
        raise StackError(f"the key service: {error}") from error
    section: dict[str, str | int | bool] = {
        "url": f"unix:{files.kms_socket}",
        "token_file": str(files.kms_filter_token),
        "sealing_key": names["sealing_key"],
    }
    if not (files.receipt_log / "checkpoint-keys.json").exists():
        section["log_key"] = names["log_key"]
    return section


def _ensure_keys(files: StackFiles) -> dict[str, str]:
    names: dict[str, str] = json.loads(files.kms_keys.read_text()) if files.kms_keys.exists() else {}
    if names.keys() >= KEYS.keys():
        return names
    client = _client(files, Grant(("kms:rotate",), (TENANT,), paths=("/v1/kms/keys",)))
    try:
        for name, (purpose, alg) in KEYS.items():
            if name not in names:
                made = client.create_key(CreateKeyRequest(tenant=TENANT, purpose=purpose, alg=alg))
                names[name] = made.kid.partition("#")[0]
                replace_private(files.kms_keys, json.dumps(names).encode())
    finally:
        client.close()
    return names


def _client(files: StackFiles, grant: Grant) -> KmsClient:
    """Open a client with a capability that lives for a moment."""
    path = files.kms / "provision.token"
    _write_token(files, path, grant, PROVISION_TOKEN_LIFE_S)
    try:
        return KmsClient(Endpoint.parse(f"unix:{files.kms_socket}"), TokenFile(path), timeout_s=PROBE_TIMEOUT_S)
    finally:
        path.unlink()


def _write_token(files: StackFiles, path: Path, grant: Grant, life_s: int) -> None:
    now_s = int(time.time())
    root = read_roots(files.kms_root)[-1]
    bounded = Grant(grant.scopes, grant.tenants, grant.keys, grant.algs, grant.paths, now_s + life_s, grant.rate_per_s)
    replace_private(path, mint(root, bounded, now_s, os.urandom)[0].encode() + b"\n")


def _toml(settings: StackSettings) -> str:
    files, ports = StackFiles(settings.var), settings.ports
    return f"""# Written by tools/stack.py at each start: change tools/stack_kms.py, or run the key service yourself.
bind_addr = "127.0.0.1:{ports.kms}"
grpc_addr = "127.0.0.1:{ports.kms_grpc}"
metrics_addr = "127.0.0.1:{ports.kms_metrics}"

[unix]
path = {json.dumps(str(files.kms_socket))}
allowed_uids = [{os.getuid()}]

[service]
backend = "file"
state_dir = {json.dumps(str(files.kms / "state"))}

[security]
root_key_file = {json.dumps(str(files.kms_root))}
revocations_file = {json.dumps(str(files.kms / "revocations.json"))}

[audit]
dir = {json.dumps(str(files.kms / "audit"))}

[backends.file]
dir = {json.dumps(str(files.kms / "sealed"))}
passphrase_file = {json.dumps(str(files.kms_passphrase))}
"""
