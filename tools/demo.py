"""`make demo`: the whole loop on a real Envoy, told in some forty lines; exits 1 if anything is not as told.

Starts the local stack on free ports in a folder of its own, and stops it at the end.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pch.client.challenge import challenge_parts, parse_pch_challenge, parse_www_authenticate
from pch.client.channel import OriginClock
from pch.client.cli.terminal import read_signer
from pch.client.exchange import Answer, WireRequest
from pch.client.request import make_request
from pch.client.signing import sign_request
from pch.client.sync_connection import SyncConnection
from pch.client.tls_session import TlsContext
from receipts.receipt import leaf_hash, parse_receipt
from receipts.verify import Invalid, Unusable, verify_file
from tools.demo_proofs import PROOF_ROUTES, tell_proofs
from tools.stack import Stack
from tools.stack_config import DEMO_ROUTES, Ports, StackError, StackSettings

if TYPE_CHECKING:
    from pch.algorithms import Signer

TIMEOUT_S: Final = 10.0
TARGET: Final = "/protected/orders?id=7"
BODY: Final = b'{"order": 7}'
MAX_BODY_BYTES: Final = 1 << 20
MAX_PACK_BYTES: Final = 64 << 20
DECISIONS: Final = 7
"""What the story makes the verifier decide: one pass, six refusals."""
GREEN, RED, PLAIN = ("\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


class Demo:
    """The story. `failed` counts what was not as told."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.state = stack, stack.state
        self.signer: Signer = read_signer(self.state["demo_key"])
        self.failed = 0

    def check(self, what: str, holds: object) -> None:
        """Print one line and whether it holds."""
        self.failed += 0 if holds else 1
        print(f"  {GREEN + 'ok' if holds else RED + 'NOT SO'}{PLAIN}  {what}", flush=True)

    def connect(self) -> SyncConnection:
        """Open a TLS 1.3 connection of its own."""
        url = make_request("GET", self.state["https"] + "/").url
        tls = TlsContext(verify=self.state["ca"], bound=True, http2=True)
        return SyncConnection.open(url.origin, tls, OriginClock(), time.monotonic() + TIMEOUT_S)

    def send(self, connection: SyncConnection, wire: WireRequest) -> Answer:
        """Send exactly these bytes on this connection."""
        return connection.send(wire, deadline_s=time.monotonic() + TIMEOUT_S, max_body_bytes=MAX_BODY_BYTES)

    def unsigned(self, path: str) -> WireRequest:
        """Make a request without a proof."""
        return WireRequest(make_request("GET", self.state["https"] + path), ())

    def signed(self, connection: SyncConnection, challenge: str, method: str, path: str, body: bytes) -> WireRequest:
        """Sign a request for `connection`."""
        request = make_request(method, self.state["https"] + path, content=body or None)
        proof = sign_request(
            request.message(),
            body,
            signers=(self.signer,),
            challenge=challenge,  # type: ignore[arg-type]  a text from the server, checked when it was parsed
            binding=connection.channel.binding,
            created_s=int(time.time()),
            max_age_s=60,
        )
        return WireRequest(request, proof.message.headers, proof.bases)

    def receipt(self, answer: Answer) -> dict[str, Any]:
        """Fetch the receipt that an answer names, and check its bytes."""
        return self.receipt_of((answer.headers.get("pch-receipt") or '""').strip('"'))

    def receipt_of(self, receipt_id: str | None) -> dict[str, Any]:
        """Fetch a receipt by its id, and check its bytes."""
        url = f"{self.state['admin']}/receipts/{receipt_id}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            raw: bytes = response.read(MAX_BODY_BYTES)
        parse_receipt(raw)
        found: dict[str, Any] = json.loads(raw)
        found["leaf"] = leaf_hash(raw).hex()
        return found

    def refused(self, what: str, answer: Answer, status: int, reason: str) -> None:
        """Check a refusal, its receipt, and say so."""
        receipt = self.receipt(answer)
        found = (answer.status, answer.headers.get("pch-reason"), receipt["decision"], receipt["reason"])
        self.check(f"{what}: {answer.status} {found[1]}", found == (status, reason, "deny", reason))

    def tell(self) -> None:
        """Tell the whole story."""
        print(f"Envoy at {self.state['https']}, two filter workers, an app behind them.\n")
        here, there = self.connect(), self.connect()
        challenge = self.ask(here)
        wire, passed = self.prove(here, challenge)
        self.show_receipt(passed)
        self.attack(here, there, wire, parse_pch_challenge(passed.headers.all("pch-challenge"))[0])
        self.take_stock()
        tell_proofs(self)
        self.audit()
        here.close()
        there.close()

    def ask(self, here: SyncConnection) -> str:
        """Chapter 1: no proof, no entry, but a challenge."""
        print("1. A client without a proof asks.")
        asked = self.send(here, self.unsigned(TARGET))
        self.refused("no signature", asked, 401, "missing_signature")
        offer = parse_www_authenticate(asked.headers.all("www-authenticate"))
        if offer is None:
            raise SystemExit("demo: the refusal brought no challenge")
        epoch = challenge_parts(offer.challenge).epoch
        print(f"      challenge {offer.challenge[:24]}…  (epoch {epoch}, {offer.max_age_s} s, this connection, once)")
        return str(offer.challenge)

    def prove(self, here: SyncConnection, challenge: str) -> tuple[WireRequest, Answer]:
        """Chapter 2: the signed request reaches the app, once."""
        print("2. It signs the request with that challenge, bound to this TLS connection.")
        wire = self.signed(here, challenge, "POST", TARGET, BODY)
        for line in wire.bases[0].decode().split("\n")[:-1]:
            print(f"      {line[:100]}")
        passed = self.send(here, wire)
        seen = [each for each in self.stack.app_requests() if each["target"] == TARGET]
        once = passed.status == 200 and len(seen) == 1
        self.check(f"let through: {passed.status}; the app saw the request once", once)
        headers = dict(seen[0]["headers"]) if seen else {}
        subject = headers.get("x-signet-subject")
        told = subject == "demo" and "signature" not in headers
        self.check(f"the app is told who asked: x-signet-subject: {subject}", told)
        fresh = parse_pch_challenge(passed.headers.all("pch-challenge"))
        self.check(f"{len(fresh)} fresh challenge(s) came along: the next request needs one round trip", fresh)
        return wire, passed

    def show_receipt(self, passed: Answer) -> None:
        """Chapter 3: what is on record about it."""
        print("3. The decision left a receipt before Envoy heard of it.")
        receipt = self.receipt(passed)
        who, algorithm = receipt["proof"]["subject"], receipt["proof"]["signatures"][0]["alg"]
        print(f"      {receipt['id']}  {receipt['decision']} {receipt['reason']} by {who} with {algorithm}")
        print(f"      writer {receipt['writer'][:8]}…, number {receipt['wseq']}, leaf {receipt['leaf'][:32]}…")
        self.check("the receipt says allow", receipt["decision"] == "allow")

    def attack(self, here: SyncConnection, there: SyncConnection, wire: WireRequest, fresh: str) -> None:
        """Chapter 4: replayed, moved, altered, ambiguous."""
        print("4. Every attack on it is refused, and leaves a receipt of its own.")
        self.refused("the same bytes again", self.send(here, wire), 401, "nonce_replay")
        stolen = self.signed(here, fresh, "POST", TARGET, BODY)
        self.refused("a signed request moved to another connection", self.send(there, stolen), 403, "binding_mismatch")
        for what, target, body, status, reason in (
            ("the path tampered with", "/protected/admin", BODY, 401, "bad_signature"),
            ("the content tampered with", TARGET, b'{"order": 8}', 400, "bad_content_digest"),
        ):
            request = make_request("POST", self.state["https"] + target, content=body)
            self.refused(what, self.send(here, dataclasses.replace(stolen, request=request)), status, reason)
        dots = self.send(here, self.unsigned("/public/%2e%2e/protected"))
        self.refused("a path with two readings", dots, 400, "ambiguous_path")

    def take_stock(self) -> None:
        """Chapter 5: the app saw one request, the log has seven decisions."""
        print("5. What the app saw, and what is on record.")
        seen = [each for each in self.stack.app_requests() if each["target"].startswith("/protected")]
        self.check(f"requests that reached the app: {len(seen)}", len(seen) == 1)
        with urllib.request.urlopen(f"{self.state['admin']}/receipts/latest?limit=20", timeout=TIMEOUT_S) as response:
            latest = json.load(response)["receipts"]
        decided = [each["receipt"] for each in latest if each["receipt"]["kind"] == "decision"]
        tally = collections.Counter(str(each["reason"]) for each in decided)
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(tally.items()))
        self.check(f"receipts: {told}", len(decided) == DECISIONS)

    def audit(self) -> None:
        """Chapter 7: the day as one file, verified offline; a tampered copy is refused."""
        print("7. The day's receipts, as one file that an auditor verifies offline.")
        day = dt.datetime.now(dt.UTC).date().isoformat()
        ask = urllib.request.Request(
            f"{self.state['admin']}/compliance/pack",
            json.dumps({"date": day}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(ask, timeout=TIMEOUT_S) as response:
            pack: bytes = response.read(MAX_PACK_BYTES)
        whole, altered = self.stack.files.var / "pack.zip", self.stack.files.var / "tampered.zip"
        whole.write_bytes(pack)
        report = verify_file(whole)
        self.check(f"pack of {day}: {len(pack)} bytes, {report.receipts} receipts, valid", report.receipts >= DECISIONS)
        middle = len(pack) // 2
        altered.write_bytes(pack[:middle] + bytes([pack[middle] ^ 1]) + pack[middle + 1 :])
        try:
            verify_file(altered)
        except (Invalid, Unusable) as error:
            self.check(f"a copy with one bit changed: refused ({error})", holds=True)
        else:
            self.check("a copy with one bit changed: refused", holds=False)


def main() -> int:
    """Run the demonstration. Returns 0 when everything was as told."""
    with tempfile.TemporaryDirectory(prefix="signet-demo-") as folder:
        try:
            with Stack(
                StackSettings(Path(folder), Ports.free(), routes=(*PROOF_ROUTES, *DEMO_ROUTES), kms=True)
            ) as stack:
                demo = Demo(stack)
                demo.tell()
        except StackError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
    print("\nEverything was as told." if not demo.failed else f"\n{demo.failed} line(s) were NOT as told.")
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
