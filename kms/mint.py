"""`python -m kms mint | attenuate | revoke | root-key`: capabilities are made and taken back away from the service.

Only `mint` and `root-key` need the root key file; `attenuate` needs nothing but the token. A token is written to a new
file of mode 0600, or to standard output when that is asked for with `-`; everything else that is told goes to standard
error, and no token is ever part of it.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pymacaroons import Macaroon

from kms.capability import IDENTIFIER_VERSION, LOCATION, identity_of, read_token
from kms.caveats import MAX_TOKEN_CHARS, limits_of
from kms.command_error import CommandError
from kms.errors import KmsError
from kms.private_file import PrivateFileError, create_private, read_private
from kms.revocation import revoke
from kms.root_key import (
    DEFAULT_OVERLAP_S,
    MAX_TOKEN_LIFE_S,
    RootKeyError,
    create_root_file,
    read_roots,
    rotate_root,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from kms.root_key import RootKey

TOKEN_ID_BYTES: Final = 16
DEFAULT_LIFE_S: Final = 86_400


class MintError(CommandError):
    """A capability cannot be made like this; the message never holds one."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a new capability allows, or what an attenuation leaves. Empty: not narrowed by a caveat of this name.

    `expires_at_s`: POSIX seconds; `rate_per_s`: operations a second.
    """

    scopes: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    algs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    expires_at_s: int | None = None
    rate_per_s: int | None = None

    def caveats(self) -> list[str]:
        """Write them as caveats."""
        lists = (
            ("scope", self.scopes),
            ("tenant", self.tenants),
            ("key", self.keys),
            ("alg", self.algs),
            ("path", self.paths),
        )
        numbers = (("exp", self.expires_at_s), ("rps", self.rate_per_s))
        return [f"{name}={','.join(values)}" for name, values in lists if values] + [
            f"{name}={number}" for name, number in numbers if number is not None
        ]


def mint(root: RootKey, grant: Grant, now_s: int, random_bytes: Callable[[int], bytes]) -> tuple[str, str]:
    """Make a capability; return its text and its id. `now_s`: POSIX seconds.

    Scopes, tenants and an end within `MAX_TOKEN_LIFE_S` must be given. Raises MintError.
    """
    if not root.mints_at(now_s):
        raise MintError(
            "the root key is older than 30 days or replaced: rotate it with `python -m kms root-key rotate`"
        )
    if not grant.scopes or not grant.tenants or grant.expires_at_s is None:
        raise MintError("a capability must name its scopes, its tenants and its end")
    if not now_s < grant.expires_at_s <= now_s + MAX_TOKEN_LIFE_S:
        raise MintError("a capability lasts 30 days at most")
    token_id = random_bytes(TOKEN_ID_BYTES).hex()
    identifier = f"{IDENTIFIER_VERSION}.{root.id}.{token_id}"
    macaroon = Macaroon(location=LOCATION, identifier=identifier, key=root.key, version=2)
    return _narrowed(macaroon, grant), token_id


def attenuate(token: str, grant: Grant) -> str:
    """Narrow a capability, without any key: what it allowed before and `grant` does not, it allows no more.

    It keeps its id, so revoking that revokes this too. Raises MintError.
    """
    if not grant.caveats():
        raise MintError("nothing is given to narrow the capability by")
    try:
        return _narrowed(read_token(token), grant)
    except KmsError as error:
        raise MintError(error.message) from error


def _narrowed(macaroon: Macaroon, grant: Grant) -> str:
    for caveat in grant.caveats():
        macaroon.add_first_party_caveat(caveat)
    try:
        limits_of(each.caveat_id_bytes.decode() for each in macaroon.caveats)
    except KmsError as error:
        raise MintError(error.message) from error
    token = str(macaroon.serialize())
    if len(token) > MAX_TOKEN_CHARS:
        raise MintError(f"the capability would be longer than {MAX_TOKEN_CHARS} characters")
    return token


# The command line.


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this module's commands to `python -m kms`."""
    _register_tokens(subparsers)
    revoking = subparsers.add_parser("revoke", help="take capabilities back; the service knows within seconds")
    revoking.add_argument("--revocations-file", type=Path, required=True)
    revoking.add_argument("--token-id", action="append", default=[], help="what `mint` told; 32 hex digits")
    revoking.add_argument("--token-file", type=Path, action="append", default=[], help="revoke the token in this file")
    revoking.add_argument("--root-id", action="append", default=[], help="revoke all that this root minted")
    revoking.set_defaults(run=_revoke)
    roots = subparsers.add_parser("root-key", help="make, rotate and list the keys that capabilities are minted under")
    roots.add_argument("verb", choices=("create", "rotate", "list"))
    roots.add_argument("--root-key-file", type=Path, required=True)
    roots.add_argument("--overlap-s", type=int, default=DEFAULT_OVERLAP_S, help="seconds the former root verifies on")
    roots.set_defaults(run=_root_key)


