"""POST /sign/batch and /verify/batch: up to 128 items, each with a result or an error of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from kms.error_envelope import error_body
from kms.errors import BadRequest, KmsError
from kms.messages import (
    ErrorBody,
    SignBatchItem,
    SignBatchResponse,
    SignResponse,
    VerifyBatchItem,
    VerifyBatchResponse,
    VerifyResponse,
)
from kms.operations.operation import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kms.messages import Message, SignBatchRequest, VerifyBatchRequest
    from kms.operations.operation import Call, Operation, Services, Subject
    from kms.principal import CallContext

    CallItem = Callable[[str, Message, CallContext], Awaitable[Message]]

# Items under way at once: between two lots the event loop turns to other requests.
LOT: Final = 16


class _Batch:
    """What both have in common. Items are authorised, decided on, audited and counted one by one."""

    audited: Final = False
    durable: Final = False

    def __init__(self, services: Services, item: Operation, call_item: CallItem) -> None:
        self._services = services
        self._item = item
        self._call_item = call_item

    def subjects(self, request: SignBatchRequest | VerifyBatchRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the first key of each item that can be read; their tenant's places and rate are taken.

        Raises BadRequest for a batch over keys of several tenants, and when no item can be read.
        """
        found: dict[Subject, None] = {}
        refusal: KmsError | None = None
        for item in request.items:
            try:
                found[self._item.subjects(item, context)[0]] = None
            except KmsError as error:
                refusal = refusal or error
        if not found:
            assert refusal is not None, "a batch is never empty"
            raise refusal
        if len({subject.tenant for subject in found}) != 1:
            raise BadRequest("a batch is about keys of one tenant")
        return tuple(found)

    async def results(
        self, request: SignBatchRequest | VerifyBatchRequest, context: CallContext
    ) -> list[Message | ErrorBody]:
        """Perform every item; give its answer or its error."""
        results: list[Message | ErrorBody] = []
        for start in range(0, len(request.items), LOT):
            lot = request.items[start : start + LOT]
            results += await asyncio.gather(*(self._one(item, context) for item in lot))
        return results

    async def _one(self, item: Message, context: CallContext) -> Message | ErrorBody:
        try:
            return await self._call_item(self._item.op, item, context)
        except KmsError as error:
            return error_body(error, self._services.clock.wall_ms(), context.request_id)


class SignBatch(_Batch):
    """Signs many digests."""

    op: Final = "sign_batch"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    response_type: Final = SignBatchResponse

    async def run(self, request: SignBatchRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Sign each item."""
        results = await self.results(request, call.context)
        items = [
            SignBatchItem(result=each) if isinstance(each, SignResponse) else SignBatchItem(error=_error(each))
            for each in results
        ]
        return Outcome(SignBatchResponse(items=items), "", ())


class VerifyBatch(_Batch):
    """Verifies many bundles."""

    op: Final = "verify_batch"
    queue: Final[Literal["verify"]] = "verify"
    needs_audit: Final = False
    response_type: Final = VerifyBatchResponse

    async def run(self, request: VerifyBatchRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Verify each item."""
        results = await self.results(request, call.context)
        items = [
            VerifyBatchItem(result=each) if isinstance(each, VerifyResponse) else VerifyBatchItem(error=_error(each))
            for each in results
        ]
        return Outcome(VerifyBatchResponse(items=items), "", ())


def _error(result: Message | ErrorBody) -> ErrorBody:
    assert isinstance(result, ErrorBody), "an item is answered or refused"
    return result
