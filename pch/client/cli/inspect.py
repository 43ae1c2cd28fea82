"""pch inspect: decode the public parts of PCH fields."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from pch.client.challenge import (
    challenge_parts,
    parse_challenge_text,
    parse_pch_challenge,
    parse_www_authenticate,
)
from pch.client.cli.terminal import (
    EXIT_DONE,
    UsageError,
    Verbs,
    add_json,
    challenge_text,
    field_lines,
    out,
    out_json,
)
from pch.client.errors import ChallengeSyntaxError, PeerFault
from pch.httpsig.errors import HttpSigError
from pch.httpsig.signature_field import parse_signature
from pch.httpsig.signature_input import SignatureParams, parse_signature_input

if TYPE_CHECKING:
    import argparse

    from pch.client.challenge import ChallengeText

_FIELDS = ("signature-input", "signature", "www-authenticate", "pch-challenge")


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "inspect",
        help="decode signature fields and challenges",
        description="Decode Signature-Input, Signature, WWW-Authenticate and PCH-Challenge, or one bare challenge. "
        "Nothing is verified.",
    )
    parser.add_argument("-H", "--header", action="append", default=[], metavar="'NAME: VALUE'")
    parser.add_argument("--headers-file", metavar="FILE", help="fields, one a line, - for standard input")
    parser.add_argument("--challenge", help="60 characters")
    add_json(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Decode what was given. Raises `PeerFault` when it is out of grammar."""
    by_name: dict[str, list[bytes]] = {}
    for name, value in field_lines(arguments):
        by_name.setdefault(name.lower(), []).append(value.encode("latin-1"))
    document: dict[str, object] = {}
    if arguments.challenge:
        document["challenges"] = [_challenge(challenge_text(arguments.challenge))]
    if not document and not any(name in by_name for name in _FIELDS):
        raise UsageError(f"give --challenge, or one of the fields {', '.join(_FIELDS)}")
    try:
        document |= _decode(by_name)
    except HttpSigError as error:
        raise PeerFault(f"a signature field is out of grammar: {error}") from error
    if arguments.json:
        out_json(document)
    else:
        _print(document, 0)
    return EXIT_DONE


def _decode(by_name: dict[str, list[bytes]]) -> dict[str, object]:
    document: dict[str, object] = {}
    inputs = parse_signature_input(by_name.get("signature-input", []))
    values = parse_signature(by_name.get("signature", []))
    if inputs or values:
        labels = dict.fromkeys((*inputs, *values))
        document["signatures"] = [_signature(label, inputs.get(label), values.get(label)) for label in labels]
    offered = parse_www_authenticate(by_name.get("www-authenticate", []))
    if offered:
        document["offered"] = {
            "realm": offered.realm,
            "algorithms": list(offered.algorithms),
            "mode": offered.mode,
            "binding": offered.binding,
            "max_age_s": offered.max_age_s,
            "evidence": offered.evidence,
            "hints": list(offered.hints),
            "challenge": _challenge(offered.challenge),
        }
    listed = parse_pch_challenge(by_name.get("pch-challenge", []))
    if listed:
        document["challenges"] = [_challenge(text) for text in listed]
    return document


def _signature(label: str, params: SignatureParams | None, value: bytes | None) -> dict[str, object]:
    told: dict[str, object] = {"label": label}
    if params:
        told["covers"] = [component.serialised for component in params.components]
        for name, parameter in params.params.items():
            told[name] = parameter if isinstance(parameter, int) else str(parameter)
        for name, seconds in (("created_utc", params.created), ("expires_utc", params.expires)):
            if seconds is not None:
                told[name] = _utc(seconds * 1000)
        if params.nonce:
            try:
                told["nonce_parts"] = _challenge(parse_challenge_text(params.nonce))
            except ChallengeSyntaxError:
                told["nonce_parts"] = "not a PCH challenge"
    told["signature_bytes"] = None if value is None else len(value)
    return told


def _challenge(text: ChallengeText) -> dict[str, object]:
    parts = challenge_parts(text)
    return {
        "challenge": text,
        "version": parts.version,
        "relax_grant": parts.relax_grant,
        "epoch": parts.epoch,
        "issued_ms": parts.issued_ms,
        "issued_utc": _utc(parts.issued_ms),
        "random_hex": parts.random.hex(),
        "seal_bytes": len(parts.seal),
    }


def _utc(milliseconds: int) -> str:
    try:
        moment = dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return "out of range"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _print(value: object, depth: int) -> None:
    """Print nested values as indented `name: value` lines."""
    pad = "  " * depth
    if isinstance(value, dict):
        for name, member in value.items():
            if isinstance(member, dict | list) and member:
                out(f"{pad}{name}:")
                _print(member, depth + 1)
            else:
                out(f"{pad}{name}: {member}")
    elif isinstance(value, list):
        for number, member in enumerate(value):
            if isinstance(member, dict):
                out(f"{pad}[{number}]")
                _print(member, depth + 1)
            else:
                out(f"{pad}{member}")
