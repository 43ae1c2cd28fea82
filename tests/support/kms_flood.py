"""Bounded load on a real key service: kept connections in threads, each answer counted by its status."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.kms_service import DIGEST, KmsProcess

Request = tuple[str, dict[str, Any]]
KEPT_TIMES = 100_000


@dataclass
class Flood:
    """What came of it. `answers`: of 200s, kept where asked; `took_s`: the newest; `lost`: broken connections."""

    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[Any] = field(default_factory=list)
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_TIMES))
    lost: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, status: int, took_s: float, body: Any) -> None:
        with self._lock:
            self.statuses[status] += 1
            if status == 200:
                self.took_s.append(took_s)
                if body is not None:
                    self.answers.append(body)

    def p95_s(self) -> float:
        return sorted(self.took_s)[int(0.95 * (len(self.took_s) - 1))]


def sign_request(kid: str) -> Request:
    return "/v1/kms/sign", {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}


@contextlib.contextmanager
def flooding(
    service: KmsProcess,
    make: Callable[[int], Request],
    *,
    threads: int,
    rate_per_s: float,
    token: str,
    keep: bool = False,
) -> Iterator[Flood]:
    """Send `rate_per_s` requests over `threads` connections until the block ends."""
    flood, stop = Flood(), threading.Event()
    fields = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    def work(number: int) -> None:
        connection: http.client.HTTPConnection | None = None
        next_s, count = time.monotonic(), number
        while not stop.is_set():
            path, body = make(count)
            count += threads
            began_s = time.monotonic()
            try:
                connection = connection or service.connect()
                connection.request("POST", path, json.dumps(body).encode(), fields)
                response = connection.getresponse()
                raw = response.read()
                flood.note(response.status, time.monotonic() - began_s, json.loads(raw) if keep else None)
                if response.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException):
                flood.lost += 1
                if connection is not None:
                    connection.close()
                connection = None
            next_s = max(next_s + threads / rate_per_s, time.monotonic() - 1.0)
            stop.wait(max(0.0, next_s - time.monotonic()))
        if connection is not None:
            connection.close()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield flood
    finally:
        stop.set()
        for worker in workers:
            worker.join(15)


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
