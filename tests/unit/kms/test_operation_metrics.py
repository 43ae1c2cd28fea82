"""What is counted of an operation, and under which names (OBSERVABILITY.md §1.2)."""

from __future__ import annotations

import pytest

from kms.errors import Timeout
from kms.messages import SignPolicy, WrapRequest
from kms.operation_metrics import NO_ALG, OperationMetrics, timed_under
from kms.telemetry import Telemetry
from tests.support.kms_core import running_core


@pytest.mark.parametrize(
    ("algs", "timed"),
    [
        (("ed25519",), "ed25519"),
        (("ed25519", "ml-dsa"), "ml-dsa"),
        (("ml-dsa", "ed25519"), "ml-dsa"),
        (("x25519", "ml-kem"), "ml-kem"),
        (("ed25519", "ml-dsa-44"), "ml-dsa-44"),
        (("hkdf",), "hkdf"),
        ((), None),
    ],
)
def test_an_operation_is_timed_once_under_what_takes_the_most_of_it(algs: tuple[str, ...], timed: str | None) -> None:
    telemetry = Telemetry()
    OperationMetrics(telemetry).done("sign", algs, 0.004)
    assert timed_under(algs) == timed
    for alg in algs:
        labels = {"op": "sign", "alg": alg}
        assert telemetry.registry.get_sample_value("kms_ops_total", {**labels, "result": "ok"}) == 1
        assert telemetry.registry.get_sample_value("kms_latency_seconds_count", labels) == float(alg == timed)


async def test_a_hybrid_signature_is_no_slow_ed25519_one() -> None:
    """The alert on Ed25519's p95 is on signatures that are nothing else."""
    async with running_core() as bench:
        kid = await bench.create("hybrid")
        await bench.sign(kid, policy=SignPolicy(produce_hybrid=True))
        assert bench.metric("kms_ops_total", op="sign", alg="ed25519", result="ok") == 1
        assert bench.metric("kms_latency_seconds_count", op="sign", alg="ed25519") == 0
        assert bench.metric("kms_latency_seconds_count", op="sign", alg="ml-dsa") == 1
        kem = await bench.create("x25519", purpose="kem")
        await bench.call("wrap", WrapRequest(kid=kem, size=32))
        assert bench.metric("kms_latency_seconds_count", op="wrap", alg="ml-kem") == 1


async def test_creation_goes_by_the_documents_name() -> None:
    async with running_core() as bench:
        await bench.create()
        with pytest.raises(Exception, match="tenant"):
            await bench.create(tenant="Not A Label")
        assert bench.metric("kms_ops_total", op="create", alg="ed25519", result="ok") == 1
        assert bench.metric("kms_latency_seconds_count", op="create", alg="ed25519") == 1
        assert bench.metric("kms_ops_total", op="create", alg=NO_ALG, result="err") == 1
        assert bench.metric("kms_ops_total", op="create_key", alg="ed25519", result="ok") == 0
        bench.core.metrics.timed_out("create_key")
        assert bench.metric("io_timeouts_total", op="create") == 1


def test_a_refusal_is_counted_under_its_reason_and_the_documents_name() -> None:
    telemetry = Telemetry()
    metrics = OperationMetrics(telemetry)
    for _ in range(2):
        metrics.failed("create_key", "", Timeout("late"))
    value = telemetry.registry.get_sample_value
    assert value("kms_ops_total", {"op": "create", "alg": NO_ALG, "result": "err"}) == 2
    assert value("rejected_total", {"reason": "timeout"}) == value("kms_reject_total", {"reason": "timeout"}) == 2
