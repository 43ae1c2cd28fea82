"""POST /derive: a child of an HKDF root, the same for the same version, context and algorithm (IDB.md §3.4)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final, Literal

from blake3 import blake3

from kms.errors import Conflict, Unsupported
from kms.key_record import KeyRecord, KeyState, KeyVersion
from kms.kid import KeyName
from kms.messages import DeriveRequest, DeriveResponse
from kms.operations.change import apply_change, check_room, make_parts
from kms.operations.operation import Outcome, Subject, subject_of_version
from kms.operations.public_material import public_material
from kms.primitive import KEY_ALGORITHMS, TLOG_PURPOSE, WIRE_NAMES, Primitive

if TYPE_CHECKING:
    from kms.kid import Kid
    from kms.operations.operation import Call, Services
    from kms.principal import CallContext

_UUID_BYTES: Final = 16
_CHILD_LABEL: Final = b"signet-kms derived key v1\0"


class Derive:
    """Derives. The root's version must be named: another version has other children."""

    op: Final = "derive"
    queue: Final[Literal["sign"]] = "sign"
    needs_audit: Final = True
    audited: Final = True
    durable: Final = True
    response_type: Final = DeriveResponse

    def __init__(self, services: Services) -> None:
        self._services = services

    def subjects(self, request: DeriveRequest, context: CallContext) -> tuple[Subject, ...]:
        """Name the root, then the child: a capability must cover both."""
        root = subject_of_version(request.kid)
        assert root.name is not None, "a kid names a key"
        child = child_name(root.name.version(root.version or 1), request.context, request.alg)
        return (root, Subject(root.tenant, child))

    async def run(self, request: DeriveRequest, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Derive the child, or name it when it is there."""
        services, (root_subject, child_subject) = self._services, subjects
        name = child_subject.name
        assert name is not None, "a child has a name"
        root = services.find(root_subject)
        version = root.private_version(root_subject.version)
        source = version.part(Primitive.HKDF_ROOT)
        if source is None:
            raise Unsupported("only keys of algorithm hkdf derive", reason="alg_does_not_derive")
        if name.purpose == TLOG_PURPOSE:
            raise Unsupported("keys of purpose tlog are not derived", reason="tlog_not_derived")
        primitives = KEY_ALGORITHMS[request.alg].parts
        if not all(WIRE_NAMES[primitive] in services.allowed_algs for primitive in primitives):
            raise Unsupported("the algorithm is not allowed here", reason="alg_not_allowed")
        provider, kid = services.custody.holder(root), name.version(1)
        async with services.locks.hold(name):
            known = services.store.keys.get(name)
            if known is not None:
                if known.state is KeyState.DESTROYED:
                    raise Conflict("the derived key was destroyed", reason="key_destroyed")
                answer = DeriveResponse(kid=str(kid), public=public_material(known, known.newest))
                return Outcome(answer, str(kid), _names(primitives), {"existing": "true"})
            check_room(services, name.tenant, provider, len(primitives))
            info = derivation_info(name, request.context)
            parts = await services.on_thread(
                name.tenant,
                provider,
                lambda: make_parts(provider, primitives, lambda each: provider.derive(source.handle, info, each, kid)),
                call.progress.begin,
            )
            child = KeyVersion(1, parts, services.clock.wall_ms())
            root_kid = str(root.name.version(version.number))
            record = KeyRecord(name, (child,), KeyState.ENABLED, 1, (), provider.name, root_kid)
            answer = DeriveResponse(kid=str(kid), public=public_material(record, child))
            return await apply_change(services, call, self.op, request.op_id, None, record, str(kid), answer)


def child_name(root: Kid, context: str, alg: str) -> KeyName:
    """Name the child of a root version: its UUID (RFC 9562 version 8) is a hash of root, context and algorithm."""
    text = "\0".join((str(root), context, alg)).encode()
    digest = bytearray(blake3(_CHILD_LABEL + text).digest(length=_UUID_BYTES))
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return KeyName(root.name.tenant, root.name.purpose, alg, str(uuid.UUID(bytes=bytes(digest))))


def derivation_info(child: KeyName, context: str) -> bytes:
    """Give HKDF's info: `ron-kms::<tenant>::<purpose>::<ctx>` (IDB.md §3.4), ctx being `<context>#<algorithm>`.

    With the algorithm in it, no half of a hybrid child is also a key by itself. The request's context has no `#`.
    """
    return f"ron-kms::{child.tenant}::{child.purpose}::{context}#{child.alg}".encode()


def _names(primitives: tuple[Primitive, ...]) -> tuple[str, ...]:
    return tuple(WIRE_NAMES[primitive] for primitive in primitives)
