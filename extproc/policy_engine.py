"""The policy engine that a configuration asks for (`[policy]`), with the route table as its data."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

import msgspec

from policy.evaluator import PolicyError
from policy.route_data import RoutePolicyData, policy_data
from policy.wasm import MAX_WASM_BYTES, WasmPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from extproc.config import FilterConfig
    from policy.evaluator import PolicyEvaluator

MAX_SOURCE_BYTES: Final = 262_144


class PolicyFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a compiled policy is made of. `module`: as compiled. `sources`: the Rego that it was made from, by name."""

    module: bytes
    sources: dict[str, str]


def open_engine(config: FilterConfig, files: PolicyFiles | None = None) -> PolicyEvaluator:
    """Open the engine. Raises PolicyError when the policy cannot be read or used.

    `files`: of a compiled policy, where they were read before.
    """
    section = config.policy
    if section.engine == "opa":
        # Imported here: the client's package is an optional part.
        from policy.opa import OpaPolicy

        return OpaPolicy(
            section.opa_host, section.opa_port, timeout_s=section.timeout_ms / 1000, commit=section.commit or None
        )
    return _wasm(config, files)


def read_policy_bundle(config: FilterConfig, files: PolicyFiles | None = None) -> bytes:
    """Give the policy in force as the document whose SHA-256 receipts carry; may ask an OPA server, and blocks.

    `files`: of a compiled policy, where they were read before. Raises PolicyError.
    """
    section = config.policy
    if section.engine == "opa":
        from policy.opa import read_bundle

        return read_bundle(
            section.opa_host, section.opa_port, timeout_s=section.timeout_ms / 1000, commit=section.commit or None
        )
    return _wasm(config, files).bundle


def read_policy_files(config: FilterConfig) -> PolicyFiles | None:
    """Read the compiled policy and its sources; None where an OPA server has the policy. Raises PolicyError."""
    section = config.policy
    if section.engine == "opa":
        return None
    if section.module is None:
        policy = resources.files("policy")
        sources = {"shield.rego": (policy / "shield.rego").read_text("utf-8")}
        return PolicyFiles((policy / "compiled/shield.wasm").read_bytes(), sources)
    module = _read(section.module, MAX_WASM_BYTES)
    return PolicyFiles(module, {} if section.source is None else {section.source.name: _read_text(section.source)})


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


def _wasm(config: FilterConfig, files: PolicyFiles | None) -> WasmPolicy:
    read = files or read_policy_files(config)
    if read is None:
        raise PolicyError("there is no compiled policy")
    return WasmPolicy(read.module, route_data(config), read.sources, commit=config.policy.commit or None)


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
