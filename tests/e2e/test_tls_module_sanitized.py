"""The module under AddressSanitizer and UBSan, in a small host instead of Envoy: configuration, refusal, damaged TLS.

A finding ends the host with an error, which fails the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from tests.e2e.edge_certificates import CertificateFiles, write_certificate
from tests.e2e.edge_client import TlsClient, connect_tcp, reset
from tests.e2e.edge_envoy import build_sanitized

pytestmark = pytest.mark.edge

ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
ROUNDS = 300
HEX_BYTES = 64


@pytest.fixture(scope="module")
def program() -> list[str]:
    return build_sanitized("host")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return write_certificate(tmp_path_factory.mktemp("tls"))


@dataclass(frozen=True, slots=True)
class Host:
    process: subprocess.Popen[str]
    port: int


@pytest.fixture(params=[False, True], ids=["calm", "closing in the connected event"])
def host(request: pytest.FixtureRequest, program: list[str], files: CertificateFiles) -> Iterator[Host]:
    environment = ENVIRONMENT | ({"HOST_CLOSE_ON_CONNECT": "1"} if request.param else {})
    command = [*program, str(files.certificate), str(files.key)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield Host(process, int(process.stdout.readline()))
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "bindings left 0\n")


def _configured(program: list[str], text: str) -> tuple[bool, str]:
    outcome = subprocess.run([*program, "--config", text], capture_output=True, text=True, env=ENVIRONMENT)
    assert outcome.returncode in (0, 1), outcome.stderr
    return outcome.returncode == 0, outcome.stderr


def _config(files: CertificateFiles, **more: object) -> dict[str, object]:
    return {"certificate_file": str(files.certificate), "private_key_file": str(files.key), **more}


@pytest.mark.parametrize(
    "more",
    [{}, {"max_connections": 1}, {"max_connections": 1e6}, {"reload_interval_ms": 100}, {"reload_interval_ms": 6e4}],
)
def test_good_configurations_are_taken(program: list[str], files: CertificateFiles, more: dict[str, object]) -> None:
    for text in (json.dumps(_config(files, **more)), json.dumps(_config(files, **more), indent=2).replace("/", "\\/")):
        taken, told = _configured(program, text)
        assert taken, told


@pytest.mark.parametrize(
    "more",
    [
        {"max_connections": 0},
        {"max_connections": 1_000_001},
        {"max_connections": 1.5},
        {"max_connections": -1},
        {"max_connections": "16"},
        {"max_connections": None},
        {"max_connections": True},
        {"max_connections": [1]},
        {"reload_interval_ms": 99},
        {"reload_interval_ms": 3_600_001},
        {"certificate_file": ""},
        {"certificate_file": 7},
        {"certificate_file": "/nowhere"},
        {"certificate_file": "/"},
        {"certificate_file": "/dev/zero"},
        {"certificate_file": "x" * 5000},
        {"private_key_file": "a\u0000b"},
        {"private_key_file": "schlüssel"},
        {"session_tickets": True},
        {"": 1},
        {"k" * 100: 1},
    ],
)
def test_bad_settings_refuse_the_configuration(
    program: list[str], files: CertificateFiles, more: dict[str, object]
) -> None:
    taken, told = _configured(program, json.dumps(_config(files) | more))
    assert not taken
    assert "signet_tls: " in told


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", '{"certificate_file"', '{"a":1}', '{"max_connections":1,}']
)
def test_malformed_configurations_are_refused(program: list[str], text: str) -> None:
    assert not _configured(program, text)[0]


@pytest.mark.parametrize("ending", ["}x", '}{"a":1}', ",}", ',"max_connections":1,"max_connections":1}'])
def test_trailing_and_repeated_keys_are_refused(program: list[str], files: CertificateFiles, ending: str) -> None:
    opening = json.dumps(_config(files)).removesuffix("}")
    assert _configured(program, opening + "}")[0]
    assert not _configured(program, opening + ending)[0]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='{}[]":,\\u0123456789abcdefeE+-. \n\tcertificate_file/', max_size=200))
def test_no_text_upsets_the_configuration_reader(program: list[str], text: str) -> None:
    assert not _configured(program, text.replace("\0", ""))[0]


def test_program_that_exports_every_callback_but_is_not_envoy_is_refused(program: list[str]) -> None:
    outcome = subprocess.run([*program, "--abi"], capture_output=True, text=True, env=ENVIRONMENT)
    assert outcome.returncode == 0
    assert "refusing to load: built for Envoy 1.40" in outcome.stderr
    assert "does not export" not in outcome.stderr


def _talk(wire: TlsClient, piece: bytes) -> bool:
    """Send a piece; True when it came back behind this connection's own binding, False when the edge hung up."""
    wire.send(piece)
    received = b""
    while piece not in received:
        more = wire.receive()
        if not more:
            return False
        received += more
    assert received[:HEX_BYTES].decode() == wire.exporter()
    return True


def test_bindings_and_bytes_are_right_under_the_sanitizers(host: Host) -> None:
    chance = random.Random(7)
    served = 0
    for _ in range(60):
        with TlsClient(host.port) as wire, contextlib.suppress(SSL.Error, EOFError, ConnectionResetError):
            wire.handshake()
            served += all(_talk(wire, chance.randbytes(chance.choice((1, 50, 5000, 16384)))) for _ in range(3))
    assert served >= 40


def test_a_megabyte_comes_back_under_the_sanitizers(host: Host) -> None:
    with TlsClient(host.port) as wire:
        wire.handshake()
        received = 0
        for _ in range(64):
            wire.send(b"x" * 16384)
            while received < 16384:
                received += len(wire.receive())
            received -= 16384
        assert wire.exporter()


def _half_done(host: Host, chance: random.Random) -> None:
    """Go some way into a connection, damage what is sent, then reset, close or hang up half way."""
    wire = TlsClient(host.port)
    wire.plain.settimeout(0.2)
    with contextlib.suppress(SSL.Error, OSError, EOFError):
        for _ in range(chance.randint(0, 6)):
            with contextlib.suppress(SSL.WantReadError):
                wire.tls.do_handshake()
                wire.tls.send(chance.randbytes(chance.choice((1, 100, 16384))))
            sent = bytearray(wire.outgoing())
            if sent and chance.random() < 0.4:
                sent[chance.randrange(len(sent))] ^= 1 << chance.randrange(8)
            if sent and chance.random() < 0.2:
                del sent[chance.randrange(len(sent)) :]
            wire.plain.sendall(sent)
            if chance.random() < 0.7:
                wire.receive_ciphertext()
    match chance.randrange(3):
        case 0:
            reset(wire.plain)
        case 1:
            wire.close()
        case _:
            with contextlib.suppress(OSError):
                wire.plain.shutdown(socket.SHUT_WR)
            wire.plain.close()


def test_damaged_connections_find_no_memory_error(host: Host) -> None:
    chance = random.Random(11)
    for _ in range(ROUNDS):
        _half_done(host, chance)
    for _ in range(ROUNDS):
        with contextlib.closing(connect_tcp(host.port)) as plain, contextlib.suppress(OSError):
            plain.sendall(bytes((chance.choice((20, 21, 22, 23)), 3, 3)) + chance.randbytes(chance.randint(2, 3000)))
    assert host.process.poll() is None