def _register_tokens(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    minting = subparsers.add_parser("mint", help="make a capability")
    minting.add_argument("--root-key-file", type=Path, required=True)
    narrowing = subparsers.add_parser("attenuate", help="narrow a capability; needs no key and no service")
    narrowing.add_argument("--token-file", type=Path, required=True)
    for command, run in ((minting, _mint), (narrowing, _attenuate)):
        for option, text in (
            ("scope", "kms:read, kms:sign, kms:verify, kms:wrap, kms:unwrap or kms:rotate"),
            ("tenant", "whose keys"),
            ("key", "a kid, with or without its version, or <tenant>/<purpose>/*"),
            ("alg", "an algorithm by its name in kids"),
            ("path", "a path of the HTTP API, or its beginning and /*"),
        ):
            command.add_argument(f"--{option}", action="append", default=[], help=f"{text}; may be given again")
        life = DEFAULT_LIFE_S if command is minting else None
        command.add_argument("--life-s", type=int, default=life, help="seconds from now to its end")
        command.add_argument("--rps", type=int, default=None, help="operations a second")
        command.add_argument("--out", type=Path, required=True, help="the new file of mode 0600; - is standard output")
        command.set_defaults(run=run)


def _mint(args: argparse.Namespace) -> int:
    now_s = int(time.time())
    token, token_id = mint(read_roots(args.root_key_file)[-1], _grant(args, now_s), now_s, os.urandom)
    _put(args.out, token)
    sys.stderr.write(f"token id {token_id}, valid until {now_s + args.life_s} (POSIX seconds)\n")
    return 0


def _attenuate(args: argparse.Namespace) -> int:
    _put(args.out, attenuate(_token_in(args.token_file), _grant(args, int(time.time()))))
    return 0


def _revoke(args: argparse.Namespace) -> int:
    token_ids = [*args.token_id, *(_id_in(path) for path in args.token_file)]
    if not token_ids and not args.root_id:
        raise MintError("say what to revoke: --token-id, --token-file or --root-id")
    revoke(args.revocations_file, int(time.time()), token_ids=tuple(token_ids), root_ids=tuple(args.root_id))
    sys.stderr.write(f"revoked: {len(token_ids)} tokens, {len(args.root_id)} roots\n")
    return 0


def _root_key(args: argparse.Namespace) -> int:
    path, now_s = args.root_key_file, int(time.time())
    if args.verb == "create":
        sys.stderr.write(f"root {create_root_file(path, now_s, os.urandom).id} made\n")
    elif args.verb == "rotate":
        root = rotate_root(path, now_s, os.urandom, overlap_s=args.overlap_s)
        sys.stderr.write(f"root {root.id} mints from now on\n")
    roots = read_roots(path)
    for root in roots if args.verb == "list" else ():
        newest = root is roots[-1] and root.mints_at(now_s)
        mints = "mints" if newest else "verifies only" if now_s < root.not_after_s else "has ended"
        sys.stdout.write(f"{root.id} made {root.created_s} verifies until {root.not_after_s}: {mints}\n")
    return 0


def _grant(args: argparse.Namespace, now_s: int) -> Grant:
    return Grant(
        scopes=_values(args.scope),
        tenants=_values(args.tenant),
        keys=_values(args.key),
        algs=_values(args.alg),
        paths=_values(args.path),
        expires_at_s=None if args.life_s is None else now_s + args.life_s,
        rate_per_s=args.rps,
    )


def _values(options: Sequence[str]) -> tuple[str, ...]:
    return tuple(value for option in options for value in option.split(","))


def _token_in(path: Path) -> str:
    try:
        content = read_private(path, MAX_TOKEN_CHARS + 2)
    except FileNotFoundError as error:
        raise RootKeyError(f"{path}: there is no token") from error
    return content.decode("ascii", errors="replace").strip()


def _id_in(path: Path) -> str:
    try:
        return identity_of(read_token(_token_in(path)))[1]
    except KmsError as error:
        raise MintError(error.message) from error


def _put(out: Path, token: str) -> None:
    if str(out) == "-":
        sys.stdout.write(f"{token}\n")
        return
    try:
        create_private(out, token.encode("ascii") + b"\n")
    except FileExistsError as error:
        raise PrivateFileError(f"{out}: there is a file already") from error
