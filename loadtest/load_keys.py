"""Make and register the keys of the load's users: a subject for each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pch.keys import generate, public_jwk, thumbprint
from tools.stack_certs import write_private

if TYPE_CHECKING:
    from pathlib import Path

KEYS_PER_KIND: Final = {"classical": 40, "pq": 8, "hybrid": 8, "relaxed": 8, "attacker": 40}


def write_keys(folder: Path) -> None:
    """Write `load_keys.json` for the load and `keyring.json` for the filter below `folder`."""
    registered: list[dict[str, Any]] = []
    kept: dict[str, list[Any]] = {}
    for kind, count in KEYS_PER_KIND.items():
        kept[kind] = [_make(kind, f"{kind}-{number}", registered) for number in range(count)]
    write_private(folder / "load_keys.json", json.dumps(kept).encode())
    write_private(folder / "keyring.json", json.dumps(registered).encode())


def _make(kind: str, subject: str, registered: list[dict[str, Any]]) -> Any:
    if kind not in {"hybrid", "relaxed"}:
        private = generate("ml-dsa-65" if kind == "pq" else "ed25519")
        registered.append(_entry(subject, private, None))
        return private
    first, second = generate("ed25519"), generate("ml-dsa-65")
    registered.append(_entry(subject, first, thumbprint(public_jwk(second))))
    registered.append(_entry(subject, second, thumbprint(public_jwk(first))))
    return {"keys": [first, second]}


def _entry(subject: str, private: Any, partner: str | None) -> dict[str, Any]:
    return {
        "subject": subject,
        "jwk": dict(public_jwk(private)),
        "not_before": None,
        "not_after": None,
        "status": "active",
        "partner": partner,
    }
