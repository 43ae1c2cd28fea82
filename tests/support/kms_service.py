"""A real key service in its own processes, with a root key, tokens and clients."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kms.mint import Grant, mint
from kms.root_key import create_root_file, read_roots

DIGEST = "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"
SCOPES = ("kms:read", "kms:sign", "kms:verify", "kms:wrap", "kms:unwrap", "kms:rotate")
ALGS = "ed25519,ml-dsa,x25519,ml-kem,ecdsa-p256-sha256,ml-dsa-44,ml-dsa-87,hkdf"
START_TIMEOUT_S = 15.0
POLL_S = 0.01


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


@dataclass
class KmsProcess:
    """`python -m kms serve` in `folder`. `settings`: environment variables without their prefix."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    command: str = "serve"

    def __post_init__(self) -> None:
        self.root_file = self.folder / "root.json"
        if not self.root_file.exists():
            create_root_file(self.root_file, int(time.time()), os.urandom)
            passphrase = self.folder / "passphrase"
            passphrase.write_text("correct horse battery staple")
            passphrase.chmod(0o600)
        self.log_file = self.folder / "kms.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        given = {
            "BIND_ADDR": "127.0.0.1:0",
            "GRPC_ADDR": "127.0.0.1:0",
            "METRICS_ADDR": "127.0.0.1:0",
            "ROOT_KEY_FILE": str(self.root_file),
            "REVOCATIONS_FILE": str(self.folder / "revoked.json"),
            "FILE_PASSPHRASE_FILE": str(self.folder / "passphrase"),
            "ALLOWED_ALGS": ALGS,
        } | self.settings
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONPATH": path, **{f"RON_KMS_{name}": text for name, text in given.items()}}

    def start(self) -> KmsProcess:
        """Start and wait until it serves."""
        before = len(self.events("serving"))
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kms", self.command], cwd=self.folder, env=self.environ, stderr=log
            )
        self.wait_for("serving", before + 1)
        return self

    def events(self, name: str) -> list[dict[str, Any]]:
        """List the log's events of one name. A line that is still being written is not there yet."""
        whole = self.log_file.read_bytes().rpartition(b"\n")[0] if self.log_file.exists() else b""
        parsed = [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return [line for line in parsed if line["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait until the log has `count` events of one name; give the newest."""
        end_s = time.monotonic() + START_TIMEOUT_S
        while len(found := self.events(name)) < count:
            if time.monotonic() > end_s or (self.process is not None and self.process.poll() is not None):
                raise AssertionError(f"no {name}: {self.log_file.read_text()}")
            time.sleep(POLL_S)
        return found[-1]

    def address(self, role: str) -> str:
        return str(self.events("serving")[-1]["addresses"][role])

    @property
    def service_pid(self) -> int:
        return int(self.events("serving")[-1]["pid"])

    def token(self, *scopes: str, tenant: str = "core", **rest: Any) -> str:
        """Mint a capability for one hour."""
        grant = Grant(scopes or SCOPES, (tenant,), expires_at_s=int(time.time()) + 3600, **rest)
        return mint(read_roots(self.root_file)[-1], grant, int(time.time()), os.urandom)[0]

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = "", role: str = "http", **headers: str
    ) -> Answer:
        """Send one request. `token`: "" mints one of every scope, None sends none."""
        fields = {name.replace("_", "-"): text for name, text in headers.items()}
        if token is not None:
            fields["authorization"] = f"Bearer {token or self.token()}"
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if raw is not None:
            fields.setdefault("content-type", "application/json")
        connection = self.connect(role)
        try:
            connection.request(method, path, raw, fields)
            response = connection.getresponse()
            names = {name.lower(): text for name, text in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def connect(self, role: str = "http") -> http.client.HTTPConnection:
        address = self.address(role)
        connection = http.client.HTTPConnection("kms", timeout=10)
        if role == "unix":
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(10)
            connection.sock.connect(address)
        else:
            host, _, port = address.rpartition(":")
            connection.sock = socket.create_connection((host, int(port)), timeout=10)
        return connection

    def create(self, alg: str = "ed25519", purpose: str = "app", **rest: Any) -> str:
        """Create a key; give its kid."""
        answer = self.ask("POST", "/v1/kms/keys", {"tenant": "core", "purpose": purpose, "alg": alg} | rest)
        assert answer.status == 200, answer.body
        return str(answer.json["kid"])

    def metric(self, text: str) -> float:
        """Give the value of a metric by its name and labels as they are written; 0 when it is not there."""
        lines = self.ask("GET", "/metrics", token=None, role="metrics").body.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == text), 0.0)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """Tell it to end; give its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(12)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
