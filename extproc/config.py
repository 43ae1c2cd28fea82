"""The filter's configuration: one TOML file, checked whole before anything starts.

docs/reference/filter.toml lists the keys. `load_config` reads the file, lays `SIGNET_<SECTION>_<KEY>` over
its scalars, checks every value and every rule between values, and gives one frozen object. Whatever the
file says that no rule knows is refused.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from extproc.body_order import MAX_WHOLE_BODY_BYTES
from extproc.config_fields import (
    ConfigError,
    digestible,
    kinds_of,
    printable,
    read_values,
    resolve_paths,
)
from extproc.config_kinds import SettingError
from extproc.config_sections import (
    SECTIONS,
    AdminSection,
    FilterSection,
    KeyringSection,
    NonceStoreSection,
    ReceiptsSection,
    SealingSection,
)
from extproc.plan import Plan, PlanError
from extproc.route import MAX_ROUTES, Route

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from extproc.kms_section import KmsSection
    from extproc.log_section import LogSection
    from extproc.policy_section import PolicySection

__all__ = ["ConfigError", "FilterConfig", "load_config", "read_config_file"]

MAX_CONFIG_BYTES: Final = 1_048_576
MAX_SOCKET_PATH_BYTES: Final = 107
"""What a UNIX socket address holds on Linux, without the closing NUL."""

_MEANINGLESS_WHEN_OPEN: Final = frozenset(
    {"binding", "body", "algorithms", "mode", "evidence", "relax", "subjects"}
    | {"max_header_bytes", "max_field_bytes", "max_signature_bytes"}
    | {"quota_per_s", "quota_burst", "fallback_classic", "tenants"}
)


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """The configuration in force.

    `path`: the TOML file. `digest`: SHA-256, lower-case hex, of the effective settings without credentials,
    paths as they were written, so that equal rules have equal digests on every machine.
    """

    path: Path
    filter: FilterSection
    nonce_store: NonceStoreSection
    receipts: ReceiptsSection
    log: LogSection
    keyring: KeyringSection
    sealing: SealingSection
    kms: KmsSection
    admin: AdminSection
    policy: PolicySection
    plan: Plan
    routes: tuple[Route, ...]
    digest: str


def load_config(path: Path, environ: Mapping[str, str], *, content: bytes | None = None) -> FilterConfig:
    """Load and check the configuration in `path`; `environ` overrides scalars. Raises `ConfigError`.

    `content`: the file's bytes, when they were read before (`read_config_file`).
    """
    document = _parse(path, read_config_file(path) if content is None else content)
    for key in document:
        if key not in SECTIONS and key not in {"route", "plan"}:
            raise ConfigError(f"{path}: {printable(key)}: unknown section")
    overrides = _overrides(environ)
    values: dict[str, dict[str, Any]] = {}
    for name, section in SECTIONS.items():
        table = document.get(name, {})
        written = read_values(section, table, f"{path}: {name}")
        values[name] = written | overrides.get(name, {})
    routes = _read_routes(path, document.get("route", []))
    plan = _read_plan(path, document.get("plan", {}))
    base = path.absolute().parent
    resolved = {name: resolve_paths(each, base) for name, each in values.items()}
    if (url := resolved["receipts"]["url"]).startswith("sqlite:"):
        resolved["receipts"]["url"] = f"sqlite:{base / url.removeprefix('sqlite:')}"
    config = FilterConfig(
        path=path,
        **{name: section(**resolved[name]) for name, section in SECTIONS.items()},
        plan=plan,
        routes=tuple(Route(**route) for route in routes),
        digest=_digest(values, routes),
    )
    _check_together(config)
    return config


def read_config_file(path: Path) -> bytes:
    """Read the file's bytes, at most MAX_CONFIG_BYTES. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_CONFIG_BYTES} bytes")
    return raw


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error


