"""The route table as a policy engine."""

from __future__ import annotations

import msgspec
import pytest

from policy.evaluator import PolicyError, PolicyInput
from policy.route_table import RouteTablePolicy


def asked(route: str = "protected", subject: str = "alice") -> PolicyInput:
    return PolicyInput(
        time_ms=1_700_000_000_000,
        route=route,
        method="GET",
        authority="app.example",
        path="/protected",
        subject=subject,
        key_ids=("k",),
        algorithms=("ed25519",),
        binding="tls-exporter",
        mode="and",
        evidence=False,
        body_bytes=0,
    )


async def test_listed_subject_is_allowed_and_any_other_is_not() -> None:
    policy = RouteTablePolicy({"protected": ["alice"]})
    assert (await policy.evaluate(asked(subject="alice"))).allow is True
    for other in ("bob", "", "Alice", "alice ", "alic"):
        assert (await policy.evaluate(asked(subject=other))).allow is False


async def test_empty_list_admits_every_registered_subject() -> None:
    assert (await RouteTablePolicy({"protected": []}).evaluate(asked(subject="anyone"))).allow is True


async def test_unknown_route_has_no_answer() -> None:
    with pytest.raises(PolicyError):
        await RouteTablePolicy({"other": []}).evaluate(asked())


def test_digest_follows_the_table_and_not_its_order() -> None:
    one = RouteTablePolicy({"a": ["x", "y"], "b": []})
    same = RouteTablePolicy({"b": [], "a": ["y", "x"]})
    other = RouteTablePolicy({"a": ["x"], "b": []})
    assert one.digest == same.digest
    assert one.digest != other.digest
    assert len(one.digest) == 64


def test_input_round_trips_through_json_whole() -> None:
    encoded = msgspec.json.encode(asked())
    assert msgspec.json.decode(encoded, type=PolicyInput) == asked()
    assert set(msgspec.json.decode(encoded)) == set(PolicyInput.__struct_fields__)
