"""A development CA, a server certificate and a demonstration key. Not for production: the keys lie on the disk."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 397
RENEW_DAYS: Final = 7
SERVER_NAMES: Final = ("localhost", "*.localhost", "app.test")
SERVER_ADDRESSES: Final = ("127.0.0.1", "::1")
DEMO_SUBJECT: Final = "demo"


def write_private(path: Path, data: bytes) -> None:
    """Write `data` whole or not at all, readable by this user alone."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    temporary.rename(path)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _still_good(certificate: Path) -> bool:
    if not certificate.exists():
        return False
    expires = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return expires - dt.datetime.now(dt.UTC) > dt.timedelta(days=RENEW_DAYS)


def ensure_server_certificate(folder: Path) -> None:
    """Put `ca.pem`, `server.pem`, `server.key` and `server-with-key.pem` into `folder`, unless good ones are there."""
    if _still_good(folder / "server.pem") and (folder / "server.key").exists() and (folder / "ca.pem").exists():
        return
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = "Signet development CA"
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in SERVER_NAMES]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in SERVER_ADDRESSES]
    server = (
        _builder("localhost", ca_name, key.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = server.public_bytes(serialization.Encoding.PEM)
    write_private(folder / "server.key", _pem(key))
    write_private(folder / "server-with-key.pem", pem + _pem(key))
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(pem)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ensure_demo_key(private_jwk: Path, keyring: Path) -> None:
    """Make an Ed25519 key (JWK, RFC 8037) and register it for the subject `demo` where there is no keyring yet."""
    if not private_jwk.exists():
        key = ed25519.Ed25519PrivateKey.generate()
        jwk = {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _base64url(key.public_key().public_bytes_raw()),
            "d": _base64url(key.private_bytes_raw()),
        }
        write_private(private_jwk, json.dumps(jwk, indent=2).encode() + b"\n")
    if keyring.exists():
        return
    jwk = json.loads(private_jwk.read_bytes())
    public = {name: value for name, value in jwk.items() if name != "d"}
    entry = {
        "subject": DEMO_SUBJECT,
        "jwk": public,
        "not_before": None,
        "not_after": None,
        "status": "active",
    }
    write_private(keyring, json.dumps([entry], indent=2).encode() + b"\n")
