"""Read and write key ids: `<tenant>/<purpose>/<alg>/<uuid>#vN` (API.md §2.1, I-5)."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from blake3 import blake3

from kms.errors import BadRequest
from kms.primitive import KEY_ALGORITHMS

MAX_KID_CHARS: Final = 256
MAX_VERSION: Final = 1_000_000
# Tenants and purposes are labels of metrics and segments of paths: a small alphabet, a bounded length.
LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62})\Z")
_VERSION: Final = re.compile(r"v([1-9][0-9]{0,6})\Z")


@dataclass(frozen=True, slots=True, order=True)
class KeyName:
    """A key without its version: what `rotate` adds versions to."""

    tenant: str
    purpose: str
    alg: str
    uuid: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.purpose}/{self.alg}/{self.uuid}"

    def version(self, number: int) -> Kid:
        """Name one version of this key."""
        return Kid(self, number)

    @property
    def hash8(self) -> str:
        """Give the eight hex digits that stand for this key in logs and metrics (OBSERVABILITY.md §3.1)."""
        return kid_hash(str(self))


@dataclass(frozen=True, slots=True, order=True)
class Kid:
    """One version of one key."""

    name: KeyName
    version: int

    def __str__(self) -> str:
        return f"{self.name}#v{self.version}"


def kid_hash(text: str) -> str:
    """Hash a kid to the eight hex digits by which logs know it: `BLAKE3(kid)`, its first four bytes."""
    return str(blake3(text.encode()).hexdigest()[:8])


def check_label(text: str, what: str) -> str:
    """Return a tenant or purpose as it is, or raise BadRequest. `what` names it in the message."""
    if LABEL.match(text) is None:
        raise BadRequest(f"{what} must be 1 to 63 characters of a-z, 0-9, '.', '_' and '-'")
    return text


def parse_key_name(text: str) -> KeyName:
    """Read a kid without its version, or raise BadRequest."""
    if len(text) > MAX_KID_CHARS:
        raise BadRequest("kid is too long")
    segments = text.split("/")
    if len(segments) != 4:
        raise BadRequest("kid must be <tenant>/<purpose>/<alg>/<uuid>#vN")
    tenant, purpose, alg, key_uuid = segments
    check_label(tenant, "the kid's tenant")
    check_label(purpose, "the kid's purpose")
    if alg not in KEY_ALGORITHMS:
        raise BadRequest("the kid's algorithm is not known")
    try:
        canonical = str(uuid.UUID(key_uuid))
    except ValueError as error:
        raise BadRequest("the kid's last segment must be a UUID") from error
    if canonical != key_uuid:
        raise BadRequest("the kid's UUID must be in its canonical lowercase form")
    return KeyName(tenant, purpose, alg, key_uuid)


def parse_kid(text: str) -> Kid:
    """Read a kid with its version, or raise BadRequest."""
    name, hash_sign, version = text.partition("#")
    match = _VERSION.match(version) if hash_sign else None
    if match is None or int(match[1]) > MAX_VERSION:
        raise BadRequest("kid must end in #vN, N from 1")
    return Kid(parse_key_name(name), int(match[1]))


def parse_kid_or_name(text: str) -> Kid | KeyName:
    """Read a kid that may lack its version, which then means the newest one."""
    return parse_kid(text) if "#" in text else parse_key_name(text)


def kid_text_from_path(raw_path_segment: str) -> str:
    """Decode the part of a request path that names a kid: slashes raw or %2F, `#` as %23; once, never twice."""
    return unquote(raw_path_segment, errors="strict")
