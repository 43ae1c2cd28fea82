"""POST /checkpoint: the next head of a log, signed only if it extends the last one signed (docs/reference/kms.md).

The service composes what is signed itself, C2SP tlog-checkpoint: no caller chooses its bytes. The last head is part of
the key's record, so it is durable before anything is signed, anchored in the audit log, and no older one comes back
unnoticed. Whoever owns the log's disk can neither fork the log nor set it back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from kms.client_wire import SIGNED_SIZE_HINT
from kms.errors import BadRequest, Conflict, ConflictingHead
from kms.key_change import KeyChange
from kms.key_record import LastHead
from kms.messages import CheckpointRequest, CheckpointResponse
from kms.operations.change import change_detail
from kms.operations.operation import Outcome, Subject, subject_of
from kms.primitive import TLOG_PARTS, TLOG_PURPOSE, WIRE_NAMES, Primitive
from receipts.checkpoint import TreeHead, compose_checkpoint
from receipts.cosignature import COSIGNATURE_TIME_BYTES, cosigned_message
from receipts.merkle import EMPTY_ROOT, ProofError
from receipts.merkle_verify import verify_consistency
from receipts.signed_note import ED25519, ML_DSA_44, NoteError, NoteSignature, SignedNote, VerifierKey, is_key_name

if TYPE_CHECKING:
    from kms.key_record import KeyRecord, KeyVersion
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext
    from kms.providers.provider import Provider

_TYPES: Final = {Primitive.ED25519: ED25519, Primitive.ML_DSA_44: ML_DSA_44}
_MS: Final = 1000


class SignCheckpoint:
    """Signs tree heads with a key of purpose `tlog`: one log a key, one memory for all of its versions."""

    op: Final = "checkpoint"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = True
    response_type: Final = CheckpointResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: CheckpointRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the key."""
        return (subject_of(request.kid),)

    async def run(self, request: CheckpointRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Verify, persist, sign.

        A head that was signed before is signed again, so that an answer that was lost can be asked for once more.
        """
        services, subject = self._services, subjects[0]
        async with services.locks.hold(subject.name):
            record = services.find(subject)
            if record.name.purpose != TLOG_PURPOSE:
                raise BadRequest("only keys of purpose tlog sign tree heads", reason="not_tlog")
            version = record.private_version(subject.version)
            provider = services.custody.signer(record)
            tenant = record.name.tenant
            await services.attestations.gate(tenant, provider, version.parts[0].handle)
            head = self._next_head(record, request)
            kid = str(record.name.version(version.number))
            detail = {"origin": head.origin, "size": str(head.size), "root": head.root.hex()}
            epoch = None
            if head != record.last_head:
                detail, epoch = await self._persist(record, head, kid, call, detail)
            note = await services.use(tenant, provider, TLOG_PARTS, lambda: sign_head(provider, version, head))
        names = tuple(WIRE_NAMES[part.primitive] for part in version.parts)
        return Outcome(CheckpointResponse(kid=kid, note=note.decode()), kid, names, detail, epoch)

    def _next_head(self, record: KeyRecord, request: CheckpointRequest) -> LastHead:
        """Judge a request by the last head. Raises BadRequest, Conflict, ConflictingHead."""
        last = record.last_head or LastHead(request.origin, 0, EMPTY_ROOT, 0)
        root, proof = bytes.fromhex(request.root), [bytes.fromhex(each) for each in request.consistency]
        if not is_key_name(request.origin):
            raise BadRequest("origin is no key name of a signed note")
        if request.origin != last.origin:
            raise ConflictingHead("this key signs the heads of another log", reason="other_origin")
        if request.old_size != last.size:
            # Also when the head asked for is the one that was signed: the log then proves from there.
            raise Conflict(
                "the last head signed has another size than old_size",
                hint=f"{SIGNED_SIZE_HINT}{last.size}",
                reason="stale_size",
            )
        try:
            verify_consistency(last.size, request.new_size, last.root, root, proof)
        except ProofError as error:
            raise ConflictingHead("the head does not extend the last one signed") from error
        try:
            compose_checkpoint(TreeHead(request.origin, request.new_size, root))
        except NoteError as error:
            raise ConflictingHead("the root is not that of the empty tree") from error
        if record.last_head is not None and request.new_size == last.size:
            return last
        # The time never goes back, whatever the clock does.
        time_s = max(self._services.clock.wall_ms() // _MS, last.time_s)
        return LastHead(request.origin, request.new_size, root, time_s)

    async def _persist(
        self, record: KeyRecord, head: LastHead, kid: str, call: Call, detail: dict[str, str]
    ) -> tuple[dict[str, str], int]:
        context = call.context
        applied = await self._services.store.commit(
            KeyChange(
                record,
                replace(record, last_head=head),
                self.op,
                kid,
                context.principal.token_id,
                context.corr_id,
                call.request_digest,
                b"",
                None,
            )
        )
        return {**detail, **change_detail(applied)}, applied.epoch


def sign_head(provider: Provider, version: KeyVersion, head: LastHead) -> bytes:
    """Sign a head with both parts of a version; return the note. Its keys bear the origin's name. Raises KmsError."""
    tree_head = TreeHead(head.origin, head.size, head.root)
    text = compose_checkpoint(tree_head)
    lines = []
    for part in version.parts:
        key = VerifierKey(head.origin, _TYPES[part.primitive], part.public)
        time = b""
        message = text
        if part.primitive is Primitive.ML_DSA_44:
            time = head.time_s.to_bytes(COSIGNATURE_TIME_BYTES, "big")
            message = cosigned_message(head.origin, head.time_s, tree_head)
        signature = provider.sign(part.handle, part.primitive, message)
        lines.append(NoteSignature(key.name, key.key_id, time + signature))
    return SignedNote(text, tuple(lines)).data
