"""`python -m receipts integrate`, `rotate` and `fsck`: working on the log itself."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from receipts.checkpoint_keys import KeyFileError
from receipts.cli_pack import progress
from receipts.cli_places import PlacesError, add_options, read_places
from receipts.cosignature import note_verifier
from receipts.fsck import check_log
from receipts.log import LogSettings, LogWriter
from receipts.receipt_id import WriterId
from receipts.rotation import rotate_keys
from receipts.tile_store import DirectoryTileStore

if TYPE_CHECKING:
    import argparse

_DEFAULTS: Final = LogSettings()


def register(commands: Any) -> None:
    """Add the commands."""
    for name, run, text in (
        ("integrate", _integrate, "take stored receipts into the log, until SIGTERM; the admin server does the same"),
        ("rotate", _rotate, "give the log new keys, which the old ones introduce"),
        ("fsck", _fsck, "verify the whole store and its log again"),
    ):
        parser = commands.add_parser(name, help=text, description=text)
        add_options(parser)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        parser.set_defaults(run=run)
        if name == "integrate":
            parser.add_argument("--once", action="store_true", help="take in what is stored now, and stop")
            parser.add_argument("--rebuild", action="store_true", help="first write lost or damaged tiles again")
            for setting in ("max_batch_receipts", "max_batch_age_ms", "poll_interval_ms"):
                option = f"--{setting.replace('_', '-')}"
                parser.add_argument(option, type=int, default=getattr(_DEFAULTS, setting))


def _integrate(args: argparse.Namespace) -> int:
    places = read_places(args, os.environ)
    try:
        settings = LogSettings(args.max_batch_receipts, args.max_batch_age_ms, args.poll_interval_ms)
    except ValueError as error:
        raise PlacesError(str(error)) from error
    store = places.store(create=True)
    signer = places.signer(create=True)
    writer = LogWriter(store, places.log_dir, signer, origin=places.origin, settings=settings)
    try:
        if args.rebuild:
            sys.stderr.write(f"{writer.rebuild()} tiles were written again\n")
        if not args.once:
            stop = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            writer.run(stop)
        head = writer.flush()
    finally:
        writer.close()
        store.close()
    _print(
        args, {"size": head.size, "root": head.root.hex(), "time": head.time_s}, f"the log has {head.size} entries\n"
    )
    return 0


def _rotate(args: argparse.Namespace) -> int:
    places = read_places(args, os.environ)
    store = places.store()
    try:
        index = rotate_keys(
            store,
            places.notes(),
            places.signer(),
            writer=WriterId(str(uuid.uuid4())),
            now_ms=time.time_ns() // 1_000_000,
            random_bytes=os.urandom,
        )
    except KeyFileError as error:
        raise PlacesError(str(error)) from error
    finally:
        store.close()
    _print(args, {"index": index}, f"entry {index} introduces the new keys; the next heads are signed by both sets\n")
    return 0


def _fsck(args: argparse.Namespace) -> int:
    places = read_places(args, os.environ)
    store, reader = places.store(), places.reader()
    keys = places.verifier_keys()
    newest = store.latest(1)
    total, show = newest[0].seq if newest else 0, progress(args, "checking")
    try:
        report = check_log(
            store,
            DirectoryTileStore(places.log_dir),
            reader.heads,
            origin=places.origin if places.keys_elsewhere else places.signer().origin,
            verifiers=[note_verifier(key) for key in keys],
            progress=lambda done: show(done, total),
        )
    finally:
        reader.close()
        store.close()
    facts = {
        "receipts": report.receipts,
        "integrated": report.integrated,
        "pruned": report.pruned,
        "writers": report.writers,
        "heads": report.heads,
    }
    _print(args, facts, ", ".join(f"{count} {name}" for name, count in facts.items()) + ": whole\n")
    return 0


def _print(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    sys.stdout.write(json.dumps(facts) + "\n" if args.json else text)
