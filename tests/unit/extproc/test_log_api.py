"""The proof API: what it serves can be verified, and what it cannot serve it says."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from extproc import log_api
from extproc.log_api import DEFAULT_PAGE, MAX_BODY_BYTES, MAX_EXPORT_RECEIPTS, LogApi, log_routes
from extproc.problems import problem
from receipts import verify
from receipts.checkpoint import verify_checkpoint
from receipts.checkpoint_jwks import verifier_keys_of
from receipts.errors import ReceiptStoreUnavailable, StoreError
from receipts.log_errors import LogUnavailable
from receipts.merkle import leaf_hash
from receipts.merkle_verify import verify_consistency, verify_inclusion
from receipts.receipt_query import MAX_PAGE, MAX_SCANNED
from receipts.store import WriterTail
from receipts.tile import ENTRIES, Tile, split_entries, tile_of
from receipts.tlog_proof import parse_tlog_proof, verify_tlog_proof
from tests.support.log_parts import NOW_S, ORIGIN
from tests.support.pack_parts import DAY_S, WRITERS, PackParts, day, decision, trace_id

BASE = "http://127.0.0.1:8080"


class Api:
    """The routes on a real log, asked without a network."""

    def __init__(self, folder: Path) -> None:
        self.parts = PackParts(folder)
        self.changes: dict[str, Any] = {}
        self.caught_up = 0
        self.source = self.parts.source()
        self.api = LogApi(self._source, self.parts.log.clock.now_s, self._catch_up)
        self.app = Starlette(routes=log_routes(self.api, self._guard))

    def _source(self) -> Any:
        return self.parts.source(reader=self.source.reader, **self.changes)

    def _catch_up(self) -> None:
        self.caught_up += 1

    @staticmethod
    def _guard(handler: Any) -> Any:
        async def guarded(request: Any) -> Any:
            try:
                return await handler(request)
            except StoreError:
                return problem(503, "The receipt store is not available.")

        return guarded

    def ask(self, path: str, *, method: str = "GET", **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def raws(self) -> list[bytes]:
        return self.parts.log.raws()

    def id_of(self, index: int) -> str:
        return str(json.loads(self.raws()[index])["id"])


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path)
    made.parts.add(45)
    yield made
    made.parts.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path)
    yield made
    made.parts.close()


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["title"]
    return str(document["detail"])


# -- one receipt


def test_receipt_is_the_stored_bytes(api: Api) -> None:
    response = api.ask(f"/v1/receipts/{api.id_of(7)}")
    assert response.content == api.raws()[7]
    assert response.headers["etag"] == f'"{leaf_hash(api.raws()[7]).hex()}"'
    assert response.headers["signet-log-index"] == "7"
    assert response.headers["cache-control"] == "private, no-cache", "it may be pruned"


@pytest.mark.parametrize("tail", ["", "/proof"])
@pytest.mark.parametrize("wanted", ["x", "00000000-0000-7000-8000-000000000000", "%00", "a" * 5000, "..%2f..", "'--"])
def test_receipt_that_is_not_there_is_404(api: Api, wanted: str, tail: str) -> None:
    assert api.ask(f"/v1/receipts/{wanted}{tail}").status_code == 404


def test_proof_verifies_offline(api: Api) -> None:
    response = api.ask(f"/v1/receipts/{api.id_of(7)}/proof")
    proof = parse_tlog_proof(response.content)
    head = verify_tlog_proof(proof, leaf_hash(api.raws()[7]), api.parts.log.verifiers(), ORIGIN)
    assert (proof.index, head.head.size) == (7, 45)


def test_receipt_that_no_head_has_yet_is_told_from_one_that_is_unknown(api: Api) -> None:
    api.parts.log.add(1)
    assert "no signed head" in refused(api.ask(f"/v1/receipts/{api.id_of(45)}/proof"), 404)


# -- the log


def test_checkpoint_is_signed(api: Api) -> None:
    response = api.ask("/v1/log/checkpoint")
    head = verify_checkpoint(response.content, api.parts.log.verifiers(), ORIGIN)
    assert head.head.size == 45
    assert response.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 45), (1, 45), (13, 40), (45, 45)])
def test_consistency_proof_verifies(api: Api, old: int, new: int) -> None:
    document = api.ask(f"/v1/log/consistency?from={old}&to={new}").json()
    hashes = [base64.b64decode(each) for each in document["hashes"]]
    roots = [verify.fold(peaks_of(api, size)) for size in (old, new)]
    verify_consistency(old, new, roots[0], roots[1], hashes)


def peaks_of(api: Api, size: int) -> list[bytes]:
    nodes = api.source.reader.nodes(45)
    return [nodes.node(height, (size >> height) - 1) for height in reversed(range(10)) if size >> height & 1]


WRONG_SIZES = [
    "",
    "from=1",
    "to=1",
    "from=a&to=2",
    "from=-1&to=2",
    "from=01&to=2",
    "from=1&to=2&to=3",
    "from=1&to=2&x=3",
]


@pytest.mark.parametrize("query", [*WRONG_SIZES, f"from=1&to={'9' * 5000}", "from=%D9%A1&to=2"])
def test_sizes_that_are_none_are_refused(api: Api, query: str) -> None:
    refused(api.ask(f"/v1/log/consistency?{query}"), 400)


@pytest.mark.parametrize("query", ["from=1&to=46", "from=5&to=4", "from=1&to=9223372036854775807"])
def test_sizes_that_the_log_has_not_are_404(api: Api, query: str) -> None:
    refused(api.ask(f"/v1/log/consistency?{query}"), 404)


def test_tiles_are_served_as_tlog_tiles_says(api: Api) -> None:
    hashes = api.ask("/v1/log/tile/0/000.p/45")
    assert hashes.headers["content-type"] == "application/octet-stream"
    assert hashes.content == b"".join(map(leaf_hash, api.raws()))
    assert "immutable" in hashes.headers["cache-control"]
    entries = api.ask("/v1/log/tile/entries/000.p/45")
    assert split_entries(tile_of(ENTRIES, 0, 45), entries.content) == api.raws()
    assert "no-cache" in entries.headers["cache-control"]


WRONG_TILES = [
    "0/000",
    "0/000.p/46",
    "1/000",
    "0/001.p/1",
    "x/000",
    "0/0",
    "0/000.p/0",
    "entries/000.p/300",
    "",
    "/",
    "0",
]


@pytest.mark.parametrize(
    "path", [*WRONG_TILES, "..%2f..%2fcheckpoint-keys.json", "0/000.p/45/", "0//000.p/45", "64/000"]
)
def test_tiles_that_are_not_there_are_404(api: Api, path: str) -> None:
    assert api.ask(f"/v1/log/tile/{path}").status_code == 404


def test_pruned_bundle_is_gone_and_its_hashes_are_not(api: Api) -> None:
    class Pruned:
        def pruned_to(self) -> int:
            return 3

    api.changes["store"] = Pruned()
    refused(api.ask("/v1/log/tile/entries/000.p/45"), 410)
    assert api.ask("/v1/log/tile/0/000.p/45").status_code == 200


def test_keys_are_a_jwk_set(api: Api) -> None:
    response = api.ask("/.well-known/jwks.json")
    assert response.headers["content-type"] == "application/jwk-set+json"
    assert verifier_keys_of(response.json(), ORIGIN) == api.parts.log.signer.verifier_keys()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/log/checkpoint",
        "/v1/log/tile/0/000.p/45",
        "/.well-known/jwks.json",
        "/v1/receipts",
        "/v1/log/consistency?from=1&to=2",
    ],
)
def test_what_is_known_already_is_not_sent_again(api: Api, path: str) -> None:
    first = api.ask(path)
    assert first.status_code == 200
    tag = first.headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = api.ask(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert api.ask(path, headers={"if-none-match": '"other"'}).status_code == 200


# -- many receipts


def pages(api: Api, query: str = "") -> list[list[int]]:
    found, after = [], ""
    while True:
        document = api.ask(f"/v1/receipts?{query}{after}").json()
        found.append([each["index"] for each in document["receipts"]])
        if document["next"] is None:
            return found
        after = f"&after={document['next']}"


def flat(found: list[list[int]]) -> list[int]:
    return [each for page in found for each in page]


def test_pages_hold_every_receipt_once_in_order(api: Api) -> None:
    assert pages(api, "limit=20") == [list(range(20)), list(range(20, 40)), list(range(40, 45))]
    assert flat(pages(api)) == list(range(45))
    raw = api.ask("/v1/receipts?limit=1").content
    assert raw == b'{"receipts":[{"index":0,"receipt":%b}],"next":0}' % api.raws()[0]


def test_pages_are_filtered(api: Api) -> None:
    assert flat(pages(api, "decision=deny&limit=4")) == list(range(4, 45, 5))
    assert flat(pages(api, "decision=allow&limit=4")) == [each for each in range(45) if each % 5 != 4]
    assert flat(pages(api, "subject=nobody")) == []


def test_since_passes_over_what_is_older(api: Api) -> None:
    api.parts.next_day()
    api.parts.add(5)
    for since in (f"{day(1)}T00:00:00Z", str((NOW_S + DAY_S) * 1000)):
        assert flat(pages(api, f"since={since}")) == list(range(45, 50))
    assert flat(pages(api, f"since={NOW_S * 1000}")) == list(range(50))
    assert flat(pages(api, f"since={(NOW_S + DAY_S) * 1000 + 1}")) == []


def test_since_finds_what_a_clock_that_runs_ahead_wrote(api: Api) -> None:
    ahead_ms = (NOW_S + 5) * 1000
    api.parts.log.store.append([decision(100, time_ms=ahead_ms)], WriterTail(WRITERS[1]))
    api.parts.writer.flush()
    assert flat(pages(api, f"since={ahead_ms}")) == [45]
    assert flat(pages(api, f"since={ahead_ms + 1}")) == []


def test_page_that_looked_at_too_much_says_where_to_go_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receipts.receipt_query.MAX_SCANNED", 10)
    found = pages(api, "decision=deny")
    assert len(found) > 4
    assert flat(found) == list(range(4, 45, 5))


def test_page_has_a_bound_in_bytes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receipts.receipt_query.MAX_PAGE_BYTES", 2000)
    found = pages(api)
    assert max(map(len, found)) < 5
    assert flat(found) == list(range(45))


WRONG_QUERIES = [
    *("limit=0", "limit=501", "limit=x", "limit=-1", "limit=1&limit=2", "unknown=1", "decision=", "decision=maybe"),
    *("subject=", f"subject={'a' * 257}", "after=x", "after=-1", f"after={'9' * 30}", "since=", "since=yesterday"),
    *("since=2027-01-01", "since=2027-13-01T00:00:00Z", "since=2027-01-01T00:00:00", f"since={'9' * 5000}"),
]


@pytest.mark.parametrize("query", WRONG_QUERIES)
def test_query_that_means_nothing_is_refused(api: Api, query: str) -> None:
    refused(api.ask(f"/v1/receipts?{query}"), 400)


def test_export_is_the_chain_of_one_trace_with_proofs(api: Api) -> None:
    document = api.ask(f"/v1/receipts/export/{trace_id(3)}").json()
    head = verify_checkpoint(document["checkpoint"].encode(), api.parts.log.verifiers(), ORIGIN).head
    assert [each["index"] for each in document["receipts"]] == [9, 10, 11]
    assert not document["truncated"]
    for each in document["receipts"]:
        raw = api.raws()[each["index"]]
        assert each["receipt"] == json.loads(raw)
        proof = [base64.b64decode(hash_) for hash_ in each["inclusion"]]
        verify_inclusion(leaf_hash(raw), each["index"], head.size, proof, head.root)


def test_export_has_a_bound(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.log_api.MAX_EXPORT_RECEIPTS", 2)
    document = api.ask(f"/v1/receipts/export/{trace_id(3)}").json()
    assert len(document["receipts"]) == 2
    assert document["truncated"]


def test_export_has_a_bound_in_bytes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(raw) for raw in api.raws()[9:12]]
    for most, count in ((sum(sizes), 3), (sum(sizes) - 1, 2), (sizes[0], 1)):
        monkeypatch.setattr("extproc.log_api.MAX_EXPORT_BYTES", most)
        document = api.ask(f"/v1/receipts/export/{trace_id(3)}").json()
        assert [each["index"] for each in document["receipts"]] == [9, 10, 11][:count]
        assert document["truncated"] == (count < 3)


@pytest.mark.parametrize("wanted", ["x", "0" * 32, "A" * 32, "a" * 31, "a" * 33, "%00"])
def test_trace_that_is_no_trace_is_refused(api: Api, wanted: str) -> None:
    refused(api.ask(f"/v1/receipts/export/{wanted}"), 400)


def test_trace_that_is_unknown_is_404(api: Api) -> None:
    refused(api.ask(f"/v1/receipts/export/{'ab' * 16}"), 404)


# -- packs


def test_pack_verifies(api: Api) -> None:
    response = api.ask("/compliance/pack", method="POST", content=json.dumps({"date": day()}))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["signet-pack-complete"] == "false"
    assert f"signet-{day()}.zip" in response.headers["content-disposition"]
    assert api.caught_up == 1, "what was decided a moment ago is in it"
    report = verify.PackVerifier(io.BytesIO(response.content)).verify()
    assert report.receipts == 45


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"{", b'{"date":1}', b'{"date":"2027-01-15","x":1}', b"\xff"])
def test_pack_of_no_request_is_refused(api: Api, body: bytes) -> None:
    refused(api.ask("/compliance/pack", method="POST", content=body), 400)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", BASE])
def test_page_in_a_browser_gets_no_pack(api: Api, origin: str) -> None:
    body = json.dumps({"date": day()})
    refused(api.ask("/compliance/pack", method="POST", content=body, headers={"Origin": origin}), 403)
    assert api.source.notes.handouts() == ()


def test_request_for_a_pack_has_a_bound(api: Api) -> None:
    refused(api.ask("/compliance/pack", method="POST", content=b" " * 2000), 413)


@pytest.mark.parametrize(
    ("date", "why"),
    [("2027-02-30", "YYYY-MM-DD"), ("tomorrow", "YYYY-MM-DD"), (day(1), "not begun"), (day(-1), f"began on {day()}")],
)
def test_wrong_date_is_a_clear_error(api: Api, date: str, why: str) -> None:
    assert why in refused(api.ask("/compliance/pack", method="POST", content=json.dumps({"date": date})), 400)


def test_only_so_many_packs_at_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def locked(self) -> bool:
            return True

    monkeypatch.setattr(api.api, "_packs", Full())
    refused(api.ask("/compliance/pack", method="POST", content=json.dumps({"date": day()})), 503)


def test_pack_that_fails_half_way_has_no_end(api: Api) -> None:
    api.changes["store"] = Gone(api.parts.log.store, 20)
    with pytest.raises(ReceiptStoreUnavailable):
        api.ask("/compliance/pack", method="POST", content=json.dumps({"date": day()}))


class Gone:
    """A store that is gone once something is read."""

    def __init__(self, store: Any, after: int) -> None:
        self._store, self._after = store, after

    def __getattr__(self, name: str) -> Any:
        raise ReceiptStoreUnavailable("a secret path")


# -- without a log, and with a damaged one


@pytest.mark.parametrize("path", ["/v1/log/checkpoint", "/v1/log/consistency?from=0&to=0", "/v1/log/tile/0/000.p/1"])
def test_log_without_a_head_says_so(empty: Api, path: str) -> None:
    refused(empty.ask(path), 404)
    assert empty.ask("/v1/receipts").json() == {"receipts": [], "next": None}
    refused(empty.ask("/compliance/pack", method="POST", content=json.dumps({"date": day()})), 404)


def test_damaged_tile_is_not_answered_on(api: Api) -> None:
    tile = api.parts.log.log_folder / Tile(0, 0, 45).path
    data = bytearray(tile.read_bytes())
    data[40] ^= 1
    tile.write_bytes(data)
    refused(api.ask(f"/v1/receipts/{api.id_of(7)}/proof"), 500)
    refused(api.ask("/v1/log/consistency?from=3&to=45"), 500)


@pytest.mark.parametrize("path", ["/v1/receipts", "/v1/receipts/00000000-0000-7000-8000-000000000000"])
def test_store_that_is_gone_is_503_without_its_words(api: Api, path: str) -> None:
    api.changes["store"] = Gone(None, 0)
    assert "secret" not in refused(api.ask(path), 503)


def test_source_that_is_not_there_is_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Any:
        raise LogUnavailable("key file")

    monkeypatch.setattr(api.api, "_source", gone)
    refused(api.ask("/.well-known/jwks.json"), 503)


def test_reference_names_every_path_and_every_bound(api: Api) -> None:
    text = (Path(__file__).parents[3] / "docs/reference/proof-api.md").read_text()
    documented = dict(re.findall(r"^\| `(?:GET|POST) ([^?`]+)[^`]*` \| (.+) \|$", text, re.MULTILINE))
    assert set(documented) == {route.path.replace(":path", "") for route in log_routes(api.api, lambda each: each)}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == log_api._CURSOR_PARAMETERS
    for bound in (MAX_PAGE, DEFAULT_PAGE, MAX_SCANNED, MAX_EXPORT_RECEIPTS, MAX_BODY_BYTES):
        assert f"{bound:,}" in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/receipts", "/v1/log/checkpoint", "/.well-known/jwks.json"])
def test_nothing_can_be_changed(api: Api, method: str, path: str) -> None:
    assert api.ask(path, method=method).status_code == 405
    assert api.ask("/compliance/pack").status_code == 405
