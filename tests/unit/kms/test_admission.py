"""Places: full means 429 at once, and no tenant fills the queue (I-17, P-6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.admission import Admission
from kms.errors import Backpressure
from kms.telemetry import Telemetry


def entered(admission: Admission, tenant: str, asked: int) -> int:
    count = 0
    for _ in range(asked):
        try:
            admission.enter(tenant)
        except Backpressure:
            break
        count += 1
    return count


def test_one_tenant_cannot_fill_the_queue_and_the_others_have_their_floor() -> None:
    admission = Admission("sign", Telemetry(), places=512, share_min=0.05)
    assert entered(admission, "flood", 1000) == 384
    assert [entered(admission, name, 1000) for name in ("a", "b", "c", "d", "e", "f")] == [26, 26, 26, 26, 24, 0]
    assert admission.taken == 512


def test_who_leaves_makes_room_and_metrics_follow() -> None:
    telemetry = Telemetry()
    admission = Admission("sign", telemetry, places=4, share_min=0.05)
    get = telemetry.registry.get_sample_value
    assert entered(admission, "core", 10) == 3
    assert get("queue_depth", {"queue": "sign"}) == 3
    assert get("busy_rejections_total", {"queue": "sign"}) == 1
    admission.leave("core")
    assert get("queue_depth", {"queue": "sign"}) == 2
    admission.enter("core")


def test_without_shares_who_comes_first_has_every_place() -> None:
    admission = Admission("sign", Telemetry(), places=8, share_min=0)
    assert entered(admission, "core", 10) == 8


def test_a_smaller_bound_lets_nobody_in_until_enough_have_left() -> None:
    admission = Admission("sign", Telemetry(), places=8, share_min=0.05)
    assert entered(admission, "core", 10) == 6
    admission.configure(places=4, share_min=0.05)
    for left in (5, 4, 3):
        with pytest.raises(Backpressure):
            admission.enter("core")
        admission.leave("core")
        assert admission.taken == left
    admission.leave("core")
    admission.enter("core")


@given(
    places=st.integers(1, 40),
    steps=st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=150),
)
def test_places_are_never_more_than_there_are_and_are_all_given_back(
    places: int, steps: list[tuple[str, bool]]
) -> None:
    admission = Admission("sign", Telemetry(), places=places, share_min=0.05)
    inside: list[str] = []
    for tenant, enters in steps:
        if enters:
            inside += [tenant] * entered(admission, tenant, 1)
        elif tenant in inside:
            inside.remove(tenant)
            admission.leave(tenant)
        assert admission.taken == len(inside) <= places
    for tenant in inside:
        admission.leave(tenant)
    assert admission.taken == 0
    assert admission._tenants == {}
