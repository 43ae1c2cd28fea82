"""Read what a verifier answers with: WWW-Authenticate and the PCH-* fields (PCH §2, §5)."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NewType

from pch.client.errors import ChallengeSyntaxError
from pch.client.limits import (
    MAX_AUTH_PARAMS,
    MAX_CHALLENGE_FIELD_BYTES,
    MAX_CHALLENGES_PER_CONNECTION,
    MAX_MAX_AGE_S,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ChallengeText = NewType("ChallengeText", str)
"""The 60 base64url characters of one challenge."""

_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{60}")
_LIST_MEMBER: Final = re.compile(r'[ \t]*"([A-Za-z0-9_-]{60})"[ \t]*')
_SF_STRING: Final = re.compile(rb'"([\x21\x23-\x5b\x5d-\x7e]{1,128})"')
_SF_TOKEN: Final = re.compile(rb"[A-Za-z*][A-Za-z0-9:/!#$%&'*+.^_`|~-]{0,63}")

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  (RFC 9110 §5.6.2)
_PARAM: Final = re.compile(
    rf"(?P<name>{_TOKEN})[ \t]*=[ \t]*(?:(?P<token>{_TOKEN})"
    r'|"(?P<quoted>(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e])*)")'
)
_SCHEME: Final = re.compile(rf"(?P<scheme>{_TOKEN})(?:[ ]+|(?=[ \t]*(?:,|$)))")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_SEPARATOR: Final = re.compile(r"[ \t]*(?:,[ \t]*)+|[ \t]*$")
_MAX_AGE: Final = re.compile(r"[0-9]{1,6}")

MODES: Final = frozenset({"and", "or", "pq_only"})
BINDINGS: Final = frozenset({"tls-exporter", "none"})
EVIDENCE: Final = frozenset({"none", "optional", "required"})


@dataclass(frozen=True, slots=True)
class PchChallenge:
    """One `WWW-Authenticate: PCH` challenge (PCH §2).

    `algorithms`: what the route accepts, most preferred first; a hybrid reads `ed25519+ml-dsa-65`.
    """

    realm: str
    challenge: ChallengeText
    algorithms: tuple[str, ...]
    mode: str
    binding: str
    max_age_s: int
    evidence: str
    hints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChallengeParts:
    """The public layout of a challenge (PCH §2).

    It is opaque to the protocol; people read it when debugging.
    """

    version: int
    relax_grant: bool
    epoch: int
    issued_ms: int
    random: bytes
    seal: bytes


def parse_challenge_text(text: str) -> ChallengeText:
    """Accept exactly 60 base64url characters, PCH §2. Raises `ChallengeSyntaxError`."""
    if not _CHALLENGE.fullmatch(text):
        raise ChallengeSyntaxError("a challenge is exactly 60 base64url characters")
    return ChallengeText(text)


def challenge_parts(text: ChallengeText) -> ChallengeParts:
    """Split a challenge into its fields without checking the seal, PCH §2."""
    token = base64.urlsafe_b64decode(text)
    return ChallengeParts(
        version=token[0] & 0x7F,
        relax_grant=bool(token[0] & 0x80),
        epoch=int.from_bytes(token[1:5], "big"),
        issued_ms=int.from_bytes(token[5:13], "big"),
        random=token[13:29],
        seal=token[29:45],
    )


def parse_pch_challenge(lines: Sequence[bytes]) -> tuple[ChallengeText, ...]:
    """Read the sf-list of 1 to 8 strings in PCH-Challenge, PCH §5; no lines give an empty tuple.

    Raises `ChallengeSyntaxError` when one member is out of grammar, doubled, or there are more than 8.
    """
    if not lines:
        return ()
    members = []
    for member in _joined(lines).split(","):
        match = _LIST_MEMBER.fullmatch(member)
        if not match:
            raise ChallengeSyntaxError("PCH-Challenge is not a list of challenges")
        members.append(ChallengeText(match[1]))
    if len(members) > MAX_CHALLENGES_PER_CONNECTION or len(set(members)) != len(members):
        raise ChallengeSyntaxError("PCH-Challenge has too many or repeated members")
    return tuple(members)


def parse_receipt_id(lines: Sequence[bytes]) -> str | None:
    """Read PCH-Receipt, an sf-string (PCH §5); None when it is absent or out of grammar."""
    match = _SF_STRING.fullmatch(lines[0].strip(b" \t")) if len(lines) == 1 else None
    return match[1].decode("ascii") if match else None


def parse_reason(lines: Sequence[bytes]) -> str | None:
    """Read PCH-Reason, an sf-token (PCH §5); None when it is absent or out of grammar."""
    match = _SF_TOKEN.fullmatch(lines[0].strip(b" \t")) if len(lines) == 1 else None
    return match[0].decode("ascii") if match else None


def parse_www_authenticate(lines: Sequence[bytes]) -> PchChallenge | None:
    """Find the PCH challenge among those of WWW-Authenticate (RFC 9110 §11.6.1, PCH §2).

    Challenges of other schemes are passed over. Returns None when none is PCH. Raises `ChallengeSyntaxError`
    when the field is out of grammar, holds two PCH challenges, or a parameter is absent, doubled or has no
    known value.
    """
    found: list[dict[str, str]] = []
    for line in lines:
        text = _joined([line])
        found.extend(params for scheme, params in _challenges(text) if scheme.lower() == "pch")
    if not found:
        return None
    if len(found) > 1:
        raise ChallengeSyntaxError("WWW-Authenticate holds more than one PCH challenge")
    return _pch_challenge(found[0])


def _joined(lines: Sequence[bytes]) -> str:
    if sum(map(len, lines)) > MAX_CHALLENGE_FIELD_BYTES:
        raise ChallengeSyntaxError("a challenge field is too long")
    try:
        return b", ".join(line.strip(b" \t") for line in lines).decode("ascii")
    except UnicodeDecodeError as error:
        raise ChallengeSyntaxError("a challenge field is not ASCII") from error


def _challenges(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Tokenise one WWW-Authenticate line; commas part parameters and challenges alike (RFC 9110 §11.6.1)."""
    position, scheme, params = 0, "", dict[str, str]()
    while position < len(text):
        param = _PARAM.match(text, position) if scheme else None
        if param:
            _add_param(params, param)
            position = param.end()
        else:
            match = _SCHEME.match(text, position)
            if not match:
                raise ChallengeSyntaxError("WWW-Authenticate does not follow its grammar")
            if scheme:
                yield scheme, params
            scheme, params = match["scheme"], {}
            position = match.end()
            if position < len(text) and _PARAM.match(text, position):
                continue
            token68 = _TOKEN68.match(text, position)
            position = token68.end() if token68 else position
        separator = _SEPARATOR.match(text, position)
        if not separator:
            raise ChallengeSyntaxError("WWW-Authenticate does not follow its grammar")
        position = separator.end()
    if scheme:
        yield scheme, params


