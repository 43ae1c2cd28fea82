"""pch keygen: make a key pair."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from pch.algorithms import ALGORITHMS, HYBRIDS
from pch.client.cli.terminal import EXIT_DONE, UsageError, Verbs, add_json, out, out_json
from pch.keys import generate, public_jwk, thumbprint

if TYPE_CHECKING:
    import argparse

PRIVATE_MODE = 0o600


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "keygen",
        help="make a key pair, or the two of a hybrid",
        description="Write a new private JWK, readable by you alone; print the public JWK to register. The two keys of "
        "a hybrid make a JWK Set.",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the private JWK; must not exist yet")
    names = sorted([*ALGORITHMS, *HYBRIDS])
    parser.add_argument("--alg", default="ed25519", choices=names, help="default: ed25519; a hybrid makes two keys")
    parser.add_argument("--public-out", metavar="FILE", help="also write the public JWK here")
    add_json(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the key, write it, print what may be known of it."""
    keys = [generate(name) for name in arguments.alg.split("+")]
    private, public = _document(keys), _document([public_jwk(key) for key in keys])
    key_ids = [thumbprint(key) for key in keys]
    _write_new(arguments.out, private, PRIVATE_MODE)
    if arguments.public_out:
        _write_new(arguments.public_out, public, 0o644)
    if arguments.json:
        told = {"key_id": key_ids[0], "key_ids": key_ids, "algorithm": arguments.alg, "public_jwk": public}
        out_json({**told, "private_jwk_file": arguments.out})
    else:
        sys.stderr.write(f"private JWK written to {arguments.out}; key id {' + '.join(key_ids)}\n")
        out(json.dumps(public))
    return EXIT_DONE


def _document(keys: list[dict[str, str]]) -> dict[str, object]:
    """Give one JWK as it is, several as a JWK Set (RFC 7517 §5)."""
    return {**keys[0]} if len(keys) == 1 else {"keys": keys}


def _write_new(path: str, jwk: dict[str, object], mode: int) -> None:
    """Create the file with `mode` from the start, and never over an existing one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(json.dumps(jwk) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
