"""The proof API on the admin port: receipts, proofs, checkpoints, tiles, exports and compliance packs.

Transport alone: what is answered comes from `receipts`. Every answer is bounded; what is final has an ETag and may be
kept for ever, what is not must be asked for again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.concurrency import iterate_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from extproc.problems import problem
from receipts.canonical_json import canonical
from receipts.checkpoint_jwks import verifier_jwks
from receipts.errors import ReceiptFormatError, StoreCorrupt
from receipts.log_errors import EntryUnknown
from receipts.pack import plan_pack, stream_pack
from receipts.pack_errors import PackError
from receipts.receipt_id import ReceiptId
from receipts.receipt_query import ReceiptFilter, find_receipts
from receipts.store import PrunedReceipt
from receipts.tile import ENTRIES, TILE_WIDTH, TileError, parse_tile_path
from receipts.verify import leaf_hash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from starlette.requests import Request

    from receipts.pack import PackSource
    from receipts.store import StoredReceipt

    Handler = Callable[[Request], Awaitable[Response]]

DEFAULT_PAGE: Final = 50
MAX_EXPORT_RECEIPTS: Final = 1000
MAX_EXPORT_BYTES: Final = 4 * 1024 * 1024
"""Of receipts in one export, beside their proofs. Clients choose trace ids, and how many requests one has."""
MAX_BODY_BYTES: Final = 1024
MAX_PACKS_AT_ONCE: Final = 2
FOR_EVER: Final = "private, max-age=31536000, immutable"
ASK_AGAIN: Final = "private, no-cache"
"""Also for payloads: they do not change, but may be pruned."""
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_CURSOR_PARAMETERS: Final = frozenset({"since", "decision", "subject", "after", "limit"})


class LogApi:
    """The handlers. `source` gives what packs are made from, or raises StoreError; `now_s`: POSIX seconds.

    `catch_up` waits, for a bounded time, until the log has what is stored: so that a pack of today has what was
    decided a moment ago.
    """

    def __init__(
        self, source: Callable[[], PackSource], now_s: Callable[[], int], catch_up: Callable[[], None] = lambda: None
    ) -> None:
        self._source, self._now_s, self._catch_up = source, now_s, catch_up
        self._packs = asyncio.Semaphore(MAX_PACKS_AT_ONCE)

    async def _opened(self) -> PackSource:
        return await asyncio.to_thread(self._source)

    # -- one receipt

    async def receipt(self, request: Request) -> Response:
        """Give one receipt: the stored bytes themselves."""
        stored = await self._find(request)
        if isinstance(stored, Response):
            return stored
        if isinstance(stored, PrunedReceipt):
            return problem(410, "The payload was pruned; its leaf hash and proof remain.")
        headers = {"Signet-Log-Index": str(stored.seq - 1), "Cache-Control": ASK_AGAIN}
        return _tagged(request, stored.raw, "application/json", leaf_hash(stored.raw).hex(), headers)

    async def proof(self, request: Request) -> Response:
        """Give the inclusion proof of a receipt with the newest checkpoint, C2SP tlog-proof."""
        stored = await self._find(request)
        if isinstance(stored, Response):
            return stored
        source = await self._opened()
        try:
            proof = await asyncio.to_thread(source.reader.prove_inclusion, stored.seq - 1)
        except EntryUnknown:
            return problem(404, "The receipt is stored, but no signed head has it yet.", {"Retry-After": "1"})
        if proof.leaf != _leaf(stored):
            raise StoreCorrupt("the store and the log disagree")
        return _current(request, proof.tlog_proof().data, "text/plain; charset=utf-8")

    async def _find(self, request: Request) -> StoredReceipt | Response:
        wanted = request.path_params["receipt_id"]
        if not _UUID.fullmatch(wanted):
            return problem(404, "No receipt has this id.")
        stored = await asyncio.to_thread((await self._opened()).store.get, ReceiptId(wanted))
        return problem(404, "No receipt has this id.") if stored is None else stored

    # -- many receipts

    async def page(self, request: Request) -> Response:
        """List receipts in the order of the log; see `receipts.receipt_query`."""
        query = request.query_params
        if not _CURSOR_PARAMETERS.issuperset(query) or len(query.multi_items()) != len(query):
            return problem(400, f"The parameters are {', '.join(sorted(_CURSOR_PARAMETERS))}, each once.")
        try:
            wanted = ReceiptFilter.of_text(
                since=query.get("since"),
                decision=query.get("decision"),
                subject=query.get("subject"),
                after=query.get("after"),
                limit=query.get("limit", str(DEFAULT_PAGE)),
            )
        except ValueError as error:
            return problem(400, str(error))
        source = await self._opened()
        page = await asyncio.to_thread(find_receipts, source.store, source.reader, wanted)
        members = [b'{"index":%d,"receipt":%b}' % (each.seq - 1, each.raw or b"null") for each in page.receipts]
        body = b'{"receipts":[%b],"next":%b}' % (b",".join(members), canonical(page.next_after))
        return _current(request, body, "application/json")

    async def export(self, request: Request) -> Response:
        """Give every receipt of one trace with its proof: the signed chain of one trace."""
        trace_id = request.path_params["trace_id"]
        if not _TRACE_ID.fullmatch(trace_id):
            return problem(400, "A trace id is 32 lower-case hexadecimal digits, not all 0.")
        source = await self._opened()
        body = await asyncio.to_thread(_export, source, trace_id)
        if body is None:
            return problem(404, "No receipt is of this trace.")
        return _current(request, body, "application/json")

    # -- the log

    async def checkpoint(self, request: Request) -> Response:
        """Give the newest signed head, C2SP tlog-checkpoint."""
        head = await asyncio.to_thread((await self._opened()).reader.head)
        return _current(request, head.note, "text/plain; charset=utf-8")

    async def consistency(self, request: Request) -> Response:
        """Prove that the tree of `to` entries begins with that of `from`, RFC 9162 §2.1.4."""
        query = request.query_params
        texts = query.get("from", ""), query.get("to", "")
        if not all(_NUMBER.fullmatch(text) for text in texts) or len(query.multi_items()) != 2:
            return problem(400, "from and to are tree sizes, each once.")
        old_size, size = map(int, texts)
        source = await self._opened()
        try:
            hashes = await asyncio.to_thread(source.reader.prove_consistency, old_size, size)
        except EntryUnknown as error:
            return problem(404, f"No such trees: {error}.")
        proof = [base64.b64encode(each).decode() for each in hashes]
        body = canonical({"from": old_size, "to": size, "hashes": proof})
        return _final(request, body, "application/json")

    async def tile(self, request: Request) -> Response:
        """Give a hash tile or an entry bundle, C2SP tlog-tiles."""
        source = await self._opened()
        try:
            tile = parse_tile_path(f"tile/{request.path_params['path']}")
            if tile.level == ENTRIES and await asyncio.to_thread(source.store.pruned_to) > TILE_WIDTH * tile.index:
                return problem(410, "Payloads of this bundle were pruned.")
            data = await asyncio.to_thread(source.reader.tile, tile)
        except (TileError, EntryUnknown):
            return problem(404, "The log has no such tile.")
        if tile.level == ENTRIES:
            return _current(request, data, "application/octet-stream")
        return _final(request, data, "application/octet-stream")

    async def jwks(self, request: Request) -> Response:
        """Give every public key that may have signed a head, as a JWK set."""
        keys = (await self._opened()).keys
        return _current(request, canonical(verifier_jwks(keys)), "application/jwk-set+json")

    # -- packs

    async def pack(self, request: Request) -> Response:
        """Stream the compliance pack of one UTC day.

        Browsers send `Origin` with every POST, and nothing here is for them: a page must not set us to work.
        """
        if "origin" in request.headers:
            return problem(403, "A page in a browser may not ask for packs.")
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                return problem(413, f"The body is at most {MAX_BODY_BYTES} bytes.")
        try:
            date = msgspec.json.decode(body, type=_PackRequest).date
        except msgspec.MsgspecError:
            return problem(400, 'The body is {"date":"YYYY-MM-DD"}.')
        if self._packs.locked():
            return problem(503, "Enough packs are being made at this moment.", {"Retry-After": "10"})
        source = await self._opened()
        await asyncio.to_thread(self._catch_up)
        try:
            plan = await asyncio.to_thread(plan_pack, source, date, self._now_s())
        except PackError as error:
            return problem(400, f"{str(error)[:1].upper()}{str(error)[1:]}.")
        headers = {
            "Content-Disposition": f'attachment; filename="signet-{plan.date}.zip"',
            "Cache-Control": "no-store",
            "Signet-Pack-Complete": json.dumps(plan.complete),
        }
        return StreamingResponse(self._streamed(stream_pack(source, plan)), 200, headers, "application/zip")

    async def _streamed(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        async with self._packs:
            async for piece in iterate_in_threadpool(pieces):
                yield piece


class _PackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    date: str


def log_routes(api: LogApi, guard: Callable[[Handler], Handler]) -> list[Route]:
    """List the paths served. `guard` wraps every handler: it refuses who may not ask, and answers for StoreError."""
    paths = (
        ("/v1/receipts", api.page, "GET"),
        ("/v1/receipts/export/{trace_id}", api.export, "GET"),
        ("/v1/receipts/{receipt_id}", api.receipt, "GET"),
        ("/v1/receipts/{receipt_id}/proof", api.proof, "GET"),
        ("/v1/log/checkpoint", api.checkpoint, "GET"),
        ("/v1/log/consistency", api.consistency, "GET"),
        ("/v1/log/tile/{path:path}", api.tile, "GET"),
        ("/.well-known/jwks.json", api.jwks, "GET"),
        ("/compliance/pack", api.pack, "POST"),
    )
    return [Route(path, guard(_answering_for_the_log(handler)), methods=[method]) for path, handler, method in paths]


def _answering_for_the_log(handler: Handler) -> Handler:
    """Say of a log without a head that it has none; of a damaged one that nothing is answered on its strength."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except EntryUnknown:
            return problem(404, "The log has no signed head yet.", {"Retry-After": "1"})
        except (StoreCorrupt, ReceiptFormatError):
            return problem(500, "What is stored contradicts itself; nothing is answered on its strength.")

    return answered


