"""Secret bytes: wiped, never shown, never copied, gone from core dumps and children."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
from pathlib import Path

import pytest

from kms.primitive import Primitive
from kms.providers.secret_buffer import MAX_SECRET_BYTES, SecretBuffer, os_random, os_random_bytes
from kms.providers.software_key import SoftwareKey, new_seed

MARK = b"\xa5SIGNET-SECRET-MARK\x5a" + bytes(range(11))


def marked() -> SecretBuffer:
    buffer = SecretBuffer(len(MARK))
    buffer.view[:] = MARK
    return buffer


def test_a_wiped_secret_is_zeros_and_cannot_be_used() -> None:
    buffer = marked()
    kept = memoryview(buffer.view)
    address = ctypes.addressof(ctypes.c_char.from_buffer(kept))
    buffer.wipe()
    buffer.wipe()
    assert buffer.wiped
    assert ctypes.string_at(address, len(MARK)) == bytes(kept) == bytes(len(MARK))
    with pytest.raises(ValueError, match="wiped"):
        _ = buffer.view


def test_leaving_the_block_wipes_also_after_an_error() -> None:
    buffer = marked()
    with pytest.raises(RuntimeError), buffer:
        raise RuntimeError
    assert buffer.wiped


def test_a_forgotten_secret_is_wiped_when_it_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is collected meanwhile: only the buffer of these pages counts, and what they held then."""
    buffer = marked()
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer.view))
    ended: list[tuple[bytes, bytes]] = []
    wipe = SecretBuffer.wipe

    def watched(self: SecretBuffer) -> None:
        if self.wiped or ctypes.addressof(ctypes.c_char.from_buffer(self.view)) != address:
            wipe(self)
            return
        kept = memoryview(self.view)  # keeps the pages, so that they can be looked at behind the wipe
        before = bytes(kept)
        wipe(self)
        ended.append((before, bytes(kept)))

    monkeypatch.setattr(SecretBuffer, "wipe", watched)
    del buffer
    gc.collect()
    assert ended == [(MARK, bytes(len(MARK)))]


@pytest.mark.parametrize("length", [0, -1, MAX_SECRET_BYTES + 1])
def test_lengths_are_bounded(length: int) -> None:
    with pytest.raises(ValueError, match="64 KiB"):
        SecretBuffer(length)


def test_a_secret_and_a_key_are_neither_shown_nor_copied() -> None:
    with new_seed(Primitive.ED25519) as seed:
        key = SoftwareKey(Primitive.ED25519, seed)
        for secret in (seed, key):
            for way in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError):
                    way(secret)
            for shown in (repr(secret), str(secret), f"{secret}"):
                assert bytes(seed.view).hex()[:8] not in shown
            assert not hasattr(secret, "__dict__")
        assert repr(seed) == "<secret>"
        assert repr(key) == "<private ed25519 key>"


def test_a_child_sees_zeros() -> None:
    """MADV_WIPEONFORK: what forks from the service has none of its secrets."""
    buffer = marked()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, bytes(buffer.view))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == bytes(len(MARK))
    os.close(reader)
    os.close(writer)
    assert bytes(buffer.view) == MARK


def test_the_pages_are_left_out_of_core_dumps() -> None:
    buffer = marked()
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer.view))
    flags = ""
    with Path("/proc/self/smaps").open() as maps:
        inside = False
        for line in maps:
            head = line.split(maxsplit=1)[0]
            if "-" in head and not head.endswith(":"):
                start, end = (int(part, 16) for part in head.split("-"))
                inside = start <= address < end
            elif inside and line.startswith("VmFlags:"):
                flags = line
    assert {"dd", "wf"} <= set(flags.split())


def test_random_bytes_come_from_the_kernel_and_differ() -> None:
    drawn = {os_random_bytes(16) for _ in range(100)}
    assert len(drawn) == 100
    view = memoryview(bytearray(300))
    os_random(view)
    assert any(view[-32:])
