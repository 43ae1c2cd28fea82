"""The header budget: what is over, what a client is then offered, and when the server grants."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.challenge import open_challenge
from extproc.decision import Answer
from extproc.header_budget import check_header_budget, grants_relax, statically_engaged
from extproc.pipeline import Pipeline
from extproc.request import EdgeRequest
from extproc.response import check_response
from extproc.route import Route
from pch.errors import HeaderBudget, HeaderTooLarge
from pch.httpsig.message import RequestMessage
from pch.reasons import Reason
from tests.support.filter_parts import AUTHORITY, BINDING, CONFIG, FilterParts, KeyPair, edge_request, signed_message

ROUTE = Route(name="r", path="/**")
OTHERS = """
[[route]]
name = "never"
path = "/never"
relax = "off"
[[route]]
name = "always"
path = "/always"
relax = "always"
[[route]]
"""


def request(*fields: tuple[str, int], **changes: Any) -> EdgeRequest:
    """A request with fields of these sizes: name, value and 4."""
    headers = tuple((name, b"x" * (size - len(name) - 4)) for name, size in fields)
    return edge_request(RequestMessage("GET", "https", AUTHORITY, "/protected", headers), **changes)


WITHIN = [
    [("a", 8000)],
    [("a", 8000), ("b", 4000)],
    [("signature", 3500), ("signature-input", 3500)],
    [("a", 100)],
    [],
]
OVER = [
    [("a", 8001)],
    [("a", 4001), ("a", 4000)],
    [("a", 8000), ("b", 4001)],
    [("signature", 3500), ("signature-input", 3501)],
    [("signature", 3500), ("signature", 3501)],
]


@pytest.mark.parametrize("fields", WITHIN)
def test_what_is_within_the_budget_passes(fields: list[tuple[str, int]]) -> None:
    check_header_budget(request(*fields), ROUTE)


@pytest.mark.parametrize("fields", OVER)
def test_what_is_over_is_asked_to_relax(fields: list[tuple[str, int]]) -> None:
    with pytest.raises(HeaderBudget):
        check_header_budget(request(*fields), ROUTE)
    with pytest.raises(HeaderTooLarge):
        check_header_budget(request(*fields, ("pch-relaxed", 17)), ROUTE)
    with pytest.raises(HeaderTooLarge):
        check_header_budget(request(*fields), dataclasses.replace(ROUTE, relax="off"))


def test_nothing_is_offered_where_no_envelope_has_a_place() -> None:
    over = request(("a", 9000))
    with pytest.raises(HeaderTooLarge):
        check_header_budget(over, dataclasses.replace(ROUTE, binding="none"))
    with_content = dataclasses.replace(over, body=b"x")
    with pytest.raises(HeaderTooLarge):
        check_header_budget(with_content, ROUTE)
    for route in (ROUTE, dataclasses.replace(ROUTE, binding="none")):
        with pytest.raises(HeaderBudget):
            check_header_budget(dataclasses.replace(with_content, deferrable=True), route)


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from(["a", "b", "signature", "signature-input"]), st.integers(20, 9000)), max_size=8
    )
)
def test_the_rule_is_that_of_the_text(sizes: list[tuple[str, int]]) -> None:
    by_name = {name: sum(size for each, size in sizes if each == name) for name, _ in sizes}
    signatures = by_name.get("signature", 0) + by_name.get("signature-input", 0)
    over = sum(by_name.values()) > 12_000 or max(by_name.values(), default=0) > 8000 or signatures > 7000
    try:
        check_header_budget(request(*sizes), ROUTE)
    except HeaderBudget:
        assert over
    else:
        assert not over


@pytest.mark.parametrize(
    ("relax", "reason", "engaged", "expected"),
    [
        ("on_demand", Reason.ALLOWED, False, False),
        ("on_demand", Reason.HEADER_BUDGET, False, True),
        ("on_demand", Reason.MISSING_SIGNATURE, True, True),
        ("off", Reason.HEADER_BUDGET, True, False),
        ("off", Reason.ALLOWED, True, False),
    ],
)
def test_who_is_granted_a_relaxed_form(relax: str, reason: Reason, engaged: bool, expected: bool) -> None:
    assert grants_relax(dataclasses.replace(ROUTE, relax=relax), reason, lambda _: engaged) is expected


def test_the_static_switch_is_the_configuration() -> None:
    engaged = {
        relax: statically_engaged(dataclasses.replace(ROUTE, relax=relax)) for relax in ("off", "on_demand", "always")
    }
    assert engaged == {"off": False, "on_demand": False, "always": True}


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    built = FilterParts(tmp_path, {"ed": KeyPair.new("alice")}, CONFIG.replace("[[route]]", OTHERS, 1))
    await built.start()
    yield built
    await built.stop()


def is_granted(parts: FilterParts, answer: Answer) -> bool:
    (challenge,) = answer.challenges
    opened = open_challenge(
        challenge,
        parts.sealing_keys,
        realm="signet",
        authority=AUTHORITY,
        binding32=BINDING,
        now_ms=parts.clock.now_ms,
        max_age_ms=60_000,
    )
    return opened.relax_grant


def headers(answer: Answer) -> dict[str, str]:
    response = check_response(answer)
    return {each.header.key: each.header.value for each in response.denied_response.headers}


def big(target: str) -> EdgeRequest:
    message = RequestMessage("GET", "https", AUTHORITY, target, (("cookie", b"c" * 9000),))
    return edge_request(message)


async def test_over_budget_is_431_with_a_grant_and_an_offer(parts: FilterParts) -> None:
    answer = await parts.answer(big("/protected"))
    assert answer.reason is Reason.HEADER_BUDGET
    assert is_granted(parts, answer)
    said = headers(answer)
    assert said["pch-relax"] == "evidence=body"
    assert answer.challenges[0] in said["www-authenticate"]
    assert "hints" not in said["www-authenticate"]
    assert check_response(answer).denied_response.status.code == 431


async def test_past_the_hard_cap_and_where_relaxing_is_off_nothing_is_offered(parts: FilterParts) -> None:
    for request_ in (big("/never"), dataclasses.replace(big("/protected"), header_bytes=49_153)):
        answer = await parts.answer(request_)
        assert answer.reason is Reason.HEADER_TOO_LARGE
        assert not answer.challenges or not is_granted(parts, answer)
        assert "pch-relax" not in headers(answer)
        assert "www-authenticate" not in headers(answer)


async def test_an_open_route_has_no_budget(parts: FilterParts) -> None:
    assert (await parts.answer(big("/public/x"))).reason is Reason.UNGUARDED


async def test_while_engaged_every_challenge_carries_the_grant_and_the_hint(parts: FilterParts) -> None:
    unsigned = edge_request(RequestMessage("GET", "https", AUTHORITY, "/always", ()))
    refused = await parts.answer(unsigned)
    assert is_granted(parts, refused)
    assert headers(refused)["www-authenticate"].endswith(', hints="relax-header-budget"')
    allowed = await parts.answer(edge_request(signed_message(parts.keys["ed"], parts.challenge(), target="/always")))
    assert allowed.reason is Reason.ALLOWED
    assert is_granted(parts, allowed)


async def test_an_actuator_engages_what_the_configuration_leaves_to_it(parts: FilterParts) -> None:
    engaged = copy.copy(parts.stress)
    engaged.is_relaxing = lambda route: route.name != "open"  # type: ignore[method-assign]
    pipeline = Pipeline(dataclasses.replace(parts.parts, stress=engaged))
    for target, expected in (("/protected", True), ("/never", False)):
        answer = await pipeline.answer(edge_request(RequestMessage("GET", "https", AUTHORITY, target, ())))
        assert is_granted(parts, answer) is expected
        assert ("hints" in headers(answer)["www-authenticate"]) is expected
    plain = await parts.answer(edge_request(RequestMessage("GET", "https", AUTHORITY, "/protected", ())))
    assert not is_granted(parts, plain)


async def test_the_budget_decides_before_upgrades_and_the_size_of_the_body(parts: FilterParts) -> None:
    over = dataclasses.replace(big("/small"), body=bytes(100), deferrable=True)
    assert (await parts.answer(over)).reason is Reason.HEADER_BUDGET
    message = dataclasses.replace(over.message, headers=(*over.message.headers, ("upgrade", b"websocket")))
    assert (await parts.answer(dataclasses.replace(over, message=message))).reason is Reason.HEADER_BUDGET
    within = edge_request(RequestMessage("GET", "https", AUTHORITY, "/small", ()), body=bytes(100))
    too_large = await parts.answer(within)
    assert too_large.reason is Reason.BODY_TOO_LARGE
    assert too_large.challenges, "every answer to a guarded request carries fresh ones (PCH §5)"
