"""Proofs in trees of any size, held to the definitions of RFC 9162 §2.1 and verified twice.

Once by the log's own verification, once by the one in every pack. `python -m tests.support.merkle_proofs SIZE` does so
with every proof of every size up to SIZE, and says how many.
"""

from __future__ import annotations

import functools
import hashlib
import sys

from receipts import verify
from receipts.merkle_prove import prove_consistency, prove_inclusion
from receipts.merkle_verify import verify_consistency, verify_inclusion
from tests.support import merkle_reference as reference

PERIOD = 512
"""Leaves repeat after so many, so that trees of a million leaves have few different subtrees."""
LEAVES = [reference.leaf(number) for number in range(PERIOD)]


@functools.cache
def _mth(start: int, count: int) -> bytes:
    if count == 1:
        return LEAVES[start]
    k = reference.split(count)
    return hashlib.sha256(b"\x01" + mth(start, start + k) + mth(start + k, start + count)).digest()


def mth(start: int, end: int) -> bytes:
    """MTH(D[start:end])."""
    return _mth(start % PERIOD, end - start) if end > start else hashlib.sha256().digest()


def path(m: int, start: int, end: int) -> list[bytes]:
    """PATH(m, D[start:end])."""
    if end - start == 1:
        return []
    k = start + reference.split(end - start)
    return [*path(m, start, k), mth(k, end)] if m < k else [*path(m, k, end), mth(start, k)]


def subproof(m: int, start: int, end: int, *, complete: bool = True) -> list[bytes]:
    """SUBPROOF(m, D[start:end], complete)."""
    if m == end:
        return [] if complete else [mth(start, end)]
    k = start + reference.split(end - start)
    if m <= k:
        return [*subproof(m, start, k, complete=complete), mth(k, end)]
    return [*subproof(m, k, end, complete=False), mth(start, k)]


class Nodes:
    def node(self, level: int, index: int) -> bytes:
        return mth(index << level, (index + 1) << level)


def check_inclusion(index: int, size: int) -> None:
    leaf, root, proof = LEAVES[index % PERIOD], mth(0, size), prove_inclusion(Nodes(), index, size)
    assert proof == path(index, 0, size)
    verify_inclusion(leaf, index, size, proof, root)
    assert verify.inclusion_root(leaf, index, size, proof) == root


def check_consistency(old_size: int, size: int) -> None:
    old_root, root, proof = mth(0, old_size), mth(0, size), prove_consistency(Nodes(), old_size, size)
    assert proof == (subproof(old_size, 0, size) if old_size else [])
    verify_consistency(old_size, size, old_root, root, proof)
    assert verify.is_consistent(old_size, size, old_root, root, proof)


def check_all(largest: int) -> int:
    """Check every proof of every size up to `largest`; return how many."""
    count = 0
    for size in range(1, largest + 1):
        for other in range(size):
            check_inclusion(other, size)
            check_consistency(other, size)
        check_consistency(size, size)
        count += 2 * size + 1
    return count


if __name__ == "__main__":
    print(check_all(int(sys.argv[1])))
