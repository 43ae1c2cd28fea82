"""What an operation is to the dispatcher, and what it gets to work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from kms.errors import BadRequest, KmsError, StoreUnavailable, Timeout
from kms.kid import KeyName, Kid, parse_kid, parse_kid_or_name
from kms.primitive import Primitive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kms.attestations import Attestations
    from kms.clock import Clock
    from kms.custody import Custody
    from kms.erasures import Erasures
    from kms.key_locks import KeyLocks
    from kms.key_record import KeyRecord
    from kms.key_store import KeyStore
    from kms.messages import KidSelector, Message
    from kms.policy import PolicyDecision
    from kms.principal import CallContext
    from kms.providers.provider import Provider
    from kms.public_keys import PublicKeys
    from kms.work_pool import WorkPool

T = TypeVar("T")

# The reasons that tell of a backend that is away. A key that is damaged or a store that is full is none: the backend
# answers, and no tenant's fault makes it seem away to the others.
AWAY: Final = frozenset(
    {
        StoreUnavailable.reason,
        "closed",
        "cloud_away",
        "cloud_credentials",
        "cloud_denied",
        "cloud_key_disabled",
        "cloud_key_usage",
        "cloud_refuses",
        "disk",
        "folder_locked",
        "folder_mode",
        "folder_replaced",
        "token_exports_keys",
        "token_lost",
        "token_pin",
        "token_replaced",
    }
)
# Tens of microseconds where the key is in memory: less than handing them to a thread and back costs
# (docs/decisions/0011-what-runs-on-the-loop.md). Everything else goes to the pool.
CHEAP: Final = frozenset(
    {Primitive.ED25519, Primitive.ECDSA_P256_SHA256, Primitive.X25519, Primitive.ML_KEM_768, Primitive.HKDF_ROOT}
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A key that a request is about, or with `name` None all keys of a tenant. `version` None: the newest one."""

    tenant: str
    name: KeyName | None
    version: int | None = None

    @property
    def kid(self) -> str:
        """Give the kid as far as it is known."""
        if self.name is None:
            return ""
        return str(self.name) if self.version is None else str(self.name.version(self.version))

    @property
    def alg(self) -> str:
        """Give the kid's algorithm, "" where no single key is meant."""
        return "" if self.name is None else self.name.alg

    @property
    def purpose(self) -> str:
        """Give the kid's purpose, "" where no single key is meant."""
        return "" if self.name is None else self.name.purpose


class Progress:
    """How far a change of keys has come. Until it begins it may be given up without a trace; then it runs to its end.

    The event loop owns it. `epoch`: the store's, once the change is durable.
    """

    __slots__ = ("begun", "epoch")

    def __init__(self) -> None:
        self.begun = False
        self.epoch: int | None = None

    def begin(self) -> None:
        """Note that from here on a provider or the key store is changed."""
        self.begun = True


