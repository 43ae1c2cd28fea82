"""Show one PCH handshake readably: the challenge, the signed request, the answer and its receipt.

    python tools/pch_client_demo.py --url https://localhost:8443/protected --binding tls-exporter --insecure

Without --key it signs with the registered demo key of the running local stack (`make up`). Exit codes are those of
`pch`: 0 for a 2xx answer, 1 refused, 2 usage or input, 3 network.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pch.client import Client, ClientError, InvalidRequest, NetworkError
from pch.client.challenge import challenge_parts, parse_www_authenticate
from pch.client.cli.request import response_document
from pch.client.cli.terminal import (
    EXIT_DONE,
    EXIT_NETWORK,
    EXIT_REFUSED,
    EXIT_USAGE,
    UsageError,
    out,
    out_json,
    read_signer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pch.algorithms import Signer
    from pch.client.exchange import Answer, WireRequest
    from pch.client.response import Response

STACK_FILE = Path(__file__).resolve().parent.parent / "var" / "stack.json"
MAX_SHOWN_CONTENT_CHARS = 2000
MAX_STACK_FILE_BYTES = 1_048_576


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        stack = _stack(arguments.stack)
        signer = _signer(arguments, stack)
        response = _request(arguments, stack, signer)
    except (UsageError, InvalidRequest) as error:
        return _fail(error, EXIT_USAGE)
    except NetworkError as error:
        return _fail(error, EXIT_NETWORK)
    except ClientError as error:
        return _fail(error, EXIT_REFUSED)
    if arguments.json:
        out_json(response_document(response))
    else:
        _show_outcome(response)
    return EXIT_DONE if 200 <= response.status < 300 else EXIT_REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Show one PCH handshake: challenge, signed request, answer, receipt.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--binding", default="tls-exporter", choices=("tls-exporter", "none"))
    parser.add_argument("--alg", help="the key's algorithm, as a check; default: whatever the key is")
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--insecure", action="store_true", help="do not check the server's certificate")
    trust.add_argument("--cacert", metavar="PATH", help="default: the local stack's CA if it runs, else the system's")
    parser.add_argument("--key", metavar="FILE", help="private JWK; default: the local stack's demo key")
    parser.add_argument("--method", default="GET")
    parser.add_argument("--data", metavar="TEXT", help="content, as UTF-8")
    parser.add_argument("--stack", type=Path, default=STACK_FILE, metavar="FILE", help="default: var/stack.json")
    parser.add_argument("--json", action="store_true", help="print only the final answer, as JSON")
    return parser


def _stack(path: Path) -> dict[str, Any]:
    """Read what the local stack says of itself; nothing when none runs."""
    try:
        with path.open("rb") as file:
            state = json.loads(file.read(MAX_STACK_FILE_BYTES))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _signer(arguments: argparse.Namespace, stack: dict[str, Any]) -> Signer:
    path = arguments.key or stack.get("demo_key")
    if not path:
        raise UsageError("no --key given, and no local stack runs whose demo key could be used (make up)")
    signer = read_signer(str(path))
    if arguments.alg and arguments.alg != signer.algorithm.name:
        raise UsageError(f"the key is for {signer.algorithm.name}, not {arguments.alg}; name one for it with --key")
    return signer


def _request(arguments: argparse.Namespace, stack: dict[str, Any], signer: Signer) -> Response:
    verify: bool | str = arguments.cacert or True
    if arguments.insecure:
        verify = False
    elif not arguments.cacert and stack.get("ca") and arguments.url.startswith(str(stack.get("https"))):
        verify = str(stack["ca"])
    observer = None if arguments.json else _show_exchange
    with Client(key=signer, verify=verify, binding=arguments.binding, observer=observer) as client:
        return client.request(arguments.method, arguments.url, content=arguments.data)


def _show_exchange(wire: WireRequest, answer: Answer) -> None:
    """Print one exchange: what was sent, field by field if it is signed, and what came back."""
    request = wire.request
    out(f"→ {request.method} {request.url}  ({'signed' if wire.is_signed else 'unsigned'})")
    for name, value in wire.headers if wire.is_signed else ():
        out(f"    {name}: {value.decode('latin-1')}")
    for base in wire.bases:
        out("  the signature covers these lines:")
        for line in base.decode("ascii").split("\n"):
            out(f"    | {line}")
    out(f"← {answer.status}  (HTTP/{answer.http_version})")
    offered = parse_www_authenticate(answer.headers.all("www-authenticate"))
    if offered:
        parts = challenge_parts(offered.challenge)
        out(f"    challenge  {offered.challenge}")
        out(f"               epoch {parts.epoch}, good once, on this connection, for {offered.max_age_s} s")
        out(f"    accepts    {' '.join(offered.algorithms)}; binding {offered.binding}; realm {offered.realm}")
    out()


def _show_outcome(response: Response) -> None:
    if response.reason:
        out(f"refused: {response.reason}")
    else:
        out("let through" if response.signed else "answered without a proof: this route is not guarded")
    out(f"receipt:  {response.receipt_id or 'none'}")
    if response.challenges:
        out(f"next:     {len(response.challenges)} fresh challenge(s) came along: the next request is one round trip")
    text = response.text
    out(text if len(text) <= MAX_SHOWN_CONTENT_CHARS else text[:MAX_SHOWN_CONTENT_CHARS] + " …")


def _fail(error: Exception, code: int) -> int:
    sys.stderr.write(f"pch_client_demo: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