def _add_param(params: dict[str, str], match: re.Match[str]) -> None:
    name = match["name"].lower()
    if name in params or len(params) >= MAX_AUTH_PARAMS:
        raise ChallengeSyntaxError("WWW-Authenticate has too many or repeated parameters")
    quoted = match["quoted"]
    params[name] = match["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def _pch_challenge(params: dict[str, str]) -> PchChallenge:
    missing = {"realm", "challenge", "algs", "mode", "binding", "max-age", "evidence"} - params.keys()
    if missing:
        raise ChallengeSyntaxError("the PCH challenge lacks a parameter")
    if not _MAX_AGE.fullmatch(params["max-age"]) or not 1 <= int(params["max-age"]) <= MAX_MAX_AGE_S:
        raise ChallengeSyntaxError("the PCH challenge's max-age is out of range")
    if params["mode"] not in MODES or params["binding"] not in BINDINGS or params["evidence"] not in EVIDENCE:
        raise ChallengeSyntaxError("the PCH challenge has an unknown mode, binding or evidence")
    return PchChallenge(
        realm=params["realm"],
        challenge=parse_challenge_text(params["challenge"]),
        algorithms=tuple(params["algs"].split()),
        mode=params["mode"],
        binding=params["binding"],
        max_age_s=int(params["max-age"]),
        evidence=params["evidence"],
        hints=tuple(params.get("hints", "").split()),
    )
