"""The admin server: what it serves, to whom, and what it says when a part is broken."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette

from extproc.admin import MAX_RECEIPTS_PER_ANSWER, _read_token, build_app
from extproc.config import FilterConfig, load_config
from extproc.errors import ServerFault
from pch.reasons import Reason
from receipts.errors import ReceiptStoreUnavailable
from receipts.facts import WindowFacts
from receipts.open_store import open_store
from receipts.prune import PrunePlan, prune
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import WriterId, new_receipt_id
from receipts.store import ReceiptStore, StoredReceipt, WriterTail
from tests.support.check_calls import FilterCalls, reason_of
from tests.support.filter_parts import NOW_MS, SetClock
from tests.support.filter_process import FilterFolder, filter_folder, until
from tools.stack_certs import ensure_server_certificate
from tools.stack_config import Ports

BASE = "http://127.0.0.1:8080"
TOKEN = b"0123456789abcdef-a-bearer-token"
WRITER = WriterId("11111111-1111-4111-8111-111111111111")
PATHS = ["/readyz", "/metrics", "/receipts/latest", f"/receipts/{WRITER}"]


def draft(number: int) -> ReceiptDraft:
    return ReceiptDraft(
        kind="summary",
        id=new_receipt_id(NOW_MS + number, bytes(10)),
        time_ms=NOW_MS + number,
        route="protégé / \u2028 <script>",
        counts={"missing_signature": 1},
        window=WindowFacts(NOW_MS, NOW_MS + 1000),
    )


class AppClient:
    """Requests straight into an ASGI application; what it raises is raised here."""

    def __init__(self, app: Starlette, base_url: str) -> None:
        self._app, self._base_url = app, base_url

    def get(self, path: str, headers: dict[str, Any] | None = None) -> httpx.Response:
        return self.request("GET", path, headers)

    def request(self, method: str, path: str, headers: dict[str, Any] | None = None) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url=self._base_url) as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(send())


class Admin:
    """The application on a real store, with a client that speaks as `base_url` says."""

    def __init__(self, folder: FilterFolder) -> None:
        self.config: FilterConfig = load_config(folder.config, {})
        self.clock = SetClock()
        self.store = open_store(self.config.receipts.url)

    def client(
        self,
        *,
        base_url: str = BASE,
        token: bytes | None = None,
        store: ReceiptStore | None = None,
        config: FilterConfig | None = None,
    ) -> AppClient:
        app = build_app(config or self.config, store or self.store, token, self.clock)
        return AppClient(app, base_url)

    def fill(self, receipts: int) -> list[StoredReceipt]:
        tail, stored = WriterTail(WRITER), []
        for start in range(0, receipts, 100):
            batch = [draft(number) for number in range(start, min(start + 100, receipts))]
            appended = self.store.append(batch, tail)
            tail = appended.tail
            stored += [each for each in appended.outcomes if isinstance(each, StoredReceipt)]
        assert len(stored) == receipts
        return stored


@pytest.fixture
def folder() -> Iterator[FilterFolder]:
    with filter_folder(workers=1) as made:
        yield made


@pytest.fixture
def admin(folder: FilterFolder) -> Iterator[Admin]:
    made = Admin(folder)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def empty() -> Iterator[Admin]:
    """An application without receipts that tests share."""
    with filter_folder(workers=1) as made:
        admin = Admin(made)
        yield admin
        admin.store.close()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["title"]
    return document


# -- receipts


def test_receipt_is_the_stored_bytes_themselves(admin: Admin) -> None:
    (stored,) = admin.fill(1)
    response = admin.client().get(f"/receipts/{stored.id}")
    assert response.status_code == 200
    assert response.content == stored.raw
    assert "protégé".encode() in response.content, "nothing was written anew"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["etag"] == f'"{stored.id}"'
    assert response.headers["signet-receipt-seq"] == str(stored.seq)


@pytest.mark.parametrize(
    "wanted",
    ["0198c5f2-0000-7000-8000-000000000000", "x", "%00", "%ff", "'%20OR%201=1--", "a" * 5000, "..%2f..%2fkeyring.json"],
)
def test_receipt_that_is_not_there_is_404(admin: Admin, wanted: str) -> None:
    admin.fill(1)
    problem(admin.client().get(f"/receipts/{wanted}"), 404)


def test_latest_are_newest_first_with_unchanged_bytes(admin: Admin) -> None:
    stored = admin.fill(30)
    client = admin.client()
    document = client.get("/receipts/latest").json()
    assert [each["seq"] for each in document["receipts"]] == [each.seq for each in stored[:-11:-1]]
    raw = client.get("/receipts/latest?limit=1").content
    assert raw == b'{"receipts":[{"seq":%d,"receipt":%b}]}' % (stored[-1].seq, stored[-1].raw)


def test_a_pruned_receipt_is_gone_and_its_place_is_not(admin: Admin) -> None:
    stored = admin.fill(3)
    plan = PrunePlan(before_ms=0, first_seq=1, last_seq=2)
    event = prune(admin.store, plan, now_ms=0, random=bytes(10), writer=WriterId("9" * 8 + WRITER[8:]))
    assert event is not None
    problem(admin.client().get(f"/receipts/{stored[1].id}"), 410)
    assert admin.client().get(f"/receipts/{stored[2].id}").content == stored[2].raw
    latest = admin.client().get("/receipts/latest").json()["receipts"]
    assert [(each["seq"], each["receipt"] is None) for each in latest] == [
        (4, False),
        (3, False),
        (2, True),
        (1, True),
    ]


def test_latest_of_an_empty_store_is_an_empty_list(admin: Admin) -> None:
    assert admin.client().get("/receipts/latest").json() == {"receipts": []}


@pytest.mark.parametrize(("limit", "given"), [("1", 1), ("100", 100), ("007", 7)])
def test_limit_bounds_the_answer(admin: Admin, limit: str, given: int) -> None:
    admin.fill(110)
    assert len(admin.client().get(f"/receipts/latest?limit={limit}").json()["receipts"]) == given


@pytest.mark.parametrize(
    "limit",
    [
        *("0", "101", "-1", "", "x", "1.0", "1e1", "%2B1", " 1", "1%00", "\u0661", "\u00b2", "0001", "0000109999"),
        *("9" * 5000, "000001" + "0" * 5000),
    ],
)
def test_limit_out_of_range_is_refused(admin: Admin, limit: str) -> None:
    assert str(MAX_RECEIPTS_PER_ANSWER) in problem(admin.client().get(f"/receipts/latest?limit={limit}"), 400)["detail"]


class BrokenStore:
    """A store that is gone."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            raise ReceiptStoreUnavailable("a secret path")

        return fail


