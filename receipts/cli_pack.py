"""`python -m receipts pack`: write one day's compliance pack to a file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receipts.cli_places import POLICY_NAME, Places, PlacesError, add_options, now_s, read_places
from receipts.log import LogWriter
from receipts.log_errors import LogBusy
from receipts.pack import MAX_POLICY_BYTES, PackSource, plan_pack, write_pack

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from receipts.store import ReceiptStore

_BAR_CHARACTERS: Final = 30


def register(commands: Any) -> None:
    """Add the command."""
    text = "write the compliance pack of one UTC day"
    parser = commands.add_parser("pack", help=text, description=text)
    add_options(parser)
    parser.add_argument("--date", required=True, help="the day, YYYY-MM-DD, UTC")
    parser.add_argument("--out", type=Path, required=True, help="the file to write; a former one is replaced")
    parser.add_argument("--policy", type=Path, help="the policy bundle in force (default: the one in the log's folder)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the pack. Raises PlacesError, PackError, StoreError."""
    places = read_places(args, os.environ)
    with contextlib.closing(places.store()) as store, contextlib.closing(places.reader()) as reader:
        integrate_if_idle(places, store)
        source = PackSource(
            store=store,
            lookup=places.lookup(store),
            reader=reader,
            notes=places.notes(),
            keys=places.verifier_keys(),
            policy=_read_policy(args.policy, places),
        )
        plan = plan_pack(source, args.date, now_s())
        try:
            size = write_pack(source, plan, args.out, progress(args, "packing"))
        except OSError as error:
            raise PlacesError(f"{args.out}: {error.strerror}") from error
    facts = {
        "path": str(args.out),
        "bytes": size,
        "date": plan.date,
        "complete": plan.complete,
        "origin": plan.origin,
        "start": plan.start,
        "end": plan.end,
        "receipts": plan.end - plan.start,
    }
    state = "complete" if plan.complete else "the day is not over: complete is false"
    text = f"{args.out}: {facts['receipts']} receipts of {plan.date} ({state}), {size} bytes\n"
    sys.stdout.write(json.dumps(facts) + "\n" if args.json else text)
    return 0


def integrate_if_idle(places: Places, store: ReceiptStore) -> None:
    """Take in what is stored, unless another process does so: then its newest head is at most a batch behind.

    Where a key service has the log's keys, only the admin process does.
    """
    if places.keys_elsewhere:
        return
    with contextlib.suppress(LogBusy):
        writer = LogWriter(store, places.log_dir, places.signer(), origin=places.origin)
        try:
            writer.flush()
            writer.step()
        finally:
            writer.close()


def progress(args: argparse.Namespace, verb: str) -> Callable[[int, int], None]:
    """Make a progress bar on stderr where a person looks at it."""
    if args.json or not sys.stderr.isatty():
        return lambda _done, _all: None

    def show(done: int, total: int) -> None:
        filled = _BAR_CHARACTERS * done // total if total else _BAR_CHARACTERS
        bar = "#" * filled + "." * (_BAR_CHARACTERS - filled)
        sys.stderr.write(f"\r{verb} [{bar}] {done}/{total}" + ("\n" if done >= total else ""))
        sys.stderr.flush()

    return show


def _read_policy(path: Path | None, places: Places) -> bytes:
    try:
        with (path or places.log_dir / POLICY_NAME).open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except FileNotFoundError as error:
        if path is not None:
            raise PlacesError(f"{path}: {error.strerror}") from error
        sys.stderr.write("no policy bundle is known here: the pack has an empty one (--policy names another)\n")
        return b""
    except OSError as error:
        raise PlacesError(f"policy: {error.strerror}") from error
    if len(data) > MAX_POLICY_BYTES:
        raise PlacesError(f"the policy bundle is larger than {MAX_POLICY_BYTES} bytes")
    return data
