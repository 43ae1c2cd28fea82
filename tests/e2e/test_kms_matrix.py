"""The rows of CONFIG.md §11 that need a running service with real keys, and gRPC's TLS."""

import signal
import socket
import ssl
import time

import grpc
import pytest

from kms.proto.ron.kms.v1 import kms_pb2
from tests.support.kms_certificates import make_certificate, pem
from tests.support.kms_service import DIGEST, KmsProcess


@pytest.fixture
def kms(tmp_path):
    started = []

    def start(**settings):
        process = KmsProcess(tmp_path, {"DEADLINE_AUDIT_APPEND": "2s"} | settings)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.stop()


def sign(service, kid, token, **policy):
    body = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST} | ({"policy": policy} if policy else {})
    return service.ask("POST", "/v1/kms/sign", body, token=token)


def verify(service, kid, sigs, token):
    body = {"payload_b3": DIGEST, "sigs": sigs, "kid_or_set": {"kid": kid}}
    return service.ask("POST", "/v1/kms/verify", body, token=token)


def wait_until(true, timeout_s=10.0):
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_matrix_backend_outage_verify_goes_on_with_the_cache_age_and_what_needs_the_backend_is_503(kms, tmp_path):
    """G-11, I-18, I-19: the sealed files are away, come back, and everything is as before.

    Keys that the file provider holds open sign on; a signature that needs a provider that is away is 503 in
    tests/unit/kms/operations/test_sign.py.
    """
    service = kms()
    token, kid = service.token(), service.create("hybrid")
    signed = sign(service, kid, token)
    assert signed.status == 200
    folder, away = tmp_path / "kms-sealed", tmp_path / "away"
    folder.rename(away)
    wait_until(lambda: not service.ask("GET", "/readyz", token=None, role="metrics").json["ready"])
    ready = service.ask("GET", "/readyz", token=None, role="metrics").json
    assert ready["missing"] == ready["degraded"] == ["backend_ready"]
    refused = service.ask("POST", "/v1/kms/keys", {"tenant": "core", "purpose": "app", "alg": "ed25519"}, token=token)
    assert (refused.status, refused.code) == (503, "StoreUnavailable")
    assert int(refused.headers["retry-after"]) >= 1
    verdict = verify(service, kid, signed.json["sigs"], token)
    assert verdict.json["ok"] is True
    assert verdict.headers["x-kms-cache-age"] == str(verdict.json["cache_age_ms"])
    away.rename(folder)
    wait_until(lambda: service.ask("GET", "/readyz", token=None, role="metrics").json["ready"])
    assert sign(service, kid, token).status == 200
    assert verify(service, kid, signed.json["sigs"], token).json["ok"] is True


def test_matrix_pq_modes_go_from_or_over_and_to_pq_only_without_breaking_who_is_ready(kms, tmp_path):
    config = tmp_path / "Config.toml"
    config.write_text("[pq]\nverify_mode = 'or'\n")
    service = kms(BACKEND="inmem", AMNESIA="1")
    token, kid = service.token(), service.create("hybrid")
    sigs = sign(service, kid, token).json["sigs"]
    verdicts = []
    for count, mode in enumerate(("or", "and", "pq_only")):
        if count:
            config.write_text(f"[pq]\nverify_mode = '{mode}'\n")
            service.signal(signal.SIGHUP)
            service.wait_for("config_updated", count)
        assert service.metric(f'kms_pq_mode{{mode="{mode}"}}') == 1.0
        kinds = (sigs, sigs[:1], sigs[1:])
        answers = [verify(service, kid, each, token) for each in kinds]
        verdicts.append([answer.status == 200 and answer.json["ok"] for answer in answers])
    assert verdicts == [[True, True, True], [True, False, False], [True, False, True]]


@pytest.fixture
def pki(tmp_path):
    issuer = make_certificate("ca", None)
    (tmp_path / "ca.pem").write_bytes(pem(issuer[1]))
    for name in ("server", "client"):
        key, certificate = make_certificate(name, issuer)
        (tmp_path / f"{name}.pem").write_bytes(pem(certificate))
        (tmp_path / f"{name}.key").write_bytes(pem(key))
        for file in ("pem", "key"):
            (tmp_path / f"{name}.{file}").chmod(0o600)
    return {
        "TLS_ENABLED": "1",
        "TLS_CERT_PATH": str(tmp_path / "server.pem"),
        "TLS_KEY_PATH": str(tmp_path / "server.key"),
        "BACKEND": "inmem",
        "AMNESIA": "1",
    }


def handshake(service, tmp_path, version, *, client=False):
    """Shake hands with gRPC's port through the system's own TLS; give the version, None when it was refused."""
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if client:
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    host, _, port = service.address("grpc").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                secured.recv(1)
                return secured.version()
        except (ssl.SSLError, ConnectionError):
            return None


def test_grpc_speaks_tls_1_3_and_nothing_below_and_calls_go_through(kms, pki, tmp_path):
    service = kms(**pki)
    assert handshake(service, tmp_path, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert handshake(service, tmp_path, ssl.TLSVersion.TLSv1_2) is None
    credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())
    options = (("grpc.ssl_target_name_override", "localhost"),)
    with grpc.secure_channel(service.address("grpc"), credentials, options) as channel:
        create = channel.unary_unary("/ron.kms.v1.Kms/CreateKey")
        request = kms_pb2.CreateKeyRequest(tenant="core", purpose="app", alg="ed25519").SerializeToString()
        raw = create(request, metadata=(("authorization", f"Bearer {service.token()}"),), timeout=10)
        assert kms_pb2.CreateKeyResponse.FromString(raw).kid.startswith("core/app/ed25519/")


def test_grpc_demands_a_certificate_of_the_clients_ca(kms, pki, tmp_path):
    service = kms(**pki, TLS_CLIENT_CA_PATH=str(tmp_path / "ca.pem"))
    assert handshake(service, tmp_path, ssl.TLSVersion.TLSv1_3, client=True) == "TLSv1.3"
    assert handshake(service, tmp_path, ssl.TLSVersion.TLSv1_3) is None


def serial_of(service, role, folder):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if role == "grpc":
        context.set_alpn_protocols(["h2"])
    host, _, port = service.address(role).rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return int(secured.getpeercert()["serialNumber"], 16)


def test_a_replaced_certificate_serves_new_connections_and_a_broken_one_does_not(kms, pki, tmp_path):
    service = kms(**pki)
    first = {role: serial_of(service, role, tmp_path) for role in ("http", "grpc")}
    assert first["http"] == first["grpc"]
    issuer = make_certificate("other ca", None)
    key, certificate = make_certificate("server", issuer)
    (tmp_path / "ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes() + pem(issuer[1]))
    (tmp_path / "server.key").write_bytes(b"broken")
    service.wait_for("certificate_refused")
    assert serial_of(service, "http", tmp_path) == first["http"]
    (tmp_path / "server.pem").write_bytes(pem(certificate))
    (tmp_path / "server.key").write_bytes(pem(key))
    service.wait_for("certificate_reloaded")
    assert {serial_of(service, role, tmp_path) for role in ("http", "grpc")} == {certificate.serial_number}
