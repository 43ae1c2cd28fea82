"""Capabilities: macaroons v2 that say who may do what, checked before anything else is done (I-3, RUNBOOK.md §11).

A token's identifier is `kms1.<root id>.<token id>`: it names the root that minted it and itself, and is public.
Everything else is in first-party caveats (`kms.caveats`); third-party ones are refused. A capability that does not
verify is answered with 401, one that verifies and does not cover the request with 403.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from pymacaroons import Macaroon, Verifier

from kms.caveats import MAX_CAVEATS, MAX_TOKEN_CHARS, covers_key, covers_path, limits_of
from kms.errors import NoCapability, Unauthenticated
from kms.principal import Principal, Scope
from kms.revocation import TOKEN_ID
from kms.root_key import ROOT_ID

if TYPE_CHECKING:
    from kms.revocation import Revocations
    from kms.root_key import RootKey, RootKeys

LOCATION: Final = "signet-kms"
MAX_CACHED_TOKENS: Final = 4096
IDENTIFIER_VERSION: Final = "kms1"

_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] {1,8}([A-Za-z0-9_-]{1,4096})\Z", re.ASCII)
_MAX_AUTHORIZATION_CHARS: Final = MAX_TOKEN_CHARS + len("Bearer") + 8
_V2: Final = 2


class Authority:
    """Verifies capabilities. One thread owns an object; nothing here waits.

    What verified is kept, so that a token's MAC is computed once; expiry, its root and revocation are looked at each
    time. A token itself is never kept: its SHA-256 is what it is found by.
    """

    def __init__(
        self, roots: RootKeys, revocations: Revocations | None, *, max_cached_tokens: int = MAX_CACHED_TOKENS
    ) -> None:
        self._roots = roots
        self._revocations = revocations
        self._max_cached_tokens = max_cached_tokens
        self._verified: OrderedDict[bytes, tuple[Principal, RootKey]] = OrderedDict()

    @property
    def problem(self) -> str | None:
        """Why capabilities cannot be checked as they should be; None when they can."""
        known = None if self._revocations is None else self._revocations.problem
        return known or self._roots.problem

    @property
    def roots(self) -> tuple[str, ...]:
        """List the ids of the roots that verify; looks at their file when that is due."""
        return self._roots.in_force

    @property
    def revoked(self) -> frozenset[str]:
        """List the ids of tokens and roots that are taken back; looks at their file when that is due."""
        return frozenset() if self._revocations is None else self._revocations.in_force

    def rotation_due(self, now_s: int) -> bool:
        """Say whether no root may mint any more. `now_s`: POSIX seconds."""
        return self._roots.rotation_due(now_s)

    def reload(self) -> None:
        """Look at the files of roots and revocations now."""
        self._roots.reload()
        if self._revocations is not None:
            self._revocations.reload()

    def authenticate(self, authorization_value: str | None, now_s: int) -> Principal:
        """Verify the value of an Authorization field. `now_s`: POSIX seconds.

        Raises Unauthenticated when it is no capability, or forged, expired or revoked; NoCapability when it verifies
        and its caveats are not understood or allow nothing; StoreUnavailable when revocations are not known.
        """
        token = _bearer(authorization_value)
        place = hashlib.sha256(token.encode("ascii")).digest()
        known = self._verified.get(place)
        if known is None:
            known = self._verify(token)
            self._remember(place, known)
        else:
            self._verified.move_to_end(place)
        principal, root = known
        if self._roots.find(root.id) is not root:
            # The file was read again: the root may be gone, or have an earlier end.
            del self._verified[place]
            principal, root = self._verify(token)
            self._remember(place, (principal, root))
        self._check_current(principal, root, now_s)
        return principal

    def _remember(self, place: bytes, verified: tuple[Principal, RootKey]) -> None:
        self._verified[place] = verified
        if len(self._verified) > self._max_cached_tokens:
            self._verified.popitem(last=False)

    def _check_current(self, principal: Principal, root: RootKey, now_s: int) -> None:
        if now_s >= principal.expires_at_s or now_s >= root.not_after_s:
            raise Unauthenticated("the capability has expired")
        if self._revocations is not None and self._revocations.is_revoked(principal.token_id, root.id):
            raise Unauthenticated("the capability is revoked")

    def _verify(self, token: str) -> tuple[Principal, RootKey]:
        macaroon = read_token(token)
        root_id, token_id = identity_of(macaroon)
        root = self._roots.find(root_id)
        if root is None:
            raise Unauthenticated("the capability does not verify")
        verifier = Verifier()
        # The library computes the MAC; what the caveats say is judged below, and only once they are authentic.
        verifier.satisfy_general(lambda _: True)
        try:
            verifier.verify(macaroon, root.key)
        except Exception:  # noqa: BLE001 - whatever the library says, the token is refused, and it may quote the token
            raise Unauthenticated("the capability does not verify") from None
        return _principal(macaroon, root_id, token_id), root


def authorise(principal: Principal, *, scope: Scope, tenant: str, kid: str, alg: str, path: str) -> None:
    """Check that a capability covers one request.

    `tenant`: whose keys are meant. `kid`: with or without a version; for a key yet to be made
    `<tenant>/<purpose>/<alg>/<its uuid>`; "" where no single key is meant, which a `key=` caveat refuses. `alg`: "" is
    taken from the kid. `path`: as in HTTP, percent-decoded, for every transport. Raises NoCapability.
    """
    if scope not in principal.scopes:
        raise NoCapability(f"scope '{scope.value}' required", hint=f"attach macaroon with {scope.value}")
    if tenant not in principal.tenants or (kid and kid.partition("/")[0] != tenant):
        raise NoCapability("the capability is not for this tenant")
    if principal.keys and not any(covers_key(each, kid) for each in principal.keys):
        raise NoCapability("the capability is not for this key")
    if principal.algs and (alg or _alg_of(kid)) not in principal.algs:
        raise NoCapability("the capability is not for this algorithm")
    if principal.paths and not any(covers_path(each, path) for each in principal.paths):
        raise NoCapability("the capability is not for this path")


def read_token(token: str) -> Macaroon:
    """Decode a token without verifying it; only what we would write the same way is one. Raises Unauthenticated."""
    if len(token) > MAX_TOKEN_CHARS:
        raise Unauthenticated("the capability is too long")
    try:
        macaroon = Macaroon.deserialize(token)
        # One token has one spelling: the library itself passes over stray characters and what follows the end.
        same = macaroon.version == _V2 and macaroon.serialize() == token and macaroon.location == LOCATION
    except Exception:  # noqa: BLE001 - the library raises whatever its input makes it stumble over
        raise Unauthenticated("the capability is malformed") from None
    if not same or len(macaroon.caveats) > MAX_CAVEATS or any(each.third_party() for each in macaroon.caveats):
        raise Unauthenticated("the capability is malformed")
    return macaroon


def identity_of(macaroon: Macaroon) -> tuple[str, str]:
    """Read the ids of its root and of the token itself. Raises Unauthenticated."""
    try:
        version, root_id, token_id = macaroon.identifier_bytes.decode("ascii").split(".")
    except ValueError:
        raise Unauthenticated("the capability is malformed") from None
    if version != IDENTIFIER_VERSION or not ROOT_ID.match(root_id) or not TOKEN_ID.match(token_id):
        raise Unauthenticated("the capability is malformed")
    return root_id, token_id


def _bearer(value: str | None) -> str:
    if value is None:
        raise Unauthenticated("a capability is required", hint="send Authorization: Bearer <macaroon>")
    match = _BEARER.match(value) if len(value) <= _MAX_AUTHORIZATION_CHARS else None
    if match is None:
        raise Unauthenticated("the Authorization field holds no capability")
    return match[1]


def _principal(macaroon: Macaroon, root_id: str, token_id: str) -> Principal:
    try:
        limits = limits_of(each.caveat_id_bytes.decode() for each in macaroon.caveats)
    except UnicodeDecodeError:
        raise NoCapability("the capability has a caveat that is unknown or malformed") from None
    if limits.scopes is None or limits.tenants is None or limits.expires_at_s is None:
        # In a macaroon no caveat means no limit: such a token would be good for everything, for ever (K-G3).
        raise NoCapability("the capability must name its scopes, its tenants and its end")
    return Principal(
        token_id=token_id,
        root_key_id=root_id,
        tenants=limits.tenants,
        scopes=frozenset(map(Scope, limits.scopes)),
        keys=limits.keys or frozenset(),
        algs=limits.algs or frozenset(),
        paths=limits.paths or frozenset(),
        rate_per_s=limits.rate_per_s,
        expires_at_s=limits.expires_at_s,
    )


def _alg_of(kid: str) -> str:
    segments = kid.split("/")
    return segments[2] if len(segments) == 4 else ""
