"""What the pilot puts on its card: only what was measured is met. The pilot itself is `make pilot`."""

from __future__ import annotations

import json

import pytest

from loadtest.measured import Measured, Sample
from loadtest.pilot import _card, flaps_of, proofs_of


def watched(phases: str) -> Measured:
    values = {"c": 0.0, "h": 1.0, "o": 2.0}
    samples = [Sample(float(at_s), values[phase], 0.0, 0.0) for at_s, phase in enumerate(phases)]
    return Measured([], samples, 1.0, float(len(phases)))


@pytest.mark.parametrize(
    ("measured", "must_open", "shown", "met"),
    [
        (watched("ccoohcc"), True, "0 (opened 1 times)", True),
        (watched("ccccccc"), False, "0 (opened 0 times)", True),
        (watched("ccccccc"), True, "0 (opened 0 times)", False),
        (watched("cohcohc"), False, "1 (opened 2 times)", False),
        (Measured([], [], 1.0, 9.0), False, "not measured", False),
        (None, False, "not measured", False),
    ],
)
def test_no_flaps_are_only_where_someone_watched(
    measured: Measured | None, must_open: bool, shown: str, met: bool
) -> None:
    assert flaps_of(measured, must_open=must_open) == (shown, met)


@pytest.mark.parametrize(
    ("told", "met"),
    [
        ({"valid": True, "inclusion_proofs": 7, "receipts": 7}, True),
        ({"valid": True, "inclusion_proofs": 0, "receipts": 0}, False),
        ({"valid": False, "inclusion_proofs": 7, "receipts": 7}, False),
        ({}, False),
        (None, False),
    ],
)
def test_a_pack_without_proofs_proves_nothing(told: object, met: bool) -> None:
    assert proofs_of("" if told is None else json.dumps(told))[1] is met


def test_the_card_names_what_was_missed() -> None:
    card = _card([("flaps", "0", "0", True), ("success", "12 %", "> 99 %", False)])
    assert [line.split()[-1] for line in card.splitlines()[1:]] == ["met", "MISSED"]
