"""Answers by op_id, so that a repeated request has one effect (I-14): bounded in number, by tenant and in time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from kms.errors import Conflict

T = TypeVar("T")

OP_TTL_MS: Final = 24 * 3600 * 1000
MAX_OPS: Final = 8192


@dataclass(frozen=True, slots=True)
class OpKey:
    """An op_id is the tenant's and the operation's own: the same UUID elsewhere is another one."""

    tenant: str
    op: str
    op_id: str


@dataclass(frozen=True, slots=True)
class OpAnswer(Generic[T]):
    """What was answered. `request_digest`: BLAKE3 of the operation, the key and the request."""

    request_digest: bytes
    answer: T
    created_ms: int


class OpAnswers(Generic[T]):
    """The newest answers. Past the bound the tenant with the most loses its oldest, so no flood costs another tenant.

    One thread writes; `find` may be called from any.
    """

    def __init__(self, max_ops: int = MAX_OPS) -> None:
        self._max_ops = max_ops
        self._tenants: dict[str, OrderedDict[OpKey, OpAnswer[T]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: OpKey) -> bool:
        return key in self._tenants.get(key.tenant, ())

    def find(self, key: OpKey, request_digest: bytes, now_ms: int) -> OpAnswer[T] | None:
        """Give the answer to the same request, or None. Raises Conflict when the op_id was used for another one."""
        answers = self._tenants.get(key.tenant)
        found = None if answers is None else answers.get(key)
        if found is None or now_ms - found.created_ms > OP_TTL_MS:
            return None
        if found.request_digest != request_digest:
            raise Conflict("this op_id was used for another request", reason="op_id_reused")
        return found

    def put(self, key: OpKey, answer: OpAnswer[T]) -> list[OpKey]:
        """Keep an answer; give the keys of those that are let go: over age, or over the bound."""
        answers = self._tenants.setdefault(key.tenant, OrderedDict())
        self._count += key not in answers
        answers[key] = answer
        answers.move_to_end(key)
        gone = self._expire(answers, answer.created_ms)
        while self._count > self._max_ops:
            largest = max(self._tenants.values(), key=len)
            gone.append(largest.popitem(last=False)[0])
            self._count -= 1
        for each in gone:
            if not self._tenants.get(each.tenant, True):
                del self._tenants[each.tenant]
        return gone

    def _expire(self, answers: OrderedDict[OpKey, OpAnswer[T]], now_ms: int) -> list[OpKey]:
        gone: list[OpKey] = []
        while answers and now_ms - next(iter(answers.values())).created_ms > OP_TTL_MS:
            gone.append(answers.popitem(last=False)[0])
            self._count -= 1
        return gone
