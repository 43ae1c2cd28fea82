"""kill -9 of filter workers under load, with the real filter: while one of two lives, no request fails."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pch.client import Client, ClientError
from tools.stack import Stack
from tools.stack_config import Ports, StackSettings

if TYPE_CHECKING:
    from pch.client import Response

pytestmark = [pytest.mark.e2e, pytest.mark.edge]

CLIENTS = 8
LOAD_S = 20.0
SETTLED_S = 1.5
"""How long both workers have served before one is killed: a worker that still starts is none that lives."""


def workers(stack: Stack) -> list[int]:
    """Give the children of the filter's supervisor."""
    supervisor, found = stack.state["pids"]["filter"], []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == supervisor:
                found.append(int(folder.name))
    return sorted(found)


def serving(stack: Stack) -> list[int]:
    """Give the workers that serve: they say so in their status files once their sockets are bound."""
    found = []
    for socket in stack.state["sockets"]:
        with contextlib.suppress(FileNotFoundError):
            found.append(int(json.loads(Path(socket).with_suffix(".status.json").read_text())["pid"]))
    return sorted(found)


def outcome(answer: Response) -> str:
    return f"{answer.status} {answer.headers.get('pch-reason') or ''}".strip()


def test_killed_workers_cost_no_request_while_one_lives(tmp_path: Path) -> None:
    with Stack(StackSettings(tmp_path, Ports.free())) as stack:
        state, key = stack.state, json.loads(stack.files.demo_key.read_text())
        ends_s = time.monotonic() + LOAD_S
        outcomes: collections.Counter[str] = collections.Counter()
        sent: list[str] = []

        def load(number: int) -> None:
            with Client(key=key, verify=state["ca"]) as client:
                while time.monotonic() < ends_s:
                    path = f"/protected/{number}-{len(sent)}-{time.monotonic_ns()}"
                    sent.append(path)
                    try:
                        outcomes[outcome(client.get(state["https"] + path))] += 1
                    except ClientError as error:
                        outcomes[type(error).__name__] += 1

        threads = [threading.Thread(target=load, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        kills, alive, since_s = 0, workers(stack), time.monotonic()
        while time.monotonic() < ends_s - 1:
            time.sleep(0.05)
            now = workers(stack)
            if now != alive or len(now) < 2 or serving(stack) != now:
                alive, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > SETTLED_S:
                os.kill(now[kills % 2], signal.SIGKILL)
                kills += 1
                # Until the supervisor has noticed, the dead one is still listed: the other one must not be next.
                since_s = time.monotonic()
        for thread in threads:
            thread.join()
        reached = [each["target"] for each in stack.app_requests()]
    print(f"{kills} kills, {dict(outcomes)}")
    assert kills >= 3
    assert dict(outcomes) == {"200": len(sent)}
    assert sorted(reached) == sorted(sent), "each reached the app exactly once"
