"""The shelf of the memory store and the tables of SQLite, held against each other and against a plain model."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.nonce_store import sqlite as sqlite_store
from extproc.nonce_store.envelopes import (
    MAX_BYTES_PER_CONNECTION,
    MAX_WAITING_PER_CONNECTION,
    EnvelopeShelf,
    Find,
    Keep,
    KeepResult,
)
from extproc.nonce_store.sqlite_envelopes import ENVELOPE_SCHEMA, find_envelope, keep_envelope
from pch.errors import StoreUnavailable

NOW_MS = 1_800_000_000_000
STORE_BYTES = 6000


def nonce(number: int) -> bytes:
    return number.to_bytes(45, "big")


def opened() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in (sqlite_store._SCHEMA + ENVELOPE_SCHEMA).split(";"):
        connection.execute(statement)
    return connection


@dataclass
class Model:
    """The rules in as few words as possible: by nonce what is kept, until when, and whether it was found."""

    held: dict[bytes, dict[str, Any]] = field(default_factory=dict)

    def keep(self, keep: Keep, *, spent: bool) -> KeepResult | None:
        self.held = {key: each for key, each in self.held.items() if each["expires_ms"] > keep.now_ms}
        if spent:
            return KeepResult.SPENT
        if keep.nonce in self.held:
            same = self.held[keep.nonce]["keep"].envelope == keep.envelope
            return KeepResult.KEPT if same else KeepResult.TAKEN
        mine = [each for each in self.held.values() if each["keep"].connection == keep.connection]
        size = sum(each["keep"].size_bytes for each in mine) + keep.size_bytes
        if sum(not each["found"] for each in mine) >= MAX_WAITING_PER_CONNECTION or size > MAX_BYTES_PER_CONNECTION:
            return KeepResult.CONNECTION_FULL
        if sum(each["keep"].size_bytes for each in self.held.values()) + keep.size_bytes > STORE_BYTES:
            return None
        self.held[keep.nonce] = {"keep": keep, "expires_ms": keep.expires_ms, "found": False}
        return KeepResult.KEPT

    def find(self, find: Find) -> bytes | None:
        there = self.held.get(find.nonce)
        if there is None or there["expires_ms"] <= find.now_ms:
            return None
        if not there["found"]:
            there |= {"found": True, "expires_ms": min(there["expires_ms"], find.found_until_ms)}
        return bytes(there["keep"].envelope)


_keep = st.tuples(st.just("keep"), st.integers(0, 7), st.sampled_from([0, 0, 0, 1]), st.sampled_from([b"a", b"b"]))
_step = st.one_of(
    _keep,
    _keep,
    st.tuples(st.just("keep"), st.integers(8, 12), st.just(2), st.just(b"c" * 900)),
    st.tuples(st.just("find"), st.integers(0, 7)),
    st.tuples(st.just("spend"), st.integers(0, 12)),
    st.tuples(st.just("wait"), st.sampled_from([1, 10_000, 10_000, 64_000])),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_step, min_size=20, max_size=60))
def test_all_three_do_the_same_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("envelopes", "sqlite_envelopes"):
            patch.setattr(f"extproc.nonce_store.{module}.MAX_BYTES_IN_STORE", STORE_BYTES)
        _run(steps)


def _run(steps: list[tuple[Any, ...]]) -> None:
    connection, shelf, model = opened(), EnvelopeShelf(), Model()
    spent: set[bytes] = set()
    now_ms = NOW_MS
    for step in steps:
        if step[0] == "wait":
            now_ms += step[1]
        elif step[0] == "spend":
            spent.add(nonce(step[1]))
            connection.execute(
                "INSERT INTO spent (nonce, token, first_ms) VALUES (?, ?, 0) ON CONFLICT DO NOTHING",
                (nonce(step[1]), b"t"),
            )
        elif step[0] == "find":
            find = Find(nonce(step[1]), now_ms)
            expected = model.find(find)
            assert shelf.find(find) == expected
            assert find_envelope(connection, find) == expected
        else:
            keep = Keep(nonce(step[1]), bytes([step[2]]) * 32, step[3], now_ms + 60_000, now_ms)
            wanted = model.keep(keep, spent=keep.nonce in spent)
            assert _kept_on(shelf, keep, spent=keep.nonce in spent) is wanted
            in_sqlite = keep_envelope(connection, keep)
            assert (None if isinstance(in_sqlite, StoreUnavailable) else in_sqlite) is wanted
            assert len(shelf) == len(model.held)
            (held_bytes,) = connection.execute("SELECT held_bytes FROM envelope_total").fetchone()
            assert held_bytes == sum(each["keep"].size_bytes for each in model.held.values())
    connection.close()


def _kept_on(shelf: EnvelopeShelf, keep: Keep, *, spent: bool) -> KeepResult | None:
    try:
        return shelf.keep(keep, spent=spent)
    except StoreUnavailable:
        return None
