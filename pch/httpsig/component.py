"""Component identifiers, RFC 9421 §2: a name and parameters, unique within a signature."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from pch.httpsig.errors import ComponentError
from pch.httpsig.structured_field import serialise_parameters

MAX_COMPONENTS: Final = 32
"""Most components that one signature covers (PCH §3)."""

DERIVED_NAMES: Final = frozenset(
    {
        "@method",
        "@target-uri",
        "@authority",
        "@scheme",
        "@request-target",
        "@path",
        "@query",
        "@query-param",
        "@status",
    }
)
"""The derived components of RFC 9421 §2.2. `@signature-params` is not one that can be covered (§2.3)."""

FLAG_PARAMETERS: Final = frozenset({"sf", "bs", "req", "tr"})
"""Parameters that are present or absent, RFC 9421 §2.1 and §2.4."""

STRING_PARAMETERS: Final = frozenset({"key", "name"})
"""Parameters with a String value, RFC 9421 §2.1.2 and §2.2.8."""

_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]{1,256}")


@dataclass(frozen=True, slots=True)
class ComponentId:
    """A component identifier.

    `name`: a lower-case field name, or a derived name starting with `@`. `params`: in the order they are
    serialised; flags have the value True. Raises ComponentError for a name or a combination that RFC 9421
    does not define.
    """

    name: str
    params: tuple[tuple[str, str | bool], ...] = ()
    serialised: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.name.startswith("@"):
            _check_derived(self.name, self.params)
        else:
            _check_field(self.name, self.params)
        object.__setattr__(self, "serialised", f'"{self.name}"{serialise_parameters(self.params)}')

    @property
    def identity(self) -> tuple[str, frozenset[tuple[str, str | bool]]]:
        """Give what tells components apart, RFC 9421 §2: name and parameters, whatever their order."""
        return self.name, frozenset(self.params)

    def param(self, name: str) -> str | bool | None:
        """Give a parameter's value, or None when it is absent."""
        for key, value in self.params:
            if key == name:
                return value
        return None


def _check_params(params: tuple[tuple[str, str | bool], ...], allowed: frozenset[str]) -> frozenset[str]:
    names = frozenset([name for name, _ in params])
    if len(names) != len(params):
        raise ComponentError("component parameter occurs twice")
    if not names <= allowed:
        raise ComponentError("component parameter is unknown or not applicable")
    for name, value in params:
        if name in FLAG_PARAMETERS and value is not True:
            raise ComponentError("component flag has a value")
        if name in STRING_PARAMETERS and type(value) is not str:
            raise ComponentError("component parameter is not a string")
    return names


def _check_derived(name: str, params: tuple[tuple[str, str | bool], ...]) -> None:
    if name not in DERIVED_NAMES:
        raise ComponentError("derived component is unknown")
    allowed = frozenset({"req"}) if name != "@status" else frozenset()
    if name == "@query-param":
        if "name" not in _check_params(params, allowed | {"name"}):
            raise ComponentError("@query-param has no name")
    else:
        _check_params(params, allowed)


def _check_field(name: str, params: tuple[tuple[str, str | bool], ...]) -> None:
    if not _FIELD_NAME.fullmatch(name):
        raise ComponentError("component name is not a lower-case field name")
    if params:
        names = _check_params(params, frozenset({"sf", "key", "bs", "req", "tr"}))
        # RFC 9421 §2.1: the wrapped bytes are not a structured field any more.
        if "bs" in names and names & {"sf", "key"}:
            raise ComponentError("bs excludes sf and key")


@lru_cache(maxsize=512)
def bare(name: str) -> ComponentId:
    """Give the identifier of `name` without parameters; the same few recur in every request."""
    return ComponentId(name)


def parse_component(item: Any) -> ComponentId:
    """Read one item of a parsed inner list as a component identifier, RFC 9421 §2.

    `item`: (bare item, parameters) as `http_sf` gives it. Raises ComponentError.
    """
    name, params = item
    if type(name) is not str:
        raise ComponentError("component identifier is not a string")
    return ComponentId(name, tuple(params.items())) if params else bare(name)
