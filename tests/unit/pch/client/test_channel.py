"""Learning the server's clock."""

from __future__ import annotations

import pytest

from pch.client.channel import OriginClock

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATE_S = 784111777


def test_clock_follows_the_servers_date() -> None:
    clock = OriginClock()
    assert clock.now_s(1000.9) == 1000
    clock.correct(DATE, 1000.0)
    assert clock.now_s(1010.5) == DATE_S + 10


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sun, 06 Nov 1994 08:49:37", "Sun, 66 Nov 1994 08:49:37 GMT"])
def test_unusable_date_changes_nothing(date: str | None) -> None:
    clock = OriginClock(5.0)
    clock.correct(date, 1000.0)
    assert clock.offset_s == 5.0
