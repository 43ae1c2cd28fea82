"""POST /keys/{kid}/disable, /enable and /destroy, with an optional fence (IDB.md I-14)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from kms.errors import KmsError
from kms.key_record import KeyState
from kms.messages import ChangeKeyStateRequest, KeyStateResponse
from kms.operations.change import ERASE_TIMEOUT_S, apply_change, destroy_parts
from kms.operations.operation import Outcome, Subject, subject_of, subject_of_whole_key

if TYPE_CHECKING:
    from kms.key_record import KeyRecord
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext


class ChangeKeyState:
    """Sets the state of a whole key, whichever version names it."""

    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = True
    response_type: Final = KeyStateResponse

    def __init__(self, services: Services, op: Literal["disable", "enable", "destroy"], state: KeyState) -> None:
        self._services = services
        self.op = op
        self._state = state

    def subjects(self, request: ChangeKeyStateRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the key of the path, all of it."""
        return (subject_of_whole_key(request.kid),)

    async def run(self, request: ChangeKeyStateRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Make the state durable, then erase where it says so: a crash between leaves a key that nobody can use."""
        services, subject = self._services, subjects[0]
        async with services.locks.hold(subject.name):
            record = services.find(subject)
            named = subject_of(request.kid).version
            if named is not None:
                record.version(named)
            changed = record.changed(self._state, request.min_version)
            kid = str(changed.newest_kid)
            response = KeyStateResponse(kid=kid, state=changed.state.value, min_version=changed.min_version)
            outcome = await apply_change(services, call, self.op, request.op_id, record, changed, kid, response)
            if changed.state is not KeyState.DESTROYED:
                return outcome
            erased = await erase(services, changed)
            if not erased:
                services.erasures.add(changed.name)
            return replace(outcome, detail={**outcome.detail, "erased": "true" if erased else "false"})


async def erase(services: Services, record: KeyRecord) -> bool:
    """Erase the private halves of a destroyed key; tell whether that was done.

    With the provider away, or too slow, the key stays destroyed all the same, and is erased when it is there again.
    """
    parts = tuple(part for version in record.versions for part in version.parts)
    try:
        for version in record.versions:
            record.check_handles(version)
        provider = services.custody.holder(record)
        async with asyncio.timeout(ERASE_TIMEOUT_S):
            await services.on_thread(record.name.tenant, provider, lambda: destroy_parts(provider, parts))
    except (KmsError, TimeoutError):
        return False
    return True
