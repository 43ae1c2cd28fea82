"""pch explain: show a signature base line by line, and what each line protects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pch.client.cli.terminal import (
    EXIT_DONE,
    UsageError,
    Verbs,
    add_json,
    add_message,
    body_bytes,
    field_lines,
    method_of,
    out,
    out_json,
)
from pch.client.errors import PeerFault
from pch.client.url import parse_url
from pch.httpsig.errors import HttpSigError
from pch.httpsig.message import RequestMessage
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_input import parse_signature_input
from pch.proof import required_components

if TYPE_CHECKING:
    import argparse

    from pch.httpsig.signature_input import SignatureParams

MEANINGS: Final = {
    "@method": "the method; another one does not verify (RFC 9421 §2.2.1)",
    "@authority": "host and port, lower-case, no default port (RFC 9421 §2.2.3)",
    "@path": "the path as sent (RFC 9421 §2.2.6)",
    "@query": "the whole query with its ?, a bare ? without one (RFC 9421 §2.2.7)",
    "@scheme": "the scheme (RFC 9421 §2.2.4)",
    "@target-uri": "the whole URL (RFC 9421 §2.2.2)",
    "@query-param": "one query parameter (RFC 9421 §2.2.8)",
    "content-digest": "the content, by its digest (RFC 9530, PCH §3)",
    "pch-channel-binding": "this TLS connection: no other one has this exporter (RFC 9266, PCH §3)",
    "pch-evidence": "the evidence sent along (PCH §7)",
    "pch-evidence-digest": "the relaxed evidence, by its digest (PCH §6)",
    "pch-relaxed": "that the evidence travels in the content (PCH §6)",
    "@signature-params": "what is covered and in which order, the times, the key, the algorithm, and with nonce the "
    "challenge, which can be spent once (RFC 9421 §2.3, PCH §2)",
}


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "explain",
        help="show a signature base line by line",
        description="Build the signature base of a request from its fields, Signature-Input among them, and say what "
        "each line protects. Works on what `pch sign` prints: pch sign … | pch explain --headers-file - URL",
    )
    add_message(parser)
    parser.add_argument("--headers-file", metavar="FILE", help="fields, one a line, - for standard input")
    parser.add_argument("--label", help="the signature to explain, if there are several")
    add_json(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain. Raises `PeerFault` when the fields are out of grammar or a covered component is absent."""
    url = parse_url(arguments.url)
    headers = tuple((name.lower(), value.encode("latin-1")) for name, value in field_lines(arguments))
    message = RequestMessage(method_of(arguments).upper(), url.origin.scheme, url.origin.authority, url.target, headers)
    try:
        label, params = _select(parse_signature_input(message.lines("signature-input")), arguments.label)
        base = signature_base(message, params).decode("ascii")
    except HttpSigError as error:
        raise PeerFault(f"there is no signature base: {error}") from error
    lines = [_line(text) for text in base.split("\n")]
    missing = _missing(message, params, has_content=bool(body_bytes(arguments)))
    if arguments.json:
        out_json({"label": label, "lines": lines, "missing_components": missing, "signature_base": base})
        return EXIT_DONE
    for line in lines:
        out(line["text"])
        out(f"    └ {line['meaning']}")
    for name in missing:
        out(f"not covered, and PCH §3 wants it: {name}")
    return EXIT_DONE


def _select(inputs: dict[str, SignatureParams], label: str | None) -> tuple[str, SignatureParams]:
    if not inputs:
        raise UsageError("there is no Signature-Input field; give it by -H or --headers-file")
    if label is None:
        label = next((each for each, params in inputs.items() if params.tag == "pch"), next(iter(inputs)))
    if label not in inputs:
        raise UsageError("no signature has that label")
    return label, inputs[label]


def _line(text: str) -> dict[str, str]:
    name = text[1:].partition('"')[0]
    return {"component": name, "text": text, "meaning": MEANINGS.get(name, f"the field {name} (RFC 9421 §2.1)")}


def _missing(message: RequestMessage, params: SignatureParams, *, has_content: bool) -> list[str]:
    """List what the verifier would miss; whether a binding is needed is the route's say, so one sent counts."""
    bound = bool(message.lines("pch-channel-binding"))
    has_content = has_content or bool(message.lines("content-digest"))
    covered = {component.name for component in params.components if not component.params}
    required = required_components(message, bound=bound, has_content=has_content)
    return [name for name in required if name not in covered]
