"""moto's server as its own process: an AWS KMS for tests, started once and ended with the tests."""

from __future__ import annotations

import atexit
import http.client
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3

from kms.providers.cloud import CloudProvider, open_cloud_provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REGION = "eu-west-1"
START_TIMEOUT_S = 60.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@cache
def url() -> str:
    """Start the server at the first call. Returns its URL on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def stop() -> None:
        process.kill()
        process.wait(timeout=10)

    atexit.register(stop)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _answers(port):
        assert process.poll() is None, "moto's server ended at its start"
        assert time.monotonic() < deadline_s, "moto's server does not answer"
        time.sleep(0.1)
    return f"http://127.0.0.1:{port}"


@contextmanager
def credentials() -> Iterator[None]:
    """Let the SDK find credentials that only moto takes."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def client() -> Any:
    """Give an administrator's client."""
    return boto3.client("kms", endpoint_url=url(), region_name=REGION)


def new_key(**settings: Any) -> str:
    """Make a key in the service. Returns its id."""
    made = client().create_key(**settings)["KeyMetadata"]
    return str(made["KeyId"])


def open_provider(key_id: str, monotonic_s: Callable[[], float] = time.monotonic) -> CloudProvider:
    """Open the provider on a key."""
    return open_cloud_provider(key_id, url(), REGION, monotonic_s)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/moto-api/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
