"""The policy engine that a configuration asks for (`[policy]`), with the route table as its data."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from policy.evaluator import PolicyError
from policy.route_data import RoutePolicyData, policy_data
from policy.wasm import MAX_WASM_BYTES, WasmPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from extproc.config import FilterConfig
    from policy.evaluator import PolicyEvaluator

MAX_SOURCE_BYTES: Final = 262_144


def open_engine(config: FilterConfig) -> PolicyEvaluator:
    """Open the engine. Raises PolicyError when the policy cannot be read or used."""
    section = config.policy
    if section.engine == "opa":
        # Imported here: the client's package is an optional part.
        from policy.opa import OpaPolicy

        return OpaPolicy(section.opa_host, section.opa_port, timeout_s=section.timeout_ms / 1000)
    return _wasm(config)


def read_policy_bundle(config: FilterConfig) -> bytes:
    """Give the policy in force as the document whose SHA-256 receipts carry; may ask an OPA server, and blocks.

    Raises PolicyError.
    """
    section = config.policy
    if section.engine == "opa":
        from policy.opa import read_bundle

        return read_bundle(section.opa_host, section.opa_port, timeout_s=section.timeout_ms / 1000)
    return _wasm(config).bundle


def route_data(config: FilterConfig) -> bytes:
    """Write the guarded routes as policy sees them."""
    return policy_data(
        {
            route.name: RoutePolicyData(
                binding=route.binding,
                subjects=tuple(sorted(set(route.subjects))),
                algorithms=route.algorithms,
                mode=route.mode,
                evidence=route.evidence,
                fallback_classic=route.fallback_classic,
            )
            for route in config.routes
            if route.guarded
        }
    )


def _wasm(config: FilterConfig) -> WasmPolicy:
    section = config.policy
    if section.module is None:
        policy = resources.files("policy")
        module = (policy / "compiled/shield.wasm").read_bytes()
        sources = {"shield.rego": (policy / "shield.rego").read_text("utf-8")}
    else:
        module = _read(section.module, MAX_WASM_BYTES)
        sources = {} if section.source is None else {section.source.name: _read_text(section.source)}
    return WasmPolicy(module, route_data(config), sources)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise PolicyError(f"{path.name}: cannot be read: {error.strerror}") from error
    if len(raw) > max_bytes:
        raise PolicyError(f"{path.name}: is larger than {max_bytes} bytes")
    return raw


def _read_text(path: Path) -> str:
    try:
        return _read(path, MAX_SOURCE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path.name}: is not UTF-8") from error
