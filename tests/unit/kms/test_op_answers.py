"""One effect for one op_id, within bounds that no tenant can use up for another (I-14, I-17)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import Conflict
from kms.op_answers import OP_TTL_MS, OpAnswer, OpAnswers, OpKey

KEY = OpKey("core", "sign", "8f9a2c34-0000-4000-8000-000000000001")


def test_the_same_request_has_the_same_answer_and_another_one_conflicts() -> None:
    answers: OpAnswers[str] = OpAnswers()
    answers.put(KEY, OpAnswer(b"r1", "answer", 0))
    found = answers.find(KEY, b"r1", 5)
    assert found is not None
    assert found.answer == "answer"
    with pytest.raises(Conflict) as refused:
        answers.find(KEY, b"r2", 5)
    assert (refused.value.reason, refused.value.http_status) == ("op_id_reused", 409)


@pytest.mark.parametrize("other", [OpKey("acme", "sign", KEY.op_id), OpKey("core", "wrap", KEY.op_id)])
def test_an_op_id_is_its_tenants_and_its_operations_own(other: OpKey) -> None:
    answers: OpAnswers[str] = OpAnswers()
    answers.put(KEY, OpAnswer(b"r1", "answer", 0))
    assert answers.find(other, b"r2", 0) is None


def test_answers_are_kept_for_a_day() -> None:
    answers: OpAnswers[str] = OpAnswers()
    answers.put(KEY, OpAnswer(b"r1", "answer", 0))
    assert answers.find(KEY, b"r1", OP_TTL_MS) is not None
    assert answers.find(KEY, b"r2", OP_TTL_MS + 1) is None
    other = OpKey("core", "sign", "2")
    assert answers.put(other, OpAnswer(b"r", "x", OP_TTL_MS + 1)) == [KEY]
    assert len(answers) == 1


def test_a_flood_of_one_tenant_costs_no_other_tenant_an_answer() -> None:
    answers: OpAnswers[int] = OpAnswers(max_ops=10)
    answers.put(KEY, OpAnswer(b"r", -1, 0))
    gone = [
        each for number in range(50) for each in answers.put(OpKey("flood", "sign", str(number)), OpAnswer(b"", 0, 0))
    ]
    assert answers.find(KEY, b"r", 0) is not None
    assert len(answers) == 10
    assert {each.tenant for each in gone} == {"flood"}
    assert [each.op_id for each in gone] == [str(number) for number in range(41)]


@given(puts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 3 * OP_TTL_MS)), max_size=60))
def test_the_count_is_that_of_what_is_found(puts: list[tuple[str, int, int]]) -> None:
    answers: OpAnswers[int] = OpAnswers(max_ops=7)
    kept: set[OpKey] = set()
    for tenant, number, now_ms in sorted(puts, key=lambda each: each[2]):
        key = OpKey(tenant, "sign", str(number))
        kept.add(key)
        kept -= set(answers.put(key, OpAnswer(b"r", number, now_ms)))
        assert len(answers) == len(kept) <= 7
        assert answers.find(key, b"r", now_ms) is not None
