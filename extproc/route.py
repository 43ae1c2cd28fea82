"""Routes: which requests are guarded, and by what (docs/reference/pch.md §4 step 1).

The first route in the file that matches host, path and method decides; no match is 403 `no_route`. A
request without a route never reaches the upstream, so a rule forgotten denies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from extproc.body_order import MAX_STREAMED_BODY_BYTES
from extproc.config_fields import rule
from extproc.config_kinds import Choice, Flag, Items, Number, Parsed, Text
from extproc.route_pattern import HostPattern, compile_path, parse_authority, parse_host
from extproc.subject import check_subject
from extproc.tenants import MAX_TENANTS, check_tenant
from pch.algorithms import ALGORITHMS, HYBRIDS
from pch.errors import NoRoute

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROUTES: Final = 256

_METHOD: Final = re.compile(r"\*|[A-Z][A-Z0-9!#$%&'+.^_`|~-]{0,31}")


def _check_method(method: str) -> None:
    if not _METHOD.fullmatch(method):
        raise ValueError('must be "*" or an upper-case method')


def _check_algorithm(algorithm: str) -> None:
    if algorithm not in ALGORITHMS and algorithm not in HYBRIDS:
        raise ValueError("is not one of " + ", ".join(sorted([*ALGORITHMS, *HYBRIDS])))


@dataclass(frozen=True, slots=True)
class Route:
    """One `[[route]]` table; docs/reference/filter.toml explains every key.

    `hosts`, `path` and `methods` select; `guard` says whether a proof is asked for; the rest is what it
    needs.
    """

    name: str = field(
        metadata=rule(Text(r"[a-z0-9][a-z0-9_-]{0,63}", "1 to 64 of a-z 0-9 - _, starting with a letter or digit"))
    )
    path: str = field(metadata=rule(Parsed(compile_path)))
    hosts: tuple[str, ...] = field(default=("*",), metadata=rule(Items(parse_host, 1, 64)))
    methods: tuple[str, ...] = field(default=("*",), metadata=rule(Items(_check_method, 1, 32)))
    guard: str = field(default="pch", metadata=rule(Choice(("pch", "open"))))
    binding: str = field(default="tls-exporter", metadata=rule(Choice(("tls-exporter", "none"))))
    algorithms: tuple[str, ...] = field(
        default=("ed25519", "ecdsa-p256-sha256"), metadata=rule(Items(_check_algorithm, 1, 16))
    )
    mode: str = field(default="and", metadata=rule(Choice(("and", "or", "pq_only"))))
    evidence: str = field(default="none", metadata=rule(Choice(("none", "optional", "required"))))
    body: str = field(default="whole", metadata=rule(Choice(("whole", "streamed"))))
    relax: str = field(default="on_demand", metadata=rule(Choice(("off", "on_demand", "always"))))
    max_header_bytes: int = field(default=12_000, metadata=rule(Number(1024, 49_152, "bytes; PCH §6 caps it at 49152")))
    max_field_bytes: int = field(default=8000, metadata=rule(Number(512, 49_152, "bytes of one field")))
    max_signature_bytes: int = field(default=7000, metadata=rule(Number(512, 49_152, "bytes of both signature fields")))
    max_body_bytes: int = field(default=65_536, metadata=rule(Number(0, MAX_STREAMED_BODY_BYTES, "bytes")))
    subjects: tuple[str, ...] = field(default=(), metadata=rule(Items(check_subject, 0, 10_000)))
    tenants: tuple[str, ...] = field(default=(), metadata=rule(Items(check_tenant, 0, MAX_TENANTS)))
    permit_upgrade: bool = field(default=False, metadata=rule(Flag()))
    quota_per_s: int = field(default=0, metadata=rule(Number(0, 1_000_000, "requests per second and subject")))
    quota_burst: int = field(default=20, metadata=rule(Number(1, 1_000_000, "requests at once and subject")))
    fallback_classic: bool = field(default=False, metadata=rule(Flag()))

    @property
    def guarded(self) -> bool:
        """Tell whether requests here need a proof."""
        return self.guard == "pch"

    @property
    def streams(self) -> bool:
        """Tell whether upstream may see a body's beginning before its end was checked."""
        return self.body == "streamed"

    @property
    def hybrids_alone(self) -> bool:
        """Tell whether every request needs both signatures of a hybrid."""
        return all(name in HYBRIDS for name in self.algorithms)

    def contradiction(self) -> str | None:
        """Say what in this route contradicts itself, or None."""
        classical = [name for name in self.algorithms if name in ALGORITHMS and not ALGORITHMS[name].post_quantum]
        if self.guarded and self.mode == "pq_only" and classical:
            return f'algorithms: mode "pq_only" accepts no {classical[0]} alone'
        if self.fallback_classic and (self.mode != "and" or not any(name in HYBRIDS for name in self.algorithms)):
            return 'fallback_classic: needs mode "and" and a hybrid among algorithms'
        return None

    @property
    def bound(self) -> bool:
        """Tell whether the proof is bound to the TLS connection."""
        return self.binding == "tls-exporter"


class RouteTable:
    """The routes of one configuration, compiled. Immutable: a new configuration brings a new table."""

    __slots__ = ("_compiled",)

    def __init__(self, routes: Sequence[Route]) -> None:
        self._compiled: Final[tuple[_CompiledRoute, ...]] = tuple(_CompiledRoute.of(route) for route in routes)

    def match(self, host: str, path: str, method: str) -> Route:
        """Find the route of a request, PCH §4 step 1: the first that matches.

        `host`: @authority in the form of RFC 9421 §2.2.3. `path`: as sent, without the query. `method`: as
        sent. Raises `NoRoute`, also for a host or path that is not well-formed.
        """
        authority = parse_authority(host)
        if authority is None:
            raise NoRoute("the host is not well-formed")
        if not path.startswith("/") or "?" in path or "#" in path:
            raise NoRoute("the path is not an absolute path")
        for compiled in self._compiled:
            if (
                (compiled.methods is None or method in compiled.methods)
                and compiled.path.fullmatch(path)
                and (compiled.hosts is None or any(host.matches(authority) for host in compiled.hosts))
            ):
                return compiled.route
        raise NoRoute("no declared route matches")


@dataclass(frozen=True, slots=True)
class _CompiledRoute:
    """A route made ready; None in `hosts` and `methods` stands for any."""

    route: Route
    hosts: tuple[HostPattern, ...] | None
    path: re.Pattern[str]
    methods: frozenset[str] | None

    @classmethod
    def of(cls, route: Route) -> _CompiledRoute:
        return cls(
            route,
            None if "*" in route.hosts else tuple(parse_host(host) for host in route.hosts),
            compile_path(route.path),
            None if "*" in route.methods else frozenset(route.methods),
        )
