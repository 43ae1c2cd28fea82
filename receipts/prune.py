"""Pruning: drop the payloads of the oldest receipts and keep their hashes, so that every older proof still verifies.

1. A `log_event` receipt says what is about to be dropped, and is durable.
2. The store permits it on the strength of that receipt; without one the database itself refuses.
3. Payloads are dropped, some at a time, so that writers wait for none of it for long.
4. The log's entry bundles that hold one of them are dropped; hash tiles stay.

A crash after any step leaves what the next run completes. What is dropped is a beginning of the log: everything
before the first receipt that is not older than the date.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from receipts.cli_places import PlacesError, add_options, read_places
from receipts.errors import StoreUrlError
from receipts.facts import EventFacts
from receipts.log import DATABASE_NAME
from receipts.open_store import open_store
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ID_RANDOM_BYTES, WriterId, new_receipt_id
from receipts.sth_store import SthStore
from receipts.store import PrunableStore, StoredReceipt, WriterTail
from receipts.tile import ENTRIES, TILE_WIDTH, Tile
from receipts.tile_store import DirectoryTileStore

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from receipts.tile_store import TileStore

EVENT_NAME: Final = "pruned"
"""Name of the event; its facts: `before_ms`, `first_seq`, `last_seq`, `receipts`."""
DROP_RECEIPTS: Final = 500
"""Payloads dropped in one transaction."""
_LOOK_RECEIPTS: Final = 10_000
_DAY_MS: Final = 86_400_000
_WRITE_WAIT_MS: Final = 10_000


class PruneDateError(ValueError):
    """The text is no date, or a day after today."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What is to be dropped: the payloads from `first_seq` to `last_seq`, of receipts older than `before_ms`.

    `waiting`: receipts as old that stay, because the log has not taken them in yet.
    """

    before_ms: int
    first_seq: int
    last_seq: int
    waiting: int = 0

    @property
    def receipts(self) -> int:
        """How many payloads, 0 when there is nothing to do."""
        return self.last_seq - self.first_seq + 1


def parse_before(text: str, now_ms: int) -> int:
    """Read a UTC date as YYYY-MM-DD, tomorrow at the latest; return its first millisecond. Raises PruneDateError."""
    try:
        day = dt.date.fromisoformat(text)
    except ValueError as error:
        raise PruneDateError("the date is not one in the form YYYY-MM-DD") from error
    if day.isoformat() != text or day.year < 1970:
        raise PruneDateError("the date is not one in the form YYYY-MM-DD")
    before_ms = int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp()) * 1000
    if before_ms > now_ms + _DAY_MS:
        raise PruneDateError("the date is after tomorrow")
    return before_ms


def plan_pruning(store: PrunableStore, before_ms: int, integrated: int | None) -> PrunePlan:
    """Find what a pruning would drop. `integrated`: receipts in the log's newest head, None when there is no log.

    Raises ReceiptStoreUnavailable.
    """
    newest = store.latest(1)
    end, after = newest[0].seq if newest else 0, store.pruned_to()
    first_kept, looked = None, after
    while first_kept is None and looked < end:
        first_kept = store.first_since(before_ms, looked, _LOOK_RECEIPTS)
        looked += _LOOK_RECEIPTS
    older = end if first_kept is None else first_kept - 1
    last = older if integrated is None else max(after, min(older, integrated))
    return PrunePlan(before_ms, after + 1, last, older - last)


def prune(
    store: PrunableStore,
    plan: PrunePlan,
    *,
    now_ms: int,
    random: bytes,
    writer: WriterId,
    progress: Callable[[int], None] = lambda _: None,
) -> StoredReceipt | None:
    """Carry out `plan`, and complete one that was broken off; return the receipt that records it, if one was needed.

    `random`: `ID_RANDOM_BYTES` bytes; `writer`: an id of its own. `progress` is told how many payloads were dropped.
    Raises StoreError; then run it again.
    """
    event = None
    if plan.receipts:
        facts = {
            "before_ms": plan.before_ms,
            "first_seq": plan.first_seq,
            "last_seq": plan.last_seq,
            "receipts": plan.receipts,
        }
        draft = ReceiptDraft(
            kind="log_event",
            id=new_receipt_id(now_ms, random),
            time_ms=now_ms,
            event=EventFacts(EVENT_NAME, facts),
        )
        outcome = store.append([draft], WriterTail(writer)).outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        event = outcome
        store.permit_pruning(event.seq, plan.last_seq)
    done = 0
    while dropped := store.drop_payloads(DROP_RECEIPTS):
        done += dropped
        progress(done)
    return event


def drop_bundles(tiles: TileStore, pruned_to: int, integrated: int) -> int:
    """Drop every full entry bundle of the log that holds one of the receipts up to `pruned_to`; return how many.

    `integrated`: receipts in the newest head. The bundle at the log's end, which the log still writes to, stays until
    it is full and a pruning comes by again. Raises LogUnavailable.
    """
    last = min(-(-pruned_to // TILE_WIDTH), integrated // TILE_WIDTH)
    dropped = 0
    for index in range(last):
        if tiles.read(Tile(ENTRIES, index)) is not None:
            tiles.drop(Tile(ENTRIES, index))
            dropped += 1
    return dropped


def register(commands: Any) -> None:
    """Add the command."""
    text = "drop the payloads of old receipts and keep their hashes"
    parser = commands.add_parser("prune", help=text, description=text)
    add_options(parser)
    parser.add_argument("--before", metavar="YYYY-MM-DD", required=True, help="UTC day; what is older is dropped")
    parser.add_argument("--no-log", action="store_true", help="no log is made of this store")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be dropped")
    parser.set_defaults(run=run)


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def run(args: argparse.Namespace, *, clock_ms: Callable[[], int] = _wall_clock_ms) -> int:
    """Prune as the command line says. Returns 0; raises PlacesError, StoreError: then run it again to complete it."""
    now_ms = clock_ms()
    places = read_places(args, os.environ)
    try:
        before_ms = parse_before(args.before, now_ms)
    except PruneDateError as error:
        raise PlacesError(f"--before: {error}") from error
    folder = None if args.no_log else places.log_dir
    if folder is not None and not (folder / DATABASE_NAME).is_file():
        raise PlacesError("there is no log here: say where it is (--log, --config), or --no-log if there is none")
    try:
        store = open_store(places.store_url, write_wait_ms=_WRITE_WAIT_MS)
    except StoreUrlError as error:
        raise PlacesError(str(error)) from error
    try:
        _prune_all(store, folder, before_ms, now_ms, dry_run=args.dry_run)
    finally:
        store.close()
    return 0


def _prune_all(store: PrunableStore, folder: Path | None, before_ms: int, now_ms: int, *, dry_run: bool) -> None:
    integrated = None if folder is None else _integrated(folder)
    plan = plan_pruning(store, before_ms, integrated)
    span = f" (seq {plan.first_seq} to {plan.last_seq})" if plan.receipts else ""
    if dry_run:
        _say(f"would drop the payloads of {plan.receipts} receipts{span}")
    else:
        event = prune(
            store, plan, now_ms=now_ms, random=os.urandom(ID_RANDOM_BYTES), writer=WriterId(str(uuid.uuid4()))
        )
        recorded = "" if event is None else f", recorded as {event.id}"
        _say(f"dropped the payloads of {plan.receipts} receipts{span}{recorded}")
    if plan.waiting:
        _say(f"{plan.waiting} receipts as old stay until the log has taken them in")
    if folder is not None and integrated is not None and not dry_run:
        pruned_to = store.pruned_to()
        _say(f"dropped {drop_bundles(DirectoryTileStore(folder), pruned_to, integrated)} entry bundles")
        left = pruned_to - integrated // TILE_WIDTH * TILE_WIDTH
        if left > 0:
            _say(f"{left} of these payloads stay in the log's last bundle until it is full: prune again then")


def _integrated(folder: Path) -> int:
    heads = SthStore(folder / DATABASE_NAME)
    try:
        head = heads.last()
    finally:
        heads.close()
    return 0 if head is None else head.size


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
