"""pch public: print the public part of keys, for `clients add`."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from pch.client.cli.terminal import EXIT_DONE, UsageError, Verbs, add_json, out, out_json, read_jwk
from pch.client.pkcs11_key import SCHEME, Pkcs11Signer
from pch.keys import KeyFormatError, jwks_members, public_jwk, thumbprint

if TYPE_CHECKING:
    import argparse


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "public",
        help="print the public JWK of a key",
        description="Print what to register: a public JWK, or of several keys the JWK Set of a hybrid.",
    )
    parser.add_argument(
        "--key",
        required=True,
        action="append",
        metavar="FILE",
        help="JWK or JWK Set, - for standard input, or a pkcs11: URI",
    )
    add_json(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the public keys. Raises `UsageError`, `InvalidRequest`, `TokenFailed`."""
    keys = [key for path in arguments.key for key in _public_keys(path)]
    document = keys[0] if len(keys) == 1 else {"keys": keys}
    if arguments.json:
        out_json({"key_ids": [thumbprint(key) for key in keys], "public_jwk": document})
    else:
        out(json.dumps(document))
    return EXIT_DONE


def _public_keys(path: str) -> list[dict[str, str]]:
    if path.startswith(SCHEME):
        with contextlib.closing(Pkcs11Signer(path)) as signer:
            return [signer.public_jwk]
    try:
        return [public_jwk(key) for key in jwks_members(read_jwk(path))]
    except KeyFormatError as error:
        raise UsageError(f"{path} is not a usable JWK: {error}") from error
