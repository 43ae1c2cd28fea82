"""Connections are bounded in number, in header bytes and in how long a peer may take (CONFIG.md §3)."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import uuid

import msgspec
import pytest

from kms.clock import SYSTEM_CLOCK
from kms.config_sections import KmsConfig, TlsSection, UnixSection
from kms.config_values import ConfigError, DurationMs
from kms.http_connection import MAX_PIPELINED_REQUESTS, ConnectionRules, peer_uid
from kms.http_server import HttpServer
from kms.listeners import Listeners, adopt, bind_all, bind_unix, rebind
from kms.messages import Signature, SignResponse
from kms.tls import TlsFiles
from tests.support.kms_certificates import make_certificate, pem
from tests.support.kms_edge import DIGEST, KID, EdgeParts

SIGNED = SignResponse(sigs=[Signature(alg="ed25519", signature_b64="AA==")], kid=KID)
BODY = json.dumps({"kid_or_set": {"kid": KID}, "payload_b3": DIGEST}).encode()
FAST = {"read_timeout_ms": DurationMs(300), "write_timeout_ms": DurationMs(300)}


def request_bytes(body=BODY, extra=b""):
    return (
        b"POST /v1/kms/sign HTTP/1.1\r\nhost: kms\r\nauthorization: Bearer good\r\ncontent-type: application/json\r\n"
        + extra
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )


class Stage:
    """A server on a socket of its own."""

    def __init__(self, parts, listener, server):
        self.parts, self.listener, self.server = parts, listener, server

    async def connect(self, **rest):
        if self.listener.family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(self.listener.getsockname())
        return await asyncio.open_connection(*self.listener.getsockname()[:2], **rest)


@pytest.fixture
async def stage(tmp_path):
    stages = []

    async def start(*, neighbours=None, tls=None, app=None, **settings):
        unix = neighbours is not None
        parts = EdgeParts(SIGNED, msgspec.structs.replace(KmsConfig(), **settings, unix=neighbours or UnixSection()))
        listener = bind_unix(tmp_path / "kms.sock") if unix else socket.create_server(("127.0.0.1", 0))
        rules = ConnectionRules(lambda: parts.config, parts.telemetry, SYSTEM_CLOCK.wall_ms, unix)
        server = HttpServer(app or parts.api, listener.dup(), rules, tls)
        await server.start()
        stages.append(Stage(parts, listener, server))
        return stages[-1]

    yield start
    for each in stages:
        await each.server.stop(1.0)
        each.listener.close()


async def read_answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def test_one_connection_carries_many_requests(stage):
    reader, writer = await (await stage()).connect()
    for _ in range(3):
        writer.write(request_bytes())
        head, body = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body)["kid"] == KID
    writer.write(request_bytes() + request_bytes())
    assert [(await read_answer(reader))[0][9:12] for _ in range(2)] == [b"200", b"200"]
    writer.close()


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /v1", b"POST /v1/kms/sign HTTP/1.1\r\nx: ", request_bytes()[:-60]],
    ids=["silent", "line", "header", "body"],
)
async def test_slow_loris_a_peer_that_does_not_finish_its_request_is_cut_off(stage, start):
    here = await stage(**FAST)
    reader, writer = await here.connect()
    writer.write(start)

    async def trickle():
        while not reader.at_eof():
            await asyncio.sleep(0.05)
            if start and not writer.is_closing():
                writer.write(b"a")

    drip = asyncio.create_task(trickle())
    began_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(3):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"never")
    assert asyncio.get_running_loop().time() - began_s < 2
    drip.cancel()
    assert here.parts.counted("io_timeouts_total", op="read") == 1.0
    assert here.parts.dispatcher.asked == []
    writer.close()


async def test_a_peer_that_reads_nothing_is_cut_off(stage):
    async def flood(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})

    here = await stage(app=flood, **FAST)
    _, writer = await here.connect(limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nhost: kms\r\n\r\n")
    async with asyncio.timeout(5):
        while here.parts.counted("io_timeouts_total", op="write") == 0.0:
            await asyncio.sleep(0.02)
    writer.transport.abort()


async def test_a_connection_that_is_idle_after_an_answer_is_closed(stage):
    here = await stage(idle_timeout_ms=DurationMs(1000), **FAST)
    reader, writer = await here.connect()
    writer.write(request_bytes())
    await read_answer(reader)
    async with asyncio.timeout(4):
        assert await reader.read() == b""
    assert here.parts.counted("io_timeouts_total", op="read") == 0.0
    writer.close()


async def test_a_reloaded_idle_timeout_holds_from_the_next_answer_on(stage):
    here = await stage(**FAST)
    reader, writer = await here.connect()
    writer.write(request_bytes())
    await read_answer(reader)
    here.parts.config = msgspec.structs.replace(here.parts.config, idle_timeout_ms=DurationMs(50))
    writer.write(request_bytes())
    await read_answer(reader)
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    writer.close()


async def test_connections_beyond_max_conns_get_429_and_the_envelope(stage):
    here = await stage(max_conns=2)
    kept = [await here.connect() for _ in range(2)]
    for reader, writer in kept:
        writer.write(request_bytes())
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    reader, writer = await here.connect()
    head, body = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 1" in head
    assert uuid.UUID(head.partition(b"x-corr-id: ")[2].partition(b"\r\n")[0].decode()).version == 7
    assert json.loads(body)["error"]["code"] == "Backpressure"
    assert await reader.read() == b""
    assert here.parts.counted("rejected_total", reason="max_conns") == 1.0
    for _, each in [*kept, (reader, writer)]:
        each.close()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"POST /v1/kms/sign HTTP/1.1\r\nx: " + b"a" * 20_000, "header_too_large"),
        (b"POST /" + b"a" * 20_000, "header_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "bad_request"),
        (b"POST /v1/kms/sign HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "bad_request"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "bad_request"),
    ],
)
async def test_what_is_not_http_gets_400_and_the_envelope(stage, raw, reason):
    here = await stage()
    reader, writer = await here.connect()
    writer.write(raw)
    head, body = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "BadRequest"
    assert here.parts.counted("rejected_total", reason=reason) == 1.0
    assert here.parts.dispatcher.asked == []
    writer.close()


CHUNKED = (
    b"POST /v1/kms/sign HTTP/1.1\r\nhost: kms\r\nauthorization: Bearer good\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY)
) + BODY


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (b"\r\n0\r\nx: y\r\nz: y\r\n\r\n", "trailers"),
        (b"\r\n0\r\n" + b"x: y\r\n" * 3000, "trailers"),
        (b"\r\n0\r\nx: " + b"a" * 300_000, "framing_too_large"),
        (b"\r\n1;" + b"a" * 300_000, "framing_too_large"),
    ],
    ids=["trailer", "trailers", "one-long-trailer", "chunk-extension"],
)
async def test_trailers_and_what_else_frames_a_body_are_not_kept(stage, rest, reason):
    here = await stage()
    reader, writer = await here.connect()
    writer.write(CHUNKED)
    await asyncio.sleep(0)
    writer.write(rest)
    head, body = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "BadRequest"
    assert here.parts.counted("rejected_total", reason=reason) == 1.0
    assert here.parts.dispatcher.asked == []
    writer.close()


async def test_a_body_in_many_chunks_is_taken(stage):
    here = await stage()
    reader, writer = await here.connect()
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in b" " * 20_000 + BODY)
    writer.write(CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_trailers_after_an_answer_end_the_connection_without_a_second_one(stage):
    here = await stage()
    reader, writer = await here.connect()
    writer.write(b"GET /v1/kms/openapi.json HTTP/1.1\r\nhost: kms\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    writer.write(b"x: y\r\nz: y\r\n")
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    assert here.parts.counted("rejected_total", reason="trailers") == 1.0
    writer.close()


async def test_what_is_broken_behind_a_request_is_not_answered_in_its_place(stage):
    async def never(_scope, _receive, _send):
        await asyncio.Event().wait()

    here = await stage(app=never)
    reader, writer = await here.connect()
    writer.write(request_bytes() + b"\x16\x03\x01\r\n")
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    assert here.parts.counted("rejected_total", reason="bad_request") == 1.0
    writer.close()


GET = b"GET /x HTTP/1.1\r\nhost: kms\r\n\r\n"


class Gate:
    """An application whose answers the test lets out one by one."""

    def __init__(self):
        self.begun, self.open = 0, asyncio.Semaphore(0)

    async def __call__(self, _scope, receive, send):
        self.begun += 1
        await receive()
        await self.open.acquire()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def test_pipelined_requests_are_answered_one_after_the_other(stage):
    reader, writer = await (await stage()).connect()
    writer.write(request_bytes() * (MAX_PIPELINED_REQUESTS + 1))
    for _ in range(MAX_PIPELINED_REQUESTS + 1):
        assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.parametrize("further", [1, 10_000])
async def test_more_pipelined_requests_than_may_wait_end_the_connection(stage, further):
    gate = Gate()
    here = await stage(app=gate)
    reader, writer = await here.connect()
    writer.write(GET * (1 + MAX_PIPELINED_REQUESTS + further))
    async with asyncio.timeout(3):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert gate.begun == 1
    assert here.parts.counted("rejected_total", reason="pipeline_too_long") == 1.0
    writer.close()


async def test_no_more_is_read_while_requests_wait(stage):
    gate = Gate()
    here = await stage(app=gate)
    reader, writer = await here.connect()

    async def waiting():
        for _ in range(20):
            await asyncio.sleep(0.001)
        [connection] = here.server._server.server_state.connections
        return len(connection.pipeline)

    writer.write(GET * 4)
    assert await waiting() == 3
    writer.write(GET * MAX_PIPELINED_REQUESTS)
    for left in (2, 1):
        gate.open.release()
        await read_answer(reader)
        assert await waiting() == left
    for _ in range(MAX_PIPELINED_REQUESTS + 2):
        gate.open.release()
        await read_answer(reader)
    assert gate.begun == MAX_PIPELINED_REQUESTS + 4
    assert here.parts.counted("rejected_total", reason="pipeline_too_long") == 0.0
    writer.close()


async def test_an_upgrade_is_not_offered(stage):
    here = await stage()
    reader, writer = await here.connect()
    writer.write(request_bytes(extra=b"upgrade: websocket\r\nconnection: upgrade\r\n"))
    assert (await read_answer(reader))[0][9:12] in (b"200", b"400")
    writer.close()


async def test_after_a_refusal_the_connection_carries_the_next_request(stage):
    here = await stage()
    reader, writer = await here.connect()
    for _ in range(2):
        writer.write(request_bytes().replace(b"good", b"evil")[: -len(BODY)])
        head, _ = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 401 ")
        writer.write(BODY)
        writer.write(request_bytes())
        head, _ = await read_answer(reader)
        assert head.startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_after_a_refusal_a_large_body_ends_the_connection(stage):
    here = await stage()
    reader, writer = await here.connect()
    writer.write(request_bytes(b"x" * 70_000).replace(b"good", b"evil")[:300])
    head, _ = await read_answer(reader)
    assert head.startswith(b"HTTP/1.1 401 ")
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("listed", [True, False])
async def test_a_neighbour_is_named_by_its_uid_or_cut_off(stage, listed):
    here = await stage(neighbours=UnixSection(allowed_uids=(os.getuid() + (0 if listed else 1),)))
    reader, writer = await here.connect()
    if not listed:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            writer.write(request_bytes())
            await read_answer(reader)
        assert here.parts.counted("rejected_total", reason="peer_uid") == 1.0
        assert here.parts.dispatcher.asked == []
        return
    writer.write(request_bytes())
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    context = here.parts.dispatcher.asked[0][2]
    assert (context.peer, context.transport) == (f"uid:{os.getuid()}", "unix")
    writer.close()


def test_a_peers_uid_is_the_kernels_word():
    one, other = socket.socketpair()
    with one, other:
        assert peer_uid(one) == os.getuid()


# TLS


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path)


class Pki:
    """A CA, and certificates of it that tests replace."""

    def __init__(self, folder):
        self.folder = folder
        self.ca_key, self.ca = make_certificate("ca", None)
        (folder / "ca.pem").write_bytes(pem(self.ca))
        self.issue("server")

    def issue(self, name):
        key, certificate = make_certificate(name, (self.ca_key, self.ca))
        (self.folder / f"{name}.pem").write_bytes(pem(certificate))
        (self.folder / f"{name}.key").write_bytes(pem(key))
        (self.folder / f"{name}.key").chmod(0o600)
        return certificate.serial_number

    def section(self, **rest):
        return TlsSection(
            enabled=True, cert_path=self.folder / "server.pem", key_path=self.folder / "server.key", **rest
        )

    def client(self, version=None, name=None):
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if version is not None:
            context.maximum_version = version
        if name is not None:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return {"ssl": context, "server_hostname": "localhost"}


async def test_tls_is_1_3_and_nothing_below(stage, pki):
    here = await stage(tls=TlsFiles(pki.section()).context)
    reader, writer = await here.connect(**pki.client())
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    writer.write(request_bytes())
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    assert here.parts.dispatcher.asked[0][2].transport == "https"
    writer.close()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await here.connect(**pki.client(ssl.TLSVersion.TLSv1_2))


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\n\r\n"], ids=["silent", "not TLS"])
async def test_a_handshake_that_does_not_end_is_cut_off_and_counted(stage, pki, start):
    here = await stage(tls=TlsFiles(pki.section()).context, **FAST)
    reader, writer = await here.connect()
    writer.write(start)
    async with asyncio.timeout(3):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"never")
        while here.parts.counted("tls_handshake_failures_total") == 0.0:
            await asyncio.sleep(0.02)
    assert here.parts.counted("tls_handshake_failures_total") == 1.0
    writer.close()


async def test_connections_in_a_handshake_count_among_max_conns(stage, pki):
    here = await stage(tls=TlsFiles(pki.section()).context, max_conns=2)
    _, served = await here.connect(**pki.client())
    _, silent = await here.connect()
    refused, writer = await here.connect()
    async with asyncio.timeout(3):
        assert await refused.read() == b""
    assert here.parts.counted("rejected_total", reason="max_conns") == 1.0
    writer.close()
    silent.transport.abort()
    async with asyncio.timeout(3):
        while here.parts.counted("tls_handshake_failures_total") == 0.0:
            await asyncio.sleep(0.01)
    reader, writer = await here.connect(**pki.client())
    writer.write(request_bytes())
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    writer.close()
    served.close()


async def test_a_stopped_listener_gives_up_handshakes_under_way(stage, pki):
    here = await stage(tls=TlsFiles(pki.section()).context)
    reader, writer = await here.connect()
    while not here.server._server.servers[0]._handshakes:
        await asyncio.sleep(0.001)
    await here.server.stop(1.0)
    async with asyncio.timeout(3):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


async def test_with_a_clients_ca_a_certificate_of_it_is_demanded(stage, pki):
    pki.issue("client")
    here = await stage(tls=TlsFiles(pki.section(client_ca_path=pki.folder / "ca.pem")).context)
    reader, writer = await here.connect(**pki.client(name="client"))
    writer.write(request_bytes())
    assert (await read_answer(reader))[0].startswith(b"HTTP/1.1 200 ")
    writer.close()
    reader, writer = await here.connect(**pki.client())
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        writer.write(request_bytes())
        await read_answer(reader)
    writer.transport.abort()
    assert len(here.parts.dispatcher.asked) == 1


async def test_a_replaced_certificate_is_taken_up_and_a_broken_pair_is_not(stage, pki):
    files = TlsFiles(pki.section())
    here = await stage(tls=files.context)

    async def serial():
        _, writer = await here.connect(**pki.client())
        found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        writer.close()
        return int(found, 16)

    first = await serial()
    assert files.refresh() is False
    second = pki.issue("server")
    assert await serial() == first
    assert files.refresh() is True
    assert await serial() == second
    good = (pki.folder / "server.key").read_bytes()
    (pki.folder / "server.key").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="cannot be used together"):
        files.refresh()
    assert await serial() == second
    (pki.folder / "server.key").write_bytes(good)
    assert files.refresh() is True


def test_files_that_do_not_fit_are_refused(pki):
    pki.issue("client")
    section = msgspec.structs.replace(pki.section(), key_path=pki.folder / "client.key")
    with pytest.raises(ConfigError, match="cannot be used together"):
        TlsFiles(section)


# Listening sockets


def memory_config(**rest):
    from kms.config_values import SocketAddress

    anywhere = SocketAddress("127.0.0.1:0")
    return msgspec.structs.replace(KmsConfig(), bind_addr=anywhere, metrics_addr=anywhere, **rest)


def test_sockets_are_handed_down_by_role(tmp_path):
    config = memory_config(unix=UnixSection(path=tmp_path / "kms.sock", allowed_uids=(0,)))
    listeners = bind_all(config)
    described = ",".join(f"{role}={each.dup().detach()}" for role, each in listeners.roles())
    taken = adopt(described)
    assert taken.addresses() == listeners.addresses()
    assert (tmp_path / "kms.sock").stat().st_mode & 0o777 == 0o600
    assert listeners.describe().startswith(f"http={listeners.http.fileno()},metrics=")
    assert len(listeners.descriptors()) == 3
    taken.close()
    listeners.close()


@pytest.mark.parametrize("described", ["", "http=1", "http=x,metrics=2", "ftp=3", "metrics=1"])
def test_descriptors_that_are_not_ours_are_refused(described):
    with pytest.raises(ConfigError, match="--listeners"):
        adopt(described)


def test_the_sockets_folder_is_made_for_us_alone(tmp_path):
    path = tmp_path / "run" / "kms.sock"
    bind_unix(path).close()
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o1777])
def test_a_socket_is_not_bound_in_a_folder_that_others_may_use(tmp_path, mode):
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=r"unix\.path: .*its mode must be 0700"):
        bind_unix(folder / "kms.sock")
    assert list(folder.iterdir()) == []
    folder.chmod(0o700)
    bind_unix(folder / "kms.sock").close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match=r"unix\.path"):
        bind_unix(tmp_path / "run" / "kms.sock")


def test_a_leftover_socket_is_replaced_and_anything_else_is_not(tmp_path):
    path = tmp_path / "kms.sock"
    bind_unix(path).close()
    with bind_unix(path), pytest.raises(ConfigError, match="another process serves there"):
        bind_unix(path)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists and is no socket"):
        bind_unix(path)
    assert path.read_text() == "precious"


def test_only_sockets_whose_address_changed_are_bound_anew(tmp_path):
    was = memory_config()
    former = bind_all(was)
    fresh = msgspec.structs.replace(was, unix=UnixSection(path=tmp_path / "kms.sock", allowed_uids=(0,)))
    moved = rebind(former, was, fresh)
    assert (moved.http, moved.metrics) == (former.http, former.metrics)
    assert moved.unix is not None
    back = rebind(moved, fresh, was)
    assert back.unix is None
    assert moved.unix.fileno() == -1
    assert not (tmp_path / "kms.sock").exists()
    taken = type(was.bind_addr)(f"127.0.0.1:{back.http.getsockname()[1]}")
    with pytest.raises(ConfigError, match="metrics_addr"):
        rebind(back, was, msgspec.structs.replace(was, metrics_addr=taken))
    assert back.metrics.fileno() != -1
    Listeners(back.http, back.metrics, None).close()
