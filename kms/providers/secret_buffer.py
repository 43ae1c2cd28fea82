"""Hold secret bytes in pages of their own: locked, not in core dumps, not in children, wiped, never shown (I-1, I-8).

Python cannot promise that no copy was ever made. What this module promises: the bytes that it holds lie in pages of
their own, are written there by the library that made them (no `bytes` object in between), and are overwritten when
`wipe` returns. The private keys that `cryptography` builds from them live in OpenSSL's memory, which OpenSSL clears
when the last reference goes.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from types import TracebackType

RandomFill = Callable[[memoryview], None]
"""Fills a buffer with random bytes from a CSPRNG."""

MAX_SECRET_BYTES: Final = 64 * 1024
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# Linux values that the mmap module does not name before Python 3.12.
_MADV_WIPEONFORK: Final = 18


def os_random(view: memoryview) -> None:
    """Fill `view` from the kernel's CSPRNG, getrandom(2) without flags (I-10). Raises OSError if it gives less."""
    target = (ctypes.c_char * view.nbytes).from_buffer(view)
    got = _LIBC.getrandom(ctypes.byref(target), ctypes.c_size_t(view.nbytes), 0)
    if got != view.nbytes:
        raise OSError(ctypes.get_errno(), "getrandom gave fewer bytes than asked for")


def os_random_bytes(count: int) -> bytes:
    """Give `count` random bytes that are no secret: salts, nonces, names."""
    data = bytearray(count)
    os_random(memoryview(data))
    return bytes(data)


class SecretBuffer:
    """A fixed number of secret bytes. Its owner calls `wipe`, or uses it as a context manager.

    `locked` tells whether the kernel keeps its pages out of swap.
    """

    __slots__ = ("_length", "_pages", "_view", "locked")

    def __init__(self, length: int) -> None:
        if not 0 < length <= MAX_SECRET_BYTES:
            raise ValueError("a secret has from 1 byte to 64 KiB")
        self._length = length
        self._pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.locked = self._keep_private()
        self._view: memoryview | None = memoryview(self._pages)

    def _keep_private(self) -> bool:
        """Ask the kernel to keep the pages out of swap, core dumps and children; each is best effort."""
        for advice in (mmap.MADV_DONTDUMP, _MADV_WIPEONFORK):
            try:
                self._pages.madvise(advice)
            except OSError:
                continue
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        return bool(_LIBC.mlock(ctypes.c_void_p(start), ctypes.c_size_t(self._length)) == 0)

    @property
    def view(self) -> memoryview:
        """Give the bytes in place. The caller drops the view at once and never copies it.

        Raises ValueError once it is wiped: a key of zeros must not come to use.
        """
        if self._view is None:
            raise ValueError("the secret is wiped")
        return self._view

    @property
    def wiped(self) -> bool:
        """Tell whether `wipe` was called."""
        return self._view is None

    def wipe(self) -> None:
        """Overwrite the bytes. A second call does nothing."""
        view = self._view
        if view is None:
            return
        self._view = None
        view[:] = bytes(self._length)
        try:
            view.release()
            self._pages.close()
        except BufferError:
            # Somebody still holds a view: it sees zeros, and the pages go with it.
            return

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> SecretBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wipe()

    def __del__(self) -> None:
        # An instance whose __init__ failed has no view.
        if getattr(self, "_view", None) is not None:
            self.wipe()

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not pickled or copied")