def _export(source: PackSource, trace_id: str) -> bytes | None:
    """Write the receipts of a trace, with proofs that all lead to one head."""
    found = source.lookup.by_trace(trace_id, MAX_EXPORT_RECEIPTS + 1)
    if not found:
        return None
    head = source.reader.head()
    members: list[bytes] = []
    size_bytes = 0
    for each in found[:MAX_EXPORT_RECEIPTS]:
        size_bytes += len(each.raw)
        if size_bytes > MAX_EXPORT_BYTES:
            break
        index, proof = each.seq - 1, None
        if index < head.size:
            proved = source.reader.prove_inclusion(index, head)
            if proved.leaf != _leaf(each):
                raise StoreCorrupt("the store and the log disagree")
            proof = [base64.b64encode(hash_).decode() for hash_ in proved.proof]
        facts = canonical({"index": index, "leaf": _leaf(each).hex(), "inclusion": proof})
        members.append(b'%b,"receipt":%b}' % (facts[:-1], each.raw or b"null"))
    frame = {"checkpoint": head.note.decode(), "trace_id": trace_id, "truncated": len(members) < len(found)}
    return b'%b,"receipts":[%b]}' % (canonical(frame)[:-1], b",".join(members))


def _leaf(receipt: StoredReceipt) -> bytes:
    return receipt.leaf_hash if isinstance(receipt, PrunedReceipt) else leaf_hash(receipt.raw)


def _final(request: Request, body: bytes, kind: str) -> Response:
    """Answer with what never changes."""
    return _tagged(request, body, kind, hashlib.sha256(body).hexdigest(), {"Cache-Control": FOR_EVER})


def _current(request: Request, body: bytes, kind: str) -> Response:
    """Answer with what may be different the next time."""
    return _tagged(request, body, kind, hashlib.sha256(body).hexdigest(), {"Cache-Control": ASK_AGAIN})


def _tagged(request: Request, body: bytes, kind: str, tag: str, headers: dict[str, str]) -> Response:
    quoted = f'"{tag}"'
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    headers = {"ETag": quoted, **headers}
    if known & {quoted, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, kind)