@pytest.mark.parametrize("path", ["/receipts/latest", "/receipts/x"])
def test_store_that_is_gone_is_503_without_its_words(admin: Admin, path: str) -> None:
    response = admin.client(store=BrokenStore()).get(path)  # type: ignore[arg-type]
    problem(response, 503)
    assert response.headers["retry-after"] == "1"
    assert "secret" not in response.text


# -- who may ask

LOCAL = ["127.0.0.1:8080", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8080", "[::1]"]
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.2",
    "10.0.0.1:8080",
    "",
    ":8080",
    "localhost:8080:evil",
    "[::1].evil",
    "[::1",
    "0.0.0.0:8080",
    "localhost,evil.example",
]


@pytest.mark.parametrize("host", LOCAL)
@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/receipts/latest"])
def test_loopback_names_are_answered(empty: Admin, host: str, path: str) -> None:
    assert empty.client().get(path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/healthz", *PATHS])
def test_name_that_was_rebound_to_us_is_refused(empty: Admin, host: str, path: str) -> None:
    problem(empty.client().get(path, headers={"host": host}), 421)


def test_configured_address_is_one_of_our_names(empty: Admin) -> None:
    for host, name in (("127.0.0.2", "127.0.0.2:8080"), ("::1", "[::1]:8080")):
        config = replace(empty.config, admin=replace(empty.config.admin, host=host))
        assert empty.client(config=config).get("/healthz", headers={"host": name}).status_code == 200
        problem(empty.client(config=config).get("/healthz", headers={"host": "127.0.0.3"}), 421)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "sent",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN.decode()}x", TOKEN.decode(), "Basic YTpi"),
        *(f"Bearer  {TOKEN.decode()}", "Bearer \u00ff", f"Bearer {TOKEN[:-1].decode()}"),
    ],
)
def test_without_the_token_nothing_is_told(empty: Admin, path: str, sent: str | None) -> None:
    headers = {} if sent is None else {"authorization": sent.encode("latin-1")}
    response = empty.client(token=TOKEN).get(path, headers=headers)
    problem(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


def test_with_the_token_any_name_is_answered(empty: Admin) -> None:
    client = empty.client(token=TOKEN, base_url="https://admin.example")
    assert client.get("/receipts/latest", headers={"authorization": f"Bearer {TOKEN.decode()}"}).status_code == 200
    assert client.get("/healthz").text == "ok\n", "a load balancer has no token"


@pytest.mark.parametrize("path", ["/", "/receipts", "/receipts/", "/receipts/a/b", "/admin", "/healthz/", "//healthz"])
def test_paths_that_are_not_served_are_404(empty: Admin, path: str) -> None:
    problem(empty.client().get(path), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/healthz", "/receipts/latest", "/receipts/x"])
def test_nothing_can_be_changed_here(empty: Admin, method: str, path: str) -> None:
    response = empty.client().request(method, path)
    problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_what_nobody_expected_is_a_problem_without_its_words(empty: Admin) -> None:
    class Broken:
        def latest(self, _limit: int) -> list[StoredReceipt]:
            raise RuntimeError("a secret")

    app = build_app(empty.config, cast("Any", Broken()), None, empty.clock)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            return await client.get("/receipts/latest")

    response = asyncio.run(ask())
    problem(response, 500)
    assert "secret" not in response.text


@pytest.mark.parametrize("content", [b"", b"short", b"  0123456789abcd \n"])
def test_token_that_is_too_short_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ServerFault, match="16 bytes"):
        _read_token(path)
    with pytest.raises(ServerFault, match="cannot be read"):
        _read_token(tmp_path / "absent")
    path.write_bytes(TOKEN + b"\n")
    assert _read_token(path) == TOKEN


# -- readiness and metrics


def test_not_ready_without_workers_and_says_which(admin: Admin) -> None:
    response = admin.client().get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "reasons": {"worker.0": "does not accept connections"}}