def _overrides(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Collect `SIGNET_<SECTION>_<KEY>`; an unknown key of a known section is refused."""
    found: dict[str, dict[str, Any]] = {}
    for variable, text in environ.items():
        for name, section in SECTIONS.items():
            prefix = f"SIGNET_{name.upper()}_"
            if not variable.startswith(prefix):
                continue
            key = variable.removeprefix(prefix).lower()
            kind = kinds_of(section).get(key)
            if kind is None or key.upper() != variable.removeprefix(prefix):
                raise ConfigError(f"environment: {printable(variable)}: unknown key")
            try:
                found.setdefault(name, {})[key] = kind.check(kind.from_text(text))
            except SettingError as error:
                raise ConfigError(f"environment: {variable}: {error}") from error
    return found


def _read_routes(path: Path, tables: object) -> list[dict[str, Any]]:
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path}: route: at least one [[route]] is required")
    if len(tables) > MAX_ROUTES:
        raise ConfigError(f"{path}: route: at most {MAX_ROUTES} are accepted")
    routes: list[dict[str, Any]] = []
    for number, table in enumerate(tables, 1):
        where = f"{path}: route[{number}]"
        route = read_values(Route, table, where)
        if route["name"] in {each["name"] for each in routes}:
            raise ConfigError(f"{where}.name: is used by an earlier route")
        if "*" in route["methods"] and len(route["methods"]) > 1:
            raise ConfigError(f'{where}.methods: "*" stands alone')
        if route["guard"] == "open" and (idle := sorted(_MEANINGLESS_WHEN_OPEN & table.keys())):
            # Who writes these believes that they protect something.
            raise ConfigError(f'{where}.{idle[0]}: has no effect with guard = "open"')
        if route["body"] == "whole" and route["max_body_bytes"] > MAX_WHOLE_BODY_BYTES:
            raise ConfigError(f'{where}.max_body_bytes: is over {MAX_WHOLE_BODY_BYTES}, which needs body = "streamed"')
        routes.append(route)
    return routes


def _read_plan(path: Path, table: object) -> Plan:
    """Read `[plan]` and `[plan.breaker]`; its digest is apart from the configuration's (`extproc.rules`)."""
    if isinstance(table, dict) and "version" in table:
        raise ConfigError(f"{path}: plan.version: is not a setting")
    try:
        return msgspec.convert(table, Plan, strict=True)
    except (msgspec.ValidationError, PlanError) as error:
        raise ConfigError(f"{path}: plan: {printable(str(error))}") from error


def _digest(values: Mapping[str, Mapping[str, Any]], routes: list[dict[str, Any]]) -> str:
    effective: dict[str, Any] = {name: digestible(kinds_of(SECTIONS[name]), each) for name, each in values.items()}
    effective["route"] = routes
    # All keys are ASCII names and all numbers small integers: this is RFC 8785 form.
    text = json.dumps(effective, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_together(config: FilterConfig) -> None:
    """Check the rules between settings."""
    path = config.path
    if config.nonce_store.kind == "memory" and config.filter.workers > 1:
        raise ConfigError(
            f'{path}: nonce_store.kind: "memory" guards one process only, and filter.workers is'
            f" {config.filter.workers}: a replay to another worker would pass"
        )
    longest = os.fsencode(config.filter.socket_dir / f"signet-{config.filter.workers - 1}.sock")
    if len(longest) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{path}: filter.socket_dir: makes a socket path over {MAX_SOCKET_PATH_BYTES} bytes")
    for number, route in enumerate(config.routes, 1):
        if (contradiction := route.contradiction()) is not None:
            raise ConfigError(f"{path}: route[{number}].{contradiction}")
    if sum(1 + len(set(route.tenants)) for route in config.routes) > MAX_ROUTES:
        raise ConfigError(f"{path}: route.tenants: routes and their tenants are at most {MAX_ROUTES} together")
    if not config.kms.url and (config.kms.sealing_key or config.kms.log_key):
        raise ConfigError(f"{path}: kms.url: is required with kms.sealing_key or kms.log_key")
    _check_admin(path, config.admin)


def _check_admin(path: Path, admin: AdminSection) -> None:
    if (admin.tls_cert is None) != (admin.tls_key is None):
        raise ConfigError(f"{path}: admin.tls_cert: goes together with admin.tls_key")
    try:
        loopback = admin.host == "localhost" or ipaddress.ip_address(admin.host).is_loopback
    except ValueError as error:
        raise ConfigError(f'{path}: admin.host: must be an IP address or "localhost"') from error
    if not loopback and (admin.tls_cert is None or admin.bearer_token_file is None):
        raise ConfigError(f"{path}: admin.host: other than loopback needs tls_cert, tls_key and bearer_token_file")