@dataclass(frozen=True, slots=True)
class Call:
    """One authorised call: who asks, and what the policy decided for each subject's tenant."""

    context: CallContext
    decisions: Mapping[str, PolicyDecision]
    request_digest: bytes
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation did. `algs`: the wire names that metrics count; `epoch`: the store's, after a change.

    `replayed`: the change was made for an earlier request, whose event is only now written.
    """

    response: Message
    kid: str
    algs: tuple[str, ...]
    detail: Mapping[str, str] = field(default_factory=dict)
    epoch: int | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Services:
    """What operations work with."""

    store: KeyStore
    custody: Custody
    public_keys: PublicKeys
    attestations: Attestations
    pool: WorkPool
    locks: KeyLocks
    clock: Clock
    random_bytes: Callable[[int], bytes]
    allowed_algs: frozenset[str]
    erasures: Erasures

    async def use(self, tenant: str, provider: Provider, primitives: Iterable[Primitive], work: Callable[[], T]) -> T:
        """Let a provider use keys, here when that is cheap, else on a thread; remember whether it was there."""
        if not (provider.in_process and CHEAP.issuperset(primitives)):
            return await self.on_thread(tenant, provider, work)
        try:
            return work()
        except (StoreUnavailable, Timeout) as error:
            self._note_failure(provider, error)
            raise

    async def on_thread(
        self, tenant: str, provider: Provider, work: Callable[[], T], begin: Callable[[], None] | None = None
    ) -> T:
        """Let a provider work on a thread; remember whether it was there. `begin`: see `WorkPool.run`."""
        try:
            result = await self.pool.run(tenant, work, begin)
        except (StoreUnavailable, Timeout) as error:
            self._note_failure(provider, error)
            raise
        self.custody.note(provider.name, answered=True)
        return result

    def _note_failure(self, provider: Provider, error: KmsError) -> None:
        if isinstance(error, Timeout) or error.reason in AWAY:
            self.custody.note(provider.name, answered=False)

    def find(self, subject: Subject) -> KeyRecord:
        """Give the record of a subject that names a key. Raises NotFound."""
        assert subject.name is not None, "the operation names its key"
        return self.store.keys.find(subject.name)


class Operation(Protocol):
    """One verb."""

    @property
    def op(self) -> str:
        """Give its name."""
        ...

    @property
    def queue(self) -> Literal["sign", "verify"]:
        """Tell whose places it takes."""
        ...

    @property
    def needs_audit(self) -> bool:
        """Tell whether it is refused while the audit log takes nothing."""
        ...

    @property
    def audited(self) -> bool:
        """Tell whether the dispatcher writes an event for it."""
        ...

    @property
    def durable(self) -> bool:
        """Tell whether it changes keys: its op_ids are then kept by the key store."""
        ...

    @property
    def response_type(self) -> type[Message]:
        """Give the type of its answers."""
        ...

    def subjects(self, request: Any, context: CallContext) -> tuple[Subject, ...]:
        """Name the keys that the request is about, before anything is looked up. Raises BadRequest."""
        ...

    async def run(self, request: Any, subjects: tuple[Subject, ...], call: Call) -> Outcome:
        """Do it. Raises KmsError."""
        ...


@lru_cache(maxsize=4096)
def subject_of(kid_text: str) -> Subject:
    """Read a kid that may lack its version. Raises BadRequest."""
    parsed = parse_kid_or_name(kid_text)
    if isinstance(parsed, Kid):
        return Subject(parsed.name.tenant, parsed.name, parsed.version)
    return Subject(parsed.tenant, parsed)


def subject_of_whole_key(kid_text: str) -> Subject:
    """Read a kid for what is done to all of its key, with or without a version. Raises BadRequest.

    The subject has no version: a capability for one version does not cover what happens to the others.
    """
    named = subject_of(kid_text)
    return Subject(named.tenant, named.name)


def subject_of_version(kid_text: str) -> Subject:
    """Read a kid with its version. Raises BadRequest."""
    kid = parse_kid(kid_text)
    return Subject(kid.name.tenant, kid.name, kid.version)


def subjects_of(selector: KidSelector) -> tuple[Subject, ...]:
    """Read a selector: one kid, or a set without repetition. Raises BadRequest."""
    if (selector.kid is None) == (selector.kid_set is None):
        raise BadRequest("kid_or_set holds either kid or kid_set")
    if selector.kid is not None:
        return (subject_of(selector.kid),)
    subjects = tuple(subject_of(text) for text in selector.kid_set or ())
    if len(set(subjects)) != len(subjects):
        raise BadRequest("kid_set holds a kid twice")
    if len({subject.tenant for subject in subjects}) != 1:
        raise BadRequest("kid_set holds keys of one tenant")
    return subjects


def first_usable(subjects: tuple[Subject, ...], choose: Callable[[Subject], T]) -> T:
    """Give what `choose` gives for the first subject that it does not refuse; raise the first refusal otherwise."""
    refusal: KmsError | None = None
    for subject in subjects:
        try:
            return choose(subject)
        except KmsError as error:
            refusal = refusal or error
    assert refusal is not None, "a selector is never empty"
    raise refusal
