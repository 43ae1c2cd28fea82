"""The one way to an operation, whatever transport a request came by.

1 subjects      which keys are meant, by the request's text alone
2 authorise     scope and caveats: nothing below costs a caller without a capability more than this
3 audit log     writable, or nothing that signs or changes is begun (I-2)
4 rates         the service's, the tenant's share of it, the capability's, the policy's
5 admission     a place among those under way, or 429 (I-17, P-6)
6 policy        allow or deny, and the phase of the post-quantum migration
7 op_id         the stored answer to the same request (I-14)
8 operation     under its deadline, on the loop or on a thread; a change of keys that has begun goes on to its end
9 audit event   durable, then the answer leaves
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from blake3 import blake3

from kms.audit_event import AuditEvent
from kms.change_tasks import ChangeTasks
from kms.error_envelope import as_kms_error
from kms.errors import KmsError, NoCapability, StoreUnavailable, Timeout
from kms.kid import parse_kid
from kms.messages import SignBatchRequest, VerifyBatchRequest
from kms.op_answers import OpAnswer, OpAnswers, OpKey
from kms.operations.change import change_detail
from kms.operations.operation import Call, Outcome, Progress
from kms.policy import PolicyQuestion, ask
from kms.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms.admission import Admission
    from kms.audit_event import AuditLog
    from kms.messages import Message
    from kms.operation_metrics import OperationMetrics
    from kms.operations.operation import Operation, Services, Subject
    from kms.policy import PolicyClient, PolicyDecision
    from kms.principal import CallContext, Principal
    from kms.rates import Rates
    from kms.refusals import Refusals

AUDIT_RETRY_AFTER_S: Final = 5
REPLAYED: Final = {"replayed": "true"}
_ENCODER: Final = msgspec.json.Encoder()
_KEY_MAKERS: Final = frozenset({"create_key", "derive"})
_BATCHES: Final = (SignBatchRequest, VerifyBatchRequest)


class Authorise(Protocol):
    """What checks a capability against one request (`kms.capability.authorise`)."""

    def __call__(self, principal: Principal, *, scope: Scope, tenant: str, kid: str, alg: str, path: str) -> None:
        """Raise NoCapability when the request is not covered."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What a reload may change here. `policy`: the client in force."""

    policy: PolicyClient
    deadline_s: float
    verify_with_read: bool = False


