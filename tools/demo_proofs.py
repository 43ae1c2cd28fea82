"""A chapter of `make demo`: the same client with other proofs: ML-DSA, a hybrid, and one that relaxes its header."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from pch.client import Client
from pch.keys import generate, public_jwk

if TYPE_CHECKING:
    from pathlib import Path

    from pch.client import Response
    from pch.client.exchange import Answer, WireRequest
    from tools.demo import Demo

HYBRID: Final = "ed25519+ml-dsa-65"
PROOFS: Final = ("ed25519", "ml-dsa-65", HYBRID)
PROOF_ROUTES: Final[tuple[dict[str, Any], ...]] = (
    {"name": "proofs", "path": "/proofs/**", "algorithms": list(PROOFS)},
    {
        "name": "relaxed",
        "path": "/relaxed/**",
        "algorithms": [HYBRID],
        "evidence": "optional",
        "max_signature_bytes": 2000,
    },
)
"""Routes of the chapter. The second grants so few bytes of signature that a hybrid has to move its ML-DSA half."""
EVIDENCE: Final = {"type": "pch.evidence.v1", "claims": {"build": "demo"}}
REGISTERED_WITHIN_S: Final = 10.0
POLL_S: Final = 0.1


def tell_proofs(demo: Demo) -> None:
    """Chapter 6: register keys while the filter runs, and send a request with each proof."""
    print("6. Other proofs: post-quantum, both together, and relaxed.")
    keys = {name: [generate(each) for each in name.split("+")] for name in PROOFS}
    for name, pair in keys.items():
        _register(demo, demo.stack.files.var / f"{name}.jwks", pair)
    for name, pair in keys.items():
        response = _send(demo, "/proofs/demo", pair, [])
        demo.check(f"{name}: {response.status}, receipt: {_told(demo, response)}", _algorithms(demo, response) == name)
    seen: list[int] = []
    response = _send(demo, "/relaxed/demo", keys[HYBRID], seen, evidence=EVIDENCE)
    moved = f"header of {seen[-2]} bytes, then of {seen[-1]}" if len(seen) > 1 else "not relaxed"
    recorded = demo.receipt_of(response.receipt_id)["proof"]["evidence_sha256"] is not None
    demo.check(
        f"{HYBRID}, relaxed: {response.status}, {moved}; receipt: {_told(demo, response)}", recorded and len(seen) > 1
    )


def _register(demo: Demo, path: Path, keys: list[dict[str, str]]) -> None:
    path.write_text(json.dumps({"keys": [public_jwk(key) for key in keys]}))
    command = [sys.executable, "-m", "extproc", "clients", "add", "--config", str(demo.stack.files.toml)]
    subprocess.run([*command, "--subject", "demo", "--jwk", str(path)], check=True, capture_output=True, timeout=30)


def _send(demo: Demo, path: str, keys: list[dict[str, str]], signed: list[int], **settings: Any) -> Response:
    """Send a request; again while the workers, which look twice a second, do not know the keys yet."""

    def note(wire: WireRequest, _answer: Answer) -> None:
        if wire.is_signed:
            signed.append(sum(len(name) + len(value) + 4 for name, value in wire.headers))

    until = time.monotonic() + REGISTERED_WITHIN_S
    with Client(key=tuple(keys), verify=demo.state["ca"], observer=note, **settings) as client:
        while True:
            response = client.post(demo.state["https"] + path, content=b"{}")
            if response.reason != "unknown_key" or time.monotonic() > until:
                return response
            time.sleep(POLL_S)


def _algorithms(demo: Demo, response: Response) -> str:
    proof = demo.receipt_of(response.receipt_id)["proof"]
    return "+".join(each["alg"] for each in proof["signatures"]) if proof and response.status == 200 else ""


def _told(demo: Demo, response: Response) -> str:
    receipt = demo.receipt_of(response.receipt_id)
    signatures = (receipt["proof"] or {}).get("signatures", [])
    algorithms = ", ".join(f'"alg": "{each["alg"]}"' for each in signatures)
    return f"{receipt['decision']}, {algorithms or receipt['reason']}"
