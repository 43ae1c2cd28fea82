"""Certificates for localhost, made for one test."""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Issuer = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def make_certificate(name: str, issuer: Issuer | None) -> Issuer:
    """Make a key and a certificate of it; without an issuer it is a CA's own."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    return key, builder.sign(key if issuer is None else issuer[0], hashes.SHA256())


def pem(what: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    """Encode a certificate or a private key."""
    if isinstance(what, x509.Certificate):
        return what.public_bytes(serialization.Encoding.PEM)
    encryption = serialization.NoEncryption()
    return what.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
