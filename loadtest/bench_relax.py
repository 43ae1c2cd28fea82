"""Header bytes that relaxing saves, and what it costs in time, on the real stack.

    python loadtest/bench_relax.py [--requests 60] [--json]

One client, one connection a variant (HTTP/2), a route that relaxes and one that has room for everything in the header.
Header bytes are those of PCH §6 over what the client sends. Variants take turns, so that the machine's noise meets
them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pch.client import Client
from pch.keys import generate, private_key_from_jwk, public_jwk
from tools.stack import Stack
from tools.stack_certs import write_private
from tools.stack_config import Ports, StackSettings

if TYPE_CHECKING:
    from pch.client.exchange import Answer, WireRequest

ALGORITHMS = ["ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"]
ROOM = dict.fromkeys(("max_header_bytes", "max_field_bytes", "max_signature_bytes"), 49_152)
ROUTES: tuple[dict[str, Any], ...] = (
    {"name": "inline", "path": "/inline", "evidence": "optional", "mode": "or", "algorithms": ALGORITHMS, **ROOM},
    {"name": "relaxed", "path": "/relaxed", "evidence": "optional", "mode": "or", "algorithms": ALGORITHMS}
    | {"relax": "always"},
)
SIGNERS = {"ed25519": ("ed25519",), "ml-dsa-65": ("ml-dsa-65",), "hybrid": ("ed25519", "ml-dsa-65")}
EVIDENCE = {"none": None, "6 KB": {"type": "pch.evidence.v1", "claims": {"note": "n" * 6000}}}
WARM_UP = 3


@dataclass
class Variant:
    """One way to send; collects what its requests took."""

    signers: str
    evidence: str
    method: str
    client: Client
    url: str
    header_bytes: int = 0
    took_s: list[float] = field(default_factory=list)

    def send(self) -> None:
        """Send one request and take its time. Raises RuntimeError when it does not pass."""
        started_s = time.perf_counter()
        response = self.client.request(self.method, self.url, content=b"x" * 1000 if self.method == "PUT" else None)
        if response.status != 200:
            raise RuntimeError(f"{self.url}: {response.status} {response.reason}")
        self.took_s.append(time.perf_counter() - started_s)

    def seen(self, wire: WireRequest, answer: Answer) -> None:
        """Note the header bytes of the request itself."""
        if wire.is_signed and answer.status == 200:
            self.header_bytes = sum(len(name) + len(value) + 4 for name, value in wire.headers)


def make(stack: Stack, keys: dict[str, Any], route: str, signers: str, evidence: str, method: str) -> Variant | None:
    """Open the client of one variant; None where there is nothing to relax."""
    if signers == "ed25519" and evidence == "none":
        return None
    seen: list[Variant] = []

    def observe(wire: WireRequest, answer: Answer) -> None:
        seen[0].seen(wire, answer)

    client = Client(
        key=tuple(keys[f"{signers}/{name}"] for name in SIGNERS[signers]),
        verify=stack.files.tls / "ca.pem",
        evidence=EVIDENCE[evidence],
        observer=observe,
    )
    url = f"https://127.0.0.1:{stack.settings.ports.https}/{route}"
    seen.append(Variant(signers, evidence, method, client, url))
    return seen[0]


def make_keys(var: Path) -> dict[str, Any]:
    """Register the keys of every variant; gives their signers."""
    private = {f"{kind}/{name}": generate(name) for kind, names in SIGNERS.items() for name in names}
    signers = {label: private_key_from_jwk(jwk) for label, jwk in private.items()}
    partners = {"hybrid/ed25519": "hybrid/ml-dsa-65", "hybrid/ml-dsa-65": "hybrid/ed25519"}
    entries = []
    for label, jwk in private.items():
        entry = {"subject": "bench", "jwk": dict(public_jwk(jwk)), "not_before": None, "not_after": None}
        entry["status"] = "active"
        if label in partners:
            entry["partner"] = signers[partners[label]].key_id
        entries.append(entry)
    write_private(var / "keyring.json", json.dumps(entries).encode())
    return signers


def compare(inline: Variant, relaxed: Variant, requests: int) -> dict[str, Any]:
    """Let two variants take turns; give bytes and median milliseconds of both."""
    for _ in range(WARM_UP):
        inline.send()
        relaxed.send()
    inline.took_s.clear()
    relaxed.took_s.clear()
    for _ in range(requests):
        inline.send()
        relaxed.send()
    inline_ms, relaxed_ms = (statistics.median(each.took_s) * 1000 for each in (inline, relaxed))
    return {
        "signers": inline.signers,
        "evidence": inline.evidence,
        "method": inline.method,
        "inline_header_bytes": inline.header_bytes,
        "relaxed_header_bytes": relaxed.header_bytes,
        "saved_bytes": inline.header_bytes - relaxed.header_bytes,
        "saved_percent": round(100 * (1 - relaxed.header_bytes / inline.header_bytes)),
        "inline_p50_ms": round(inline_ms, 2),
        "relaxed_p50_ms": round(relaxed_ms, 2),
        "ratio": round(relaxed_ms / inline_ms, 2),
    }


def main() -> int:
    """Measure every variant and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        keys = make_keys(Path(folder))
        with Stack(StackSettings(Path(folder), Ports.free(), routes=ROUTES)) as stack:
            for signers in SIGNERS:
                for evidence in EVIDENCE:
                    for method in ("PUT", "GET"):
                        pair = [make(stack, keys, route, signers, evidence, method) for route in ("inline", "relaxed")]
                        if pair[0] is None or pair[1] is None:
                            continue
                        with pair[0].client, pair[1].client:
                            rows.append(compare(pair[0], pair[1], arguments.requests))
                        if not arguments.json:
                            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if arguments.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
