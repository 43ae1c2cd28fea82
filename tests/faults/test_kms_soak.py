"""A key service under steady load for a long time: a minute in the long runs, hours by `make soak HOURS=`."""

import os
import statistics
import time

import pytest

from tests.support.kms_flood import flooding, open_files, rss_bytes, sign_request
from tests.support.kms_service import KmsProcess

SOAK_S = max(60.0, float(os.environ.get("SIGNET_SOAK_HOURS", "0")) * 3600)
SAMPLES = 120
RATE_PER_S = 50
MAX_GROWTH = 1.05
SLACK_BYTES = 4 * 1024 * 1024
"""What the allocator may keep without anything growing."""
MAX_MORE_FILES = 3


def grew(samples, slack):
    """Give how much more the last quarter is than the second (the first is warm-up), beyond the slack, as a ratio."""
    quarter = len(samples) // 4
    early, late = (statistics.median(part) for part in (samples[quarter : 2 * quarter], samples[-quarter:]))
    return max(1.0, (late - slack) / early)


@pytest.mark.parametrize(
    ("per_sample", "grows"), [(0, False), (10_000, False), (100_000, False), (200_000, True), (-100_000, False)]
)
def test_a_trend_is_told_from_noise(per_sample, grows):
    samples = [60_000_000 + number * per_sample + (number * 7919 % 13) * 50_000 for number in range(SAMPLES)]
    assert (grew(samples, SLACK_BYTES) > MAX_GROWTH) is grows


@pytest.mark.slow
def test_steady_load_makes_neither_memory_nor_files_grow(tmp_path):
    service = KmsProcess(tmp_path, {"PQ_PRODUCE_HYBRID": "0"}).start()
    try:
        kid, token = service.create(), service.token()
        path, body = sign_request(kid)
        check = body | {"sigs": service.ask("POST", path, body, token=token).json["sigs"]}
        pid, memory, files = service.service_pid, [], []
        end_s = time.monotonic() + SOAK_S
        while time.monotonic() < end_s:
            with flooding(
                service,
                lambda count: ("/v1/kms/verify", check) if count % 4 == 0 else (path, body),
                threads=4,
                rate_per_s=RATE_PER_S,
                token=service.token(),
            ) as flood:
                # Connections come and go: each round has its own, and a capability that lives an hour.
                round_end_s = min(end_s, time.monotonic() + 600)
                while time.monotonic() < round_end_s:
                    time.sleep(SOAK_S / SAMPLES)
                    memory.append(rss_bytes(pid))
                    files.append(open_files(pid))
            assert set(flood.statuses) == {200}, flood.statuses
            assert flood.lost == 0
        assert service.service_pid == pid, "it was started again"
        print(f"{SOAK_S:.0f} s: memory {memory[len(memory) // 4]} -> {memory[-1]} bytes, files {files[-1]}")
        assert grew(memory, SLACK_BYTES) <= MAX_GROWTH
        assert max(files[-10:]) <= max(files[:20]) + MAX_MORE_FILES
        assert service.metric("kms_audit_integrity_failed_total") == 0
    finally:
        service.stop()
