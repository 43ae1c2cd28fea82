"""The whole way on real processes: requests are decided, come into the log, and leave it as a pack that verifies."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from receipts import verify
from receipts.__main__ import main
from tests.support.check_calls import FilterCalls, reason_of
from tests.support.filter_process import filter_folder, until
from tools.stack_config import Ports


@contextlib.contextmanager
def client(port: int) -> Iterator[httpx.Client]:
    made = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def up() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return made.get("/healthz").status_code == 200
        return False

    with made:
        until(up, "the admin server answers")
        yield made


def today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


def pack_today(asked: httpx.Client) -> tuple[str, httpx.Response]:
    """Ask for today's pack; ask again if midnight came between."""
    for _ in range(2):
        date = today()
        response = asked.post("/compliance/pack", content=json.dumps({"date": date}))
        if today() == date:
            return date, response
        time.sleep(0.01)
    raise AssertionError("midnight came twice")


def report_on(data: bytes, **options: Any) -> verify.Report:
    return verify.PackVerifier(io.BytesIO(data), **options).verify()


def test_decisions_come_out_as_a_pack_that_verifies_offline() -> None:
    port = Ports.free().admin
    with filter_folder(workers=1, admin_port=port) as folder:
        folder.start("serve")
        admin = folder.start("admin")
        folder.pid(0)
        with client(port) as asked, FilterCalls(folder.socket()) as calls:
            until(lambda: asked.get("/v1/log/checkpoint").status_code == 200, "the log has a head")
            trust = asked.get("/.well-known/jwks.json").json()
            for _ in range(3):
                assert reason_of(folder.ask(calls)) == "missing_signature"
            folder.pass_once(calls)
            date, response = pack_today(asked)
            assert response.status_code == 200
            report = report_on(response.content, trust=trust)
            assert report.receipts >= 4, "what was decided a moment ago is in it"
            assert report.under_policy == report.asked_policy > 0
            assert report.manifest.date == date

            # The log goes on after its owner was killed, and a later pack joins the earlier one.
            admin.kill()
            admin.wait(15)
            assert reason_of(folder.ask(calls)) == "missing_signature"
            folder.start("admin")
            with client(port) as again:
                newer = report_on(pack_today(again)[1].content, since=report)
                assert newer.manifest.end > report.manifest.end
                assert newer.joined
                assert "admin.log" not in again.get("/readyz").json()["reasons"]

        # The command line makes the same pack while the admin server owns the log.
        out = folder.folder / "pack.zip"
        assert main(["pack", "--config", str(folder.config), "--date", today(), "--out", str(out)]) == 0
        assert verify.verify_file(out, trust=trust).under_policy == newer.under_policy
        assert "Traceback" not in folder.logged()
