"""The keys in memory, for readers that must not wait: whole records by name, and each tenant's newest versions."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Final

from kms.errors import NotFound, StoreUnavailable
from kms.key_record import KeyState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kms.key_record import KeyRecord, KeyVersion
    from kms.kid import KeyName
    from kms.primitive import Primitive

# So many take about 150 MiB and are read in less than a second: the service starts in two and stays below 512 MiB.
MAX_VERSIONS_IN_ALL: Final = 32_768
# No tenant takes the room of all others (I-17).
MAX_TENANT_VERSIONS: Final = MAX_VERSIONS_IN_ALL // 2
MAX_CANDIDATES: Final = 64
MAX_KEPT: Final = 4 * MAX_CANDIDATES
"""So many are kept, that no fence makes a search of all of a tenant's keys: they last for the next ones too."""
KEY_LIMIT: Final = "key_limit"

Candidate = tuple["KeyRecord", "KeyVersion"]
_Age = tuple[int, "KeyName", int]
# Candidates, newest first, and the age of the oldest that was gathered: what is not among them is older. None: they
# are all that there are.
_Kept = tuple[tuple[Candidate, ...], "_Age | None"]


class KeyIndex:
    """The store's thread writes, anyone reads: one assignment swaps a record, and records never change."""

    def __init__(self) -> None:
        self._tenants: dict[str, dict[KeyName, KeyRecord]] = {}
        self._versions_by_tenant: dict[str, int] = {}
        # What takes a provider's room: the parts of keys that are not destroyed, by tenant and provider.
        self._parts: Counter[tuple[str, str]] = Counter()
        self._versions = 0
        self._changes = 0
        # Kept up to date by `put`, or dropped by it and gathered anew by the reader that needs it next.
        self._newest: dict[tuple[str, Primitive], _Kept] = {}

    def __iter__(self) -> Iterator[KeyRecord]:
        for records in list(self._tenants.values()):
            yield from list(records.values())

    def find(self, name: KeyName) -> KeyRecord:
        """Give a key. Raises NotFound."""
        record = self.get(name)
        if record is None:
            raise NotFound("no such key or version")
        return record

    def get(self, name: KeyName) -> KeyRecord | None:
        """Give a key, or None."""
        records = self._tenants.get(name.tenant)
        return None if records is None else records.get(name)

    def check_room(self, tenant: str, *, versions: int) -> None:
        """Raise StoreUnavailable when so many further versions are over a bound."""
        own = self._versions_by_tenant.get(tenant, 0)
        if self._versions + versions > MAX_VERSIONS_IN_ALL or own + versions > MAX_TENANT_VERSIONS:
            raise StoreUnavailable("the store holds as many key versions as it may", reason=KEY_LIMIT)

    def check_parts(self, tenant: str, provider: str, *, parts: int, most: int) -> None:
        """Raise StoreUnavailable when so many further parts of a provider are more than the tenant may have."""
        if self._parts[tenant, provider] + parts > most:
            raise StoreUnavailable("the tenant holds as many keys of the backend as it may", reason=KEY_LIMIT)

    def put(self, record: KeyRecord) -> None:
        """Set a record."""
        tenant = record.name.tenant
        former = self.get(record.name)
        added = len(record.versions) - (0 if former is None else len(former.versions))
        self._versions += added
        self._versions_by_tenant[tenant] = self._versions_by_tenant.get(tenant, 0) + added
        if former is not None:
            self._parts[tenant, former.provider] -= held_parts(former)
        self._parts[tenant, record.provider] += held_parts(record)
        self._tenants.setdefault(tenant, {})[record.name] = record
        self._changes += 1
        for primitive in {part.primitive for version in record.versions for part in version.parts}:
            self._update_newest((tenant, primitive), record)

    def newest(self, tenant: str, primitive: Primitive) -> tuple[Candidate, ...]:
        """Give the tenant's versions above their fences with a part of `primitive`, newest first, at most 64."""
        known = self._newest.get((tenant, primitive))
        if known is not None:
            return known[0][:MAX_CANDIDATES]
        changes = self._changes
        records = list(self._tenants.get(tenant, {}).values())
        above = (candidate for record in records for candidate in _candidates(record, primitive))
        newest = heapq.nlargest(MAX_KEPT + 1, above, key=_age)
        self._newest[tenant, primitive] = _cut(newest, None)
        if changes != self._changes:
            # A change that came meanwhile dropped the entry before we set it.
            self._newest.pop((tenant, primitive), None)
        return tuple(newest[:MAX_CANDIDATES])

    def _update_newest(self, place: tuple[str, Primitive], record: KeyRecord) -> None:
        """Put a record's versions in the place of those that it had, so that no flood of changes is one of searches."""
        known = self._newest.get(place)
        if known is None:
            return
        candidates, oldest = known
        kept = [candidate for candidate in candidates if candidate[0].name != record.name]
        # Of this key what is older than what was gathered stays among the others that are.
        kept += (each for each in _candidates(record, place[1]) if oldest is None or _age(each) >= oldest)
        if oldest is not None and len(kept) < MAX_CANDIDATES:
            # Fences took so many away that older ones, which are not among these, move up.
            self._newest.pop(place, None)
        else:
            self._newest[place] = _cut(sorted(kept, key=_age, reverse=True), oldest)


def held_parts(record: KeyRecord) -> int:
    """Count the parts that a key's provider keeps: those of a destroyed key are erased."""
    return 0 if record.state is KeyState.DESTROYED else sum(len(version.parts) for version in record.versions)


def _candidates(record: KeyRecord, primitive: Primitive) -> list[Candidate]:
    return [(record, version) for version in record.open_versions() if version.part(primitive) is not None]


def _cut(newest: list[Candidate], oldest: _Age | None) -> _Kept:
    """Keep as many as are kept, and note the age of the oldest where there are more."""
    kept = tuple(newest[:MAX_KEPT])
    return kept, oldest if len(newest) <= MAX_KEPT else _age(kept[-1])


def _age(candidate: Candidate) -> _Age:
    record, version = candidate
    return version.created_ms, record.name, version.number