class Dispatcher:
    """Performs operations. One event loop owns it; `kms.dispatch_build` makes one from the configuration."""

    def __init__(
        self,
        operations: Mapping[str, tuple[Operation, Scope]],
        services: Services,
        audit: AuditLog,
        authorise: Authorise,
        rates: Rates,
        admissions: Mapping[str, Admission],
        metrics: OperationMetrics,
        refusals: Refusals,
        settings: Settings,
    ) -> None:
        self._operations = operations
        self._services = services
        self._audit = audit
        self._authorise = authorise
        self._rates = rates
        self._admissions = admissions
        self._metrics = metrics
        self._refusals = refusals
        self.settings = settings
        # Answers of operations that change no key: kept in memory, since repeating one after a restart does no harm.
        self._answers: OpAnswers[Outcome] = OpAnswers()
        # The digest of a request may be over a key to wrap: without this secret it says nothing of it.
        self._digest_key = services.random_bytes(blake3.key_size)
        self._changes = ChangeTasks()
        self._auditing: set[int] = set()
        self._seen_unaudited: set[int] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def under_way(self) -> int:
        """Count the operations under way."""
        return sum(each.taken for each in self._admissions.values())

    async def call(self, op: str, request: Message, context: CallContext) -> Message:
        """Perform one operation. Raises KmsError, and nothing else but CancelledError."""
        operation, scope = self._operations[op]
        subjects: tuple[Subject, ...] = ()
        try:
            if self._draining:
                raise StoreUnavailable("the service is shutting down", reason="draining", retry_after_s=1)
            subjects = operation.subjects(request, context)
            if isinstance(request, _BATCHES):
                self._check_batch_capability(subjects, scope, context)
            else:
                self._check_capability(subjects, scope, context)
            self._check_audit(operation)
            self._take_rates(operation, subjects[0].tenant, context.principal, _count(request))
            response = await self._admitted(operation, request, subjects, context)
        except Exception as error:
            typed = as_kms_error(error)
            await self._refuse(op, request, subjects, context, typed)
            if typed is error:
                raise
            raise typed from error
        return response

    async def call_item(self, op: str, request: Message, context: CallContext) -> Message:
        """Perform one item of a batch, which has its places and its rate already. Raises KmsError."""
        operation, scope = self._operations[op]
        subjects: tuple[Subject, ...] = ()
        try:
            subjects = operation.subjects(request, context)
            self._check_capability(subjects, scope, context)
            return await self._serve(operation, request, subjects, context)
        except Exception as error:
            typed = as_kms_error(error)
            await self._refuse(op, request, subjects, context, typed)
            if typed is error:
                raise
            raise typed from error

    async def drain(self, deadline_s: float) -> int:
        """Begin nothing new and wait for what is under way; give how many operations were left at the deadline."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        return self.under_way

    async def settle(self, *, at_start: bool = False) -> None:
        """Audit changes that are durable and whose event is not: their request failed or died in between.

        Under way is what was found for the first time; it is looked at again the next time, but at start nothing is.
        """
        under_way = self._auditing | self._changes.epochs
        open_changes = [each for each in self._services.store.unaudited() if each.epoch not in under_way]
        seen, self._seen_unaudited = self._seen_unaudited, {each.epoch for each in open_changes}
        for change in open_changes:
            if (at_start or change.epoch in seen) and self._audit.writable() is None:
                detail = {**change_detail(change), "actor": change.actor, "corr_id": change.corr_id, "settled": "true"}
                event = AuditEvent(
                    change.verb, "ok", "", change.tenant, change.kid, change.alg, "", change.op_id, None, detail
                )
                await self._audit.append(event)
                self._services.store.mark_audited(change.epoch)

    def _check_capability(self, subjects: tuple[Subject, ...], scope: Scope, context: CallContext) -> None:
        """Check that every subject is covered. Raises NoCapability."""
        principal = context.principal
        if scope is Scope.VERIFY and self.settings.verify_with_read and scope not in principal.scopes:
            scope = Scope.READ
        for subject in subjects:
            self._authorise(
                principal, scope=scope, tenant=subject.tenant, kid=subject.kid, alg=subject.alg, path=context.path
            )

    def _check_batch_capability(self, subjects: tuple[Subject, ...], scope: Scope, context: CallContext) -> None:
        """Check that one item at least is covered; the others are refused one by one. Raises NoCapability."""
        refusal: KmsError | None = None
        for subject in subjects:
            try:
                return self._check_capability((subject,), scope, context)
            except NoCapability as error:
                refusal = refusal or error
        raise refusal or NoCapability("no item is covered")

    def _check_audit(self, operation: Operation) -> None:
        reason = self._audit.writable() if operation.needs_audit else None
        if reason is not None:
            raise StoreUnavailable(
                "the audit log takes nothing now", reason="audit_unavailable", retry_after_s=AUDIT_RETRY_AFTER_S
            )

    def _take_rates(self, operation: Operation, tenant: str, principal: Principal, count: int) -> None:
        if principal.rate_per_s is not None:
            self._rates.take_limited("capability", principal.token_id, principal.rate_per_s, count)
        if operation.queue == "sign":
            self._rates.take(tenant, count)

    async def _admitted(
        self, operation: Operation, request: Message, subjects: tuple[Subject, ...], context: CallContext
    ) -> Message:
        """Take a place, keep the deadline. Raises Backpressure, Timeout."""
        admission, tenant, deadline_s = self._admissions[operation.queue], subjects[0].tenant, self.settings.deadline_s

        def leave() -> None:
            admission.leave(tenant)
            if not self.under_way:
                self._idle.set()

        admission.enter(tenant)
        self._idle.clear()
        try:
            if operation.durable:
                return await self._changes.run(
                    lambda progress: self._serve(operation, request, subjects, context, progress),
                    deadline_s,
                    ended=leave,
                    failed=lambda error: self._refuse(operation.op, request, subjects, context, as_kms_error(error)),
                )
            async with asyncio.timeout(deadline_s):
                return await self._serve(operation, request, subjects, context)
        except TimeoutError as error:
            self._metrics.timed_out(operation.op)
            raise Timeout("the operation did not end in time") from error
        finally:
            if not operation.durable:
                leave()

    async def _serve(
        self,
        operation: Operation,
        request: Message,
        subjects: tuple[Subject, ...],
        context: CallContext,
        progress: Progress | None = None,
    ) -> Message:
        """Ask the policy, then answer as before or anew."""
        progress = progress or Progress()
        began_s = self._services.clock.monotonic_s()
        decisions = await self._decide(operation.op, subjects)
        if len(decisions) == 1:  # several tenants may be in several phases
            (decided,) = decisions.values()
            context.phase.pq, context.phase.pq_mode = decided.pq, decided.verify_mode
        op_id: str | None = getattr(request, "op_id", None)
        if op_id is None:
            outcome = await operation.run(request, subjects, Call(context, decisions, b"", progress))
            await self._audit_outcome(operation, request, subjects, context, outcome)
        else:
            op_key = OpKey(subjects[0].tenant, operation.op, op_id.lower())
            async with self._services.locks.hold(op_key):
                call = Call(context, decisions, b"", progress)
                outcome = await self._once(operation, request, subjects, call, op_key)
        self._metrics.done(operation.op, outcome.algs, self._services.clock.monotonic_s() - began_s)
        return outcome.response

    async def _decide(self, op: str, subjects: tuple[Subject, ...]) -> dict[str, PolicyDecision]:
        decisions: dict[str, PolicyDecision] = {}
        for subject in subjects:
            question = PolicyQuestion(op, subject.tenant, subject.purpose, subject.alg)
            decision = decisions[subject.tenant] = await ask(self.settings.policy, question)
            if decision.rate_per_s is not None and subject is subjects[0]:
                self._rates.take_limited("tenant", subject.tenant, decision.rate_per_s)
        return decisions

    async def _once(
        self,
        operation: Operation,
        request: Message,
        subjects: tuple[Subject, ...],
        call: Call,
        op_key: OpKey,
    ) -> Outcome:
        """Answer a request that has an op_id: as it was answered before, or anew. Raises Conflict."""
        services = self._services
        # The op_id as one UUID has it: its digits' case is no difference between requests.
        alike = msgspec.structs.replace(request, op_id=op_key.op_id)
        encoded = operation.op.encode() + b"\0" + _ENCODER.encode(alike)
        if operation.durable:
            digest = blake3(encoded).digest()
            outcome = self._stored_change(operation, op_key, digest)
        else:
            digest = blake3(encoded, key=self._digest_key).digest()
            found = self._answers.find(op_key, digest, services.clock.wall_ms())
            outcome = None if found is None else replace(found.answer, detail={**found.answer.detail, **REPLAYED})
        anew = outcome is None
        if outcome is None:
            outcome = await operation.run(request, subjects, replace(call, request_digest=digest))
        await self._audit_outcome(operation, request, subjects, call.context, outcome)
        if anew and not operation.durable:
            self._answers.put(op_key, OpAnswer(digest, outcome, services.clock.wall_ms()))
        return outcome

    def _stored_change(self, operation: Operation, op_key: OpKey, digest: bytes) -> Outcome | None:
        """Give the outcome of a change that was made before. One whose event is not on disk is audited as itself."""
        store = self._services.store
        found = store.find_answer(op_key, digest)
        if found is None:
            return None
        response = msgspec.json.decode(found.answer, type=operation.response_type)
        kid = str(getattr(response, "kid", ""))
        change = store.unaudited_of(op_key)
        if change is None:
            return Outcome(response, kid, (), REPLAYED)
        return Outcome(response, kid, (), change_detail(change), change.epoch, replayed=True)

    async def _audit_outcome(
        self,
        operation: Operation,
        request: Message,
        subjects: tuple[Subject, ...],
        context: CallContext,
        outcome: Outcome,
    ) -> None:
        """Make the event durable before the answer leaves (I-2). Only a verification may do without (I-18)."""
        if not operation.audited or (not operation.needs_audit and self._audit.writable() is not None):
            return
        event = AuditEvent(
            operation.op,
            "ok",
            "",
            subjects[0].tenant,
            outcome.kid,
            subjects[0].alg,
            getattr(request, "payload_b3", ""),
            getattr(request, "op_id", None) or "",
            context,
            outcome.detail,
        )
        epoch = outcome.epoch
        if epoch is not None:
            self._auditing.add(epoch)
            self._show_key(operation, outcome)
        try:
            await self._audit.append(event)
            if epoch is not None:
                self._services.store.mark_audited(epoch)
        except (StoreUnavailable, Timeout):
            if operation.needs_audit:
                raise
        finally:
            if epoch is not None:
                self._auditing.discard(epoch)

    def _show_key(self, operation: Operation, outcome: Outcome) -> None:
        record = self._services.store.keys.find(parse_kid(outcome.kid).name)
        self._metrics.key_set(record, new=operation.op in _KEY_MAKERS and not outcome.replayed)

    async def _refuse(
        self, op: str, request: Message, subjects: tuple[Subject, ...], context: CallContext, error: KmsError
    ) -> None:
        subject = subjects[0] if subjects else None
        self._metrics.failed(op, subject.alg if subject is not None else "", error)
        await self._refusals.record(
            op,
            error,
            context,
            tenant=subject.tenant if subject is not None else "",
            kid=subject.kid if subject is not None else "",
            payload_b3=getattr(request, "payload_b3", ""),
            op_id=getattr(request, "op_id", None) or "",
        )


def _count(request: Message) -> int:
    """Tell how many operations a request asks for."""
    return len(request.items) if isinstance(request, _BATCHES) else 1
