"""A process that appends receipts and prints each id once it is told that the receipt is durable.

Arguments: the store's URL, how many receipts (0: until killed), how many at once, and "shared-keys" to give
every third receipt an idempotency key that every process with the same arguments also uses.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import sys
import time
import uuid

from receipts.facts import request_facts
from receipts.open_store import open_store
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ID_RANDOM_BYTES, WriterId, new_receipt_id
from receipts.writer import ReceiptWriter


def draft(number: int, *, shared_keys: bool) -> ReceiptDraft:
    time_ms = time.time_ns() // 1_000_000
    return ReceiptDraft(
        kind="decision",
        id=new_receipt_id(time_ms, os.urandom(ID_RANDOM_BYTES)),
        time_ms=time_ms,
        request=request_facts(method="GET", authority="example.com", target="/" + "x" * 700, content="none"),
        decision="deny",
        reason="bad_signature",
        status=401,
        idempotency_key=hashlib.sha256(b"%d" % number).digest() if shared_keys and number % 3 == 0 else None,
    )


async def main(url: str, total: int, at_once: int, *, shared_keys: bool) -> None:
    store = open_store(url, write_wait_ms=10_000)
    writer = ReceiptWriter(store, writer_id=WriterId(str(uuid.uuid4())))
    writer.start()
    numbers = iter(range(total)) if total else itertools.count()

    async def work() -> None:
        for number in numbers:
            asked = draft(number, shared_keys=shared_keys)
            stored = await writer.append(asked, 20.0)
            key = asked.idempotency_key
            line = {"id": stored.id, "duplicate": stored.duplicate, "key": None if key is None else key.hex()}
            # One write call, so that a line is seen whole or not at all.
            os.write(1, json.dumps(line).encode() + b"\n")

    await asyncio.gather(*(work() for _ in range(at_once)))
    await writer.aclose(5.0)
    store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), shared_keys="shared-keys" in sys.argv[4:]))
