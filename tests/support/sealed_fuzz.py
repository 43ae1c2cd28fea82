"""Fuzz targets for what is read from sealed stores: each takes any bytes and raises only where the parser is wrong."""

from __future__ import annotations

from kms.providers.sealed_bytes import SealedFileError
from kms.providers.sealed_key import parse_sealed_key
from kms.providers.sealed_root import parse_sealed_root


def fuzz_sealed_key(data: bytes) -> None:
    """Refuse by SealedFileError, or parse into what writes back as it was."""
    try:
        header, ciphertext = parse_sealed_key(data)
    except SealedFileError:
        return
    assert header.encode() + ciphertext == data


def fuzz_sealed_root(data: bytes) -> None:
    """Refuse by SealedFileError, or parse into what writes back as it was."""
    try:
        header, ciphertext = parse_sealed_root(data)
    except SealedFileError:
        return
    assert header.encode() + ciphertext == data
