"""One hash over every key record, kept up to date at the cost of one bucket (I-6).

Records fall into 256 buckets by the hash of their name. A bucket's hash is over the hashes of its records, ordered by
their names' hashes; the state's is over the epoch and the buckets. The audit log keeps it beside the epoch, so that a
store put back from an older copy, or changed in place, does not match.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

BUCKETS: Final = 256
_HASH_BYTES: Final = 32
_LEAF: Final = b"signet-kms state leaf v1\0"
_BUCKET: Final = b"signet-kms state bucket v1\0"
_STATE: Final = b"signet-kms state v1\0"


class StateDigest:
    """Belongs to one thread."""

    def __init__(self) -> None:
        self._leaves: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
        self._buckets = [_hash_bucket({}) for _ in range(BUCKETS)]

    def put(self, name: str, record: bytes) -> None:
        """Set the record of a name."""
        place = blake3(name.encode()).digest()
        bucket = place[0]
        self._leaves[bucket][place] = blake3(_LEAF + place + record).digest()
        self._buckets[bucket] = _hash_bucket(self._leaves[bucket])

    def drop(self, name: str) -> None:
        """Forget the record of a name."""
        place = blake3(name.encode()).digest()
        self._leaves[place[0]].pop(place, None)
        self._buckets[place[0]] = _hash_bucket(self._leaves[place[0]])

    def load(self, records: dict[str, bytes]) -> None:
        """Set many records at once."""
        for name, record in records.items():
            place = blake3(name.encode()).digest()
            self._leaves[place[0]][place] = blake3(_LEAF + place + record).digest()
        self._buckets = [_hash_bucket(leaves) for leaves in self._leaves]

    def hex(self, epoch: int) -> str:
        """Hash the whole state at an epoch: 64 hex digits."""
        return blake3(_STATE + epoch.to_bytes(8, "big") + b"".join(self._buckets)).hexdigest()


def _hash_bucket(leaves: dict[bytes, bytes]) -> bytes:
    return blake3(_BUCKET + b"".join(leaves[place] for place in sorted(leaves))).digest(length=_HASH_BYTES)
