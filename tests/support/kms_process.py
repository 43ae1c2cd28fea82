"""A real key service in processes of its own, `python -m kms serve`, that tests kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from kms.client import Endpoint, KmsClient, TokenFile
from kms.errors import KmsError
from kms.messages import CreateKeyRequest
from kms.mint import Grant, mint
from kms.private_file import replace_private
from kms.root_key import create_root_file, read_roots

START_TIMEOUT_S = 20.0
REPOSITORY = Path(__file__).resolve().parents[2]
ALL_SCOPES = ("kms:read", "kms:sign", "kms:verify", "kms:wrap", "kms:unwrap", "kms:rotate")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class KmsProcess:
    """A service with everything in `folder`. `with` starts and ends it."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    clients: list[KmsClient] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.socket, self.port, self.metrics_port = self.folder / "kms.sock", free_port(), free_port()
        self.root_file, self.revocations = self.folder / "root.json", self.folder / "revoked.json"
        passphrase = self.folder / "passphrase"
        passphrase.write_text("correct horse battery staple\n")
        passphrase.chmod(0o600)
        create_root_file(self.root_file, int(time.time()), os.urandom)
        (self.folder / "kms.toml").write_text(
            f"""
bind_addr = "127.0.0.1:{self.port}"
grpc_addr = ""
metrics_addr = "127.0.0.1:{self.metrics_port}"
[unix]
path = "{self.socket}"
allowed_uids = [{os.getuid()}]
[service]
backend = "file"
state_dir = "{self.folder / "state"}"
[security]
root_key_file = "{self.root_file}"
revocations_file = "{self.revocations}"
sign_rate_limit_rps = 10000
[audit]
dir = "{self.folder / "audit"}"
[backends.file]
dir = "{self.folder / "sealed"}"
passphrase_file = "{passphrase}"
"""
        )

    def __enter__(self) -> KmsProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.stop()

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"

    def token_file(self, grant: Grant, name: str = "token") -> Path:
        path = self.folder / name
        replace_private(path, mint(read_roots(self.root_file)[-1], grant, int(time.time()), os.urandom)[0].encode())
        return path

    def client(
        self, *, url: str | None = None, timeout_s: float = 5.0, name: str = "all", **grant: object
    ) -> KmsClient:
        wanted = {"scopes": ALL_SCOPES, "tenants": ("core",), "expires_at_s": int(time.time()) + 3600, **grant}
        token = TokenFile(self.token_file(Grant(**wanted), name))  # type: ignore[arg-type]
        client = KmsClient(Endpoint.parse(url or self.url), token, timeout_s=timeout_s)
        self.clients.append(client)
        return client

    def create(self, alg: str, purpose: str) -> str:
        request = CreateKeyRequest(tenant="core", purpose=purpose, alg=alg)  # type: ignore[arg-type]
        return self.client(name="creating").create_key(request).kid

    def start(self, *, wait: bool = True) -> None:
        log = (self.folder / "kms.log").open("ab")
        command = [sys.executable, "-m", "kms", "serve", "--config", str(self.folder / "kms.toml")]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY, start_new_session=True)
        log.close()
        if wait:
            self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        client = self.client(name="waiting", timeout_s=1.0, keys=("core/none/*",))
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.create_key(CreateKeyRequest(tenant="core", purpose="x", alg="ed25519"))
            except KmsError as error:
                if error.http_status == 403:
                    return
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the key service did not start: {self.log()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as an operator would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
            self.process = None

    def kill(self) -> None:
        """Kill supervisor and service at once: nothing is told to anyone."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def log(self) -> str:
        return (self.folder / "kms.log").read_text()
