"""Name private keys inside a provider so that the name says whose key it is (I-5, I-9).

A handle is 64 hex digits: 16 bytes of BLAKE3 over the kid and the primitive, then 16 random bytes. So a handle that was
moved to another kid's record is seen without opening anything, and a handle is never used twice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from kms.errors import NotFound
from kms.providers.provider import KeyHandle
from kms.providers.secret_buffer import os_random_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.kid import Kid
    from kms.primitive import Primitive

BINDING_BYTES: Final = 16
RANDOM_BYTES: Final = 16
_HANDLE: Final = re.compile(r"[0-9a-f]{64}\Z")


def new_handle(kid: Kid, primitive: Primitive, random_bytes: Callable[[int], bytes] = os_random_bytes) -> KeyHandle:
    """Name a new key part of `kid`."""
    return KeyHandle(_binding(str(kid), primitive).hex() + random_bytes(RANDOM_BYTES).hex())


def check_handle_form(handle: KeyHandle) -> None:
    """Raise NotFound for what no provider of ours gave out: handles become names of files."""
    if _HANDLE.match(handle) is None:
        raise NotFound("no such key", reason="bad_handle")


def check_handle_binding(handle: KeyHandle, kid: Kid | str, primitive: Primitive) -> None:
    """Raise NotFound for a handle that was made for another kid or another primitive."""
    check_handle_form(handle)
    if not handle.startswith(_binding(str(kid), primitive).hex()):
        raise NotFound("no such key", reason="handle_of_another_key")


def _binding(kid: str, primitive: Primitive) -> bytes:
    return blake3(f"{kid}\0{primitive.value}".encode()).digest(length=BINDING_BYTES)