def test_not_ready_when_its_own_store_is_gone(admin: Admin) -> None:
    response = admin.client(store=BrokenStore()).get("/readyz")  # type: ignore[arg-type]
    assert response.json()["reasons"]["admin.receipts"] == "store_unavailable"
    assert "secret" not in response.text


def test_metrics_without_workers_are_those_of_the_admin_process_alone(admin: Admin) -> None:
    response = admin.client().get("/metrics")
    assert response.status_code == 200
    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    outcomes = ["signet_outcomes_missing_total 0.0", "signet_outcomes_waiting 0.0"]
    assert lines == [*outcomes, "signet_log_problem 0.0", "signet_receipts_stored 0.0"]


def samples(text: str, name: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
    return {labels: float(value) for labels, _, value in lines}


def test_metrics_are_the_sum_of_all_workers_and_outlive_them() -> None:
    with filter_folder(workers=2) as folder:
        folder.start("serve")
        for index, times in ((0, 3), (1, 4)):
            folder.pid(index)
            with FilterCalls(folder.socket(index)) as calls:
                for _ in range(times):
                    assert reason_of(folder.ask(calls)) == "missing_signature"
                assert reason_of(folder.pass_once(calls)) == "allowed"
        admin = Admin(folder)
        with contextlib.closing(admin.store):
            client = admin.client()
            expected = {
                f'signet_decisions_total{{reason="{Reason.MISSING_SIGNATURE}",route="protected"}}': 9.0,
                f'signet_decisions_total{{reason="{Reason.ALLOWED}",route="protected"}}': 2.0,
            }
            assert samples(client.get("/metrics").text, "signet_decisions_total") == expected
            keys = samples(client.get("/metrics").text, "signet_keyring_keys")
            assert list(keys.values()) == [1.0], "the largest, not the sum"
            victim = folder.pid(0)
            os.kill(victim, 9)
            until(lambda: folder.status(0).get("pid", victim) != victim, "worker 0 runs again")
            assert samples(client.get("/metrics").text, "signet_decisions_total") == expected, "a dead one's count on"
            files = sorted(path.name for path in (folder.folder / "run" / "metrics").iterdir())
            assert all(name.removesuffix(".db").endswith(("_0", "_1")) for name in files), "none is left by a restart"
            with FilterCalls(folder.socket(0)) as calls:
                folder.ask(calls)
            (missing, allowed) = expected
            again = samples(client.get("/metrics").text, "signet_decisions_total")
            assert again == {missing: expected[missing] + 1, allowed: expected[allowed]}, "it goes on where it stopped"


# -- the real process


def request(port: int, path: str, **headers: str) -> http.client.HTTPResponse:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        return response


def answers(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return request(port, "/healthz").status == 200
    return False


def test_process_serves_limits_the_header_and_stops_when_told() -> None:
    port = Ports.free().admin
    with filter_folder(workers=1, admin_port=port) as folder:
        process = folder.start("admin")
        until(lambda: answers(port), "the admin server answers")
        assert request(port, "/readyz").status == 503
        assert request(port, "/readyz", Host="evil.example").status == 421
        served = request(port, "/healthz")
        assert served.getheader("server") is None
        with contextlib.suppress(ConnectionError):
            assert request(port, "/healthz", X_Long="v" * 200_000).status in {400, 431}
        assert answers(port)
        second = folder.start("admin")
        assert second.wait(15) != 0, "the port is taken"
        assert "address already in use" in folder.logged()
        process.terminate()
        assert process.wait(15) == 0
        assert "Traceback" not in folder.logged()


def test_bearer_token_over_tls() -> None:
    port = Ports.free().admin
    with filter_folder(workers=1, admin_port=port) as folder:
        ensure_server_certificate(folder.folder)
        (folder.folder / "token").write_bytes(TOKEN + b"\n")
        names = {"tls_cert": "server.pem", "tls_key": "server.key", "bearer_token_file": "token"}
        added = "".join(f'{key} = "{value}"\n' for key, value in names.items())
        folder.config.write_text(folder.config_text.replace("[admin]\n", f"[admin]\n{added}"))
        folder.start("admin")
        trust = ssl.create_default_context(cafile=folder.folder / "ca.pem")
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust) as client:

            def up() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/healthz").status_code == 200
                return False

            until(up, "the admin server answers")
            problem(client.get("/receipts/latest"), 401)
            problem(client.get("/receipts/latest", headers={"authorization": "Bearer wrong"}), 401)
            response = client.get("/receipts/latest", headers={"authorization": f"Bearer {TOKEN.decode()}"})
            assert response.json() == {"receipts": []}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as plain:
            plain.request("GET", "/healthz")
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                plain.getresponse()


def test_process_without_its_token_file_says_so() -> None:
    with filter_folder(workers=1) as folder:
        folder.config.write_text(folder.config_text.replace("[admin]\n", '[admin]\nbearer_token_file = "absent"\n'))
        assert folder.start("admin").wait(15) == 1
        assert "admin.bearer_token_file" in folder.logged()
        assert json.dumps(folder.logged()).count("Traceback") == 0
