"""pch request: send one signed request, in the manner of curl."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING

from pch.client.cli.terminal import (
    EXIT_DONE,
    EXIT_REFUSED,
    Verbs,
    add_json,
    add_key,
    add_message,
    header_pairs,
    method_of,
    open_content,
    open_signers,
    out,
    out_json,
    read_evidence,
)
from pch.client.limits import DEFAULT_TIMEOUT_S
from pch.client.settings import RELAX_CHOICES
from pch.client.sync_client import Client
from pch.relaxed import RELAXED_FIELD

if TYPE_CHECKING:
    import argparse

    from pch.client.exchange import Answer, WireRequest
    from pch.client.response import Response


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "request",
        help="send a signed request",
        description="Connect, get a challenge, sign for this connection, send, print the answer's content.",
    )
    add_message(parser)
    add_key(parser)
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--cacert", metavar="PATH", help="trust these certificates alone; default: the system's")
    trust.add_argument("--insecure", "-k", action="store_true", help="do not check the server's certificate")
    parser.add_argument("--binding", default="tls-exporter", choices=("tls-exporter", "none"))
    parser.add_argument("--evidence", metavar="FILE", help="evidence to send, a JSON object of PCH §7")
    parser.add_argument(
        "--relax",
        default="auto",
        choices=RELAX_CHOICES,
        help="move evidence and ML-DSA signatures out of the header: auto when the verifier asks, always (refused where"
        " the route does not grant it), never",
    )
    parser.add_argument("--http1.1", dest="http1", action="store_true", help="do not offer HTTP/2")
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS")
    parser.add_argument("-L", "--location", action="store_true", help="follow redirects, signing each hop anew")
    parser.add_argument("-i", "--include", action="store_true", help="print the answer's status and fields too")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell every exchange on standard error")
    add_json(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the request. Returns 0 for a 2xx answer, else 1."""
    verify = False if arguments.insecure else arguments.cacert or True
    with (
        open_signers(arguments) as signers,
        Client(
            key=signers,
            verify=verify,
            http2=not arguments.http1,
            binding=arguments.binding,
            timeout_s=arguments.timeout,
            follow_redirects=arguments.location,
            observer=_tell if arguments.verbose else None,
            evidence=None if arguments.evidence is None else read_evidence(arguments.evidence),
            relax=arguments.relax,
        ) as client,
        open_content(arguments) as content,
    ):
        response = client.request(
            method_of(arguments), arguments.url, headers=header_pairs(arguments.header), content=content
        )
    if arguments.json:
        out_json(response_document(response))
    else:
        _print(response, include=arguments.include)
    return EXIT_DONE if 200 <= response.status < 300 else EXIT_REFUSED


def response_document(response: Response) -> dict[str, object]:
    """Give the answer as JSON values; content that is not UTF-8 comes as `content_base64`."""
    try:
        content = {"content": response.content.decode("utf-8")}
    except UnicodeDecodeError:
        content = {"content_base64": base64.b64encode(response.content).decode("ascii")}
    return {
        "status": response.status,
        "reason": response.reason,
        "receipt_id": response.receipt_id,
        "url": response.url,
        "http_version": response.http_version,
        "signed": response.signed,
        "sends": response.sends,
        "challenges": list(response.challenges),
        "headers": [[name, value.decode("latin-1")] for name, value in response.headers.lines],
        **content,
    }


def _print(response: Response, *, include: bool) -> None:
    if include:
        out(f"HTTP/{response.http_version} {response.status}")
        for name, value in response.headers.lines:
            out(f"{name}: {value.decode('latin-1')}")
        out()
    sys.stdout.flush()
    sys.stdout.buffer.write(response.content)
    sys.stdout.flush()
    if response.reason:
        sys.stderr.write(f"pch: refused: {response.status} {response.reason}\n")


def _tell(wire: WireRequest, answer: Answer) -> None:
    how = "envelope" if wire.is_ahead else "signed" if wire.is_signed else "unsigned"
    if wire.is_signed and any(name == RELAXED_FIELD for name, _ in wire.headers):
        how = "signed, relaxed"
    sys.stderr.write(f"* {wire.request.method} {wire.request.url} ({how}): {answer.status}\n")
