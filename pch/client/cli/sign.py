"""pch sign: print the fields that prove one request, for another program to send."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pch.client.cli.terminal import (
    EXIT_DONE,
    Verbs,
    add_json,
    add_key,
    add_message,
    binding_bytes,
    body_bytes,
    challenge_text,
    header_pairs,
    method_of,
    open_signers,
    out,
    out_json,
)
from pch.client.limits import DEFAULT_MAX_AGE_S
from pch.client.request import make_request
from pch.client.signing import sign_request

if TYPE_CHECKING:
    import argparse


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "sign",
        help="print the header fields of a signed request",
        description="Sign without sending. On a route with binding none, curl can send the result; elsewhere the "
        "sender must own the connection whose exporter is given.",
    )
    add_message(parser)
    add_key(parser)
    parser.add_argument("--challenge", required=True, help="the 60 characters of PCH-Challenge")
    parser.add_argument("--binding-hex", default="none", metavar="HEX", help="the 32 exporter bytes; default: none")
    parser.add_argument("--cover", action="append", default=[], metavar="FIELD", help="sign this field of -H too")
    parser.add_argument("--created", type=int, metavar="EPOCH_S", help="default: now")
    add_json(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Sign and print the added fields, one a line, ready for curl's `-H @-`."""
    request = make_request(
        method_of(arguments), arguments.url, headers=header_pairs(arguments.header), content=body_bytes(arguments)
    )
    with open_signers(arguments) as signers:
        signed = sign_request(
            request.message(),
            request.body,
            signers=signers,
            challenge=challenge_text(arguments.challenge),
            binding=binding_bytes(arguments.binding_hex),
            created_s=int(time.time()) if arguments.created is None else arguments.created,
            max_age_s=DEFAULT_MAX_AGE_S,
            cover=arguments.cover,
        )
    fields = [[name, value.decode("ascii")] for name, value in signed.added]
    if arguments.json:
        bases = [base.decode("ascii") for base in signed.bases]
        told = {"method": request.method, "url": str(request.url), "headers": fields}
        out_json({**told, "signature_base": bases[0], "signature_bases": bases})
    else:
        for name, value in fields:
            out(f"{name}: {value}")
    return EXIT_DONE
