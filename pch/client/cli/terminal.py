"""What the verbs share: exit codes, reading bounded input, arguments that mean the same everywhere, printing."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pch.client.challenge import parse_challenge_text
from pch.client.errors import ChallengeSyntaxError
from pch.client.limits import MAX_FIELD_FILE_BYTES, MAX_KEY_FILE_BYTES, MAX_REQUEST_BODY_BYTES
from pch.client.pkcs11_key import SCHEME, Pkcs11Signer
from pch.client.signers import signers_of
from pch.evidence import unique_members
from pch.keys import KeyFormatError, private_key_from_jwk
from pch.proof import BINDING_BYTES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from pch.algorithms import Signer
    from pch.client.challenge import ChallengeText
    from pch.client.request import ContentTypes

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NETWORK: Final = 3

Verbs = Any  # argparse's subparsers object has no public type.


class UsageError(Exception):
    """An argument or a file is not usable."""


def out(line: str = "") -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")


def out_json(value: object) -> None:
    """Print `value` as one JSON document."""
    out(json.dumps(value, indent=2, ensure_ascii=False))


def read_bounded(path: str, limit_bytes: int) -> bytes:
    """Read the file at `path`, or standard input for `-`. Raises `UsageError`, also when it is too long."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(limit_bytes + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(limit_bytes + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise UsageError(f"{path} is over {limit_bytes} bytes")
    return data


def read_signer(path: str) -> Signer:
    """Read the one private JWK in a file. Raises `UsageError`."""
    try:
        return private_key_from_jwk(read_jwk(path))
    except KeyFormatError as error:
        raise UsageError(f"{path} is not a usable private JWK: {error}") from error


def read_jwk(path: str) -> dict[str, object]:
    """Read a JWK or JWK Set; others' right to read the file is told on standard error. Raises `UsageError`."""
    data = read_bounded(path, MAX_KEY_FILE_BYTES)
    if path != "-" and os.name == "posix" and stat.S_IMODE(Path(path).stat().st_mode) & 0o077:
        sys.stderr.write(f"pch: warning: {path} is open to other users; chmod 600 it\n")
    try:
        jwk = json.loads(data)
    except (ValueError, RecursionError):
        # Not chained: the parser's error holds the whole document.
        raise UsageError(f"{path} is not JSON") from None
    if not isinstance(jwk, dict):
        raise UsageError(f"{path} is not a JWK")
    return jwk


def read_evidence(path: str) -> dict[str, Any]:
    """Read the JSON object in a file; what is in it, the client checks. Raises `UsageError`."""
    data = read_bounded(path, MAX_FIELD_FILE_BYTES)
    try:
        document = json.loads(data, object_pairs_hook=unique_members)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON, or has a member twice") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a JSON object")
    return document


def add_key(parser: argparse.ArgumentParser) -> None:
    """Add --key and --alg."""
    parser.add_argument(
        "--key",
        required=True,
        action="append",
        metavar="FILE",
        help="private JWK or JWK Set, - for standard input, or a pkcs11: URI; twice for the halves of a hybrid",
    )
    parser.add_argument("--alg", metavar="NAME", help="sign with this algorithm, or hybrid, of what the keys can do")


@contextlib.contextmanager
def open_signers(arguments: argparse.Namespace) -> Iterator[tuple[Signer, ...]]:
    """Read the keys of --key, and log out of their tokens at the end.

    Raises `UsageError`, `InvalidRequest`, `TokenFailed`.
    """
    with contextlib.ExitStack() as tokens:
        keys: list[Signer | Mapping[str, object]] = []
        for path in arguments.key:
            if path.startswith(SCHEME):
                keys.append(tokens.enter_context(contextlib.closing(Pkcs11Signer(path))))
            else:
                keys.append(read_jwk(path))
        yield signers_of(keys, arguments.alg)


def header_pairs(lines: list[str]) -> list[tuple[str, str]]:
    """Split `Name: value` arguments. Raises `UsageError`."""
    pairs = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name:
            raise UsageError(f"a header is given as 'Name: value', not as {name[:40]!r}")
        pairs.append((name, value.strip(" \t")))
    return pairs


def field_lines(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Collect the fields of -H and --headers-file.

    Lines without a colon, as a status line, are passed over.
    """
    pairs = header_pairs(arguments.header)
    if arguments.headers_file:
        text = read_bounded(arguments.headers_file, MAX_FIELD_FILE_BYTES).decode("latin-1")
        lines = [line for line in text.splitlines() if ":" in line and not line.startswith((" ", "\t", ":"))]
        pairs += header_pairs(lines)
    return pairs


def body_bytes(arguments: argparse.Namespace) -> bytes:
    """Give the content of -d or --data-file."""
    if arguments.data_file is not None:
        return read_bounded(arguments.data_file, MAX_REQUEST_BODY_BYTES)
    return b"" if arguments.data is None else str(arguments.data).encode("utf-8")


@contextlib.contextmanager
def open_content(arguments: argparse.Namespace) -> Iterator[ContentTypes]:
    """Give the content of -d or --data-file to send; a file is read while it is sent and never held whole.

    What cannot be read twice, such as a pipe, is held, and bounded. Raises `UsageError`.
    """
    if arguments.data_file is None or not Path(arguments.data_file).is_file():
        yield body_bytes(arguments)
        return
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(Path(arguments.data_file).open("rb"))
        except OSError as error:
            raise UsageError(f"cannot read {arguments.data_file}: {error.strerror}") from error
        yield file


def binding_bytes(text: str) -> bytes | None:
    """Read --binding-hex: 64 hex digits, or `none`. Raises `UsageError`."""
    if text == "none":
        return None
    try:
        binding = bytes.fromhex(text)
    except ValueError as error:
        raise UsageError("--binding-hex takes hex digits, or none") from error
    if len(binding) != BINDING_BYTES:
        raise UsageError(f"--binding-hex takes {BINDING_BYTES * 2} hex digits, or none")
    return binding


def challenge_text(text: str) -> ChallengeText:
    """Read --challenge. Raises `UsageError`."""
    try:
        return parse_challenge_text(text.strip('"'))
    except ChallengeSyntaxError as error:
        raise UsageError(str(error)) from error


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def add_message(parser: argparse.ArgumentParser) -> None:
    """Add the request's own parts: method, fields, content, URL."""
    parser.add_argument("url", metavar="URL")
    parser.add_argument("-X", "--method", help="the method; GET, or POST when there is content")
    parser.add_argument("-H", "--header", action="append", default=[], metavar="'NAME: VALUE'")
    content = parser.add_mutually_exclusive_group()
    content.add_argument("-d", "--data", metavar="TEXT", help="content, as UTF-8")
    content.add_argument("--data-file", metavar="FILE", help="content from a file, - for standard input")


def method_of(arguments: argparse.Namespace) -> str:
    """Give the method, GET or POST when none is named."""
    has_content = arguments.data is not None or arguments.data_file is not None
    return arguments.method or ("POST" if has_content else "GET")
