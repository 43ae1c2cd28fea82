"""5,000 signed requests of every kind at once, and stolen ones among them, on the real stack.

Above 99.9 % of the good ones pass; every request that was signed for another connection is refused.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pch.client import AsyncClient, ClientError
from tests.e2e.attack_stage import Attacker, Stage
from tests.e2e.hybrid_request import signed
from tests.support.filter_parts import KeyPair
from tests.support.hybrid_parts import Half, halves, hybrid_keys
from tools.stack import Stack
from tools.stack_certs import write_private
from tools.stack_config import DEMO_ROUTES, Ports, StackSettings

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ED, P256, M65, HYBRID = "ed25519", "ecdsa-p256-sha256", "ml-dsa-65", "ed25519+ml-dsa-65"
REQUESTS = 5_000
STOLEN = 250
AT_ONCE = 24
LEAST_PASSED = 0.999
ROUTES: tuple[dict[str, Any], ...] = (
    {"name": "mixed", "path": "/mixed/**", "algorithms": [ED, P256, M65, HYBRID]},
    {
        "name": "relaxed",
        "path": "/relaxed/**",
        "algorithms": [HYBRID],
        "evidence": "optional",
        "max_signature_bytes": 2000,
    },
    *DEMO_ROUTES,
)
EVIDENCE = {"type": "pch.evidence.v1", "claims": {"note": "n" * 500}}
CONTENT = (b"", b"x" * 100, b"y" * 5_000)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    var: Path = tmp_path_factory.mktemp("mixed")
    keys = {name: KeyPair.new("alice", name) for name in (ED, P256, M65)}
    keys["a"], keys["a-pq"] = hybrid_keys("alice")
    write_private(var / "keyring.json", json.dumps([key.entry() for key in keys.values()]).encode())
    with Stack(StackSettings(var, Ports.free(), routes=ROUTES)) as stack:
        yield Stage(stack, keys)


async def load(stage: Stage) -> Counter[str]:
    """Send the good requests, AT_ONCE at a time; count how each kind ended."""
    pair = (stage.keys["a"].signer, stage.keys["a-pq"].signer)
    common = {"verify": stage.stack.files.tls / "ca.pem", "timeout_s": 60.0}
    clients = {
        **{name: AsyncClient(key=stage.keys[name].signer, **common) for name in (ED, P256, M65)},
        HYBRID: AsyncClient(key=pair, **common),
        "http1": AsyncClient(key=stage.keys[ED].signer, http2=False, **common),
        "relaxed": AsyncClient(key=pair, evidence=EVIDENCE, **common),
    }
    names, ended, room = list(clients), Counter[str](), asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        name, content = names[number % len(names)], CONTENT[number % len(CONTENT)]
        path = f"/{'relaxed' if name == 'relaxed' else 'mixed'}/good-{number}"
        async with room:
            try:
                url = f"https://{stage.authority}{path}"
                response = await clients[name].request("POST" if content else "GET", url, content=content)
                ended[f"{name} {response.status} {response.reason}"] += 1
            except ClientError as error:
                ended[f"{name} {type(error).__name__}"] += 1

    await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    for client in clients.values():
        await client.aclose()
    return ended


def steal(stage: Stage, reasons: Counter[str]) -> None:
    """Meanwhile send requests that were signed for one connection on another one, by every kind of proof."""
    kinds: tuple[tuple[Half, ...], ...] = (
        (Half(stage.keys[ED], "pch"),),
        (Half(stage.keys[M65], "pch"),),
        halves(stage.keys["a"], stage.keys["a-pq"]),
    )
    for number in range(STOLEN):
        attacker = Attacker(stage, "http2" if number % 2 else "http1")
        request = signed(attacker, kinds[number % len(kinds)], "mixed", rest="/stolen")
        answer = attacker.connect().send(request)
        reasons[f"{answer.status} {answer.reason}"] += 1
        attacker.close()


async def test_nearly_every_good_request_passes_and_no_stolen_one(stage: Stage) -> None:
    reasons: Counter[str] = Counter()
    thief = threading.Thread(target=steal, args=(stage, reasons))
    thief.start()
    ended = await load(stage)
    await asyncio.to_thread(thief.join, 120.0)
    assert reasons == {"403 binding_mismatch": STOLEN}
    print(f"good ones: {dict(ended)}; stolen ones: {dict(reasons)}")
    passed = sum(count for how, count in ended.items() if " 200 " in how)
    assert sum(ended.values()) == REQUESTS
    assert passed >= REQUESTS * LEAST_PASSED, ended
    reached = [record["target"] for record in stage.seen_by_app()]
    assert not [target for target in reached if "stolen" in target]
    assert len({target for target in reached if "good" in target}) == len(reached) == passed
