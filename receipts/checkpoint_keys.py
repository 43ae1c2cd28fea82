"""The log's signing keys in a sealed file: a CheckpointSigner for a log without a key management service.

A set of keys is one Ed25519 and one ML-DSA-44 key, kept as seeds. Anybody can add signature lines to a note, so that
an old set and a new one sign the same head does not make the one vouch for the other: what the old set signs must name
the new one. Hence a rotation takes four steps.

1. `prepare_rotation` makes a set, which signs nothing yet.
2. Its owner stores a `log_event` receipt that names its verifier keys (`keys_event`).
3. `introduce` puts the set in force, with the tree size from which that receipt is in the log. Both sets sign.
4. Once a head that both signed over that entry is durable (`confirm`), the older set retires: its seeds are erased,
   its public keys stay for ever.

The file is small and is read again for every head, so that a rotation by another process takes effect. Whoever
changes it holds the lock on the file beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from msgspec import Meta

from receipts.checkpoint import CheckpointSigner, HeadRequest, SignerRefused, compose_checkpoint, parse_checkpoint
from receipts.cosignature import cosign_ml_dsa_44, sign_ed25519
from receipts.durable_file import FILE_MODE, UNFINISHED, replace_synced, sync, write_synced
from receipts.facts import EventFacts
from receipts.log_errors import LogUnavailable
from receipts.merkle import MAX_TREE_SIZE, ProofError
from receipts.merkle_verify import verify_consistency
from receipts.signed_note import ED25519, ML_DSA_44, NoteSignature, SignedNote, VerifierKey, is_key_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SEED_BYTES: Final = 32
MAX_KEY_AGE_S: Final = 90 * 86_400
"""After this long a set of keys is due to be rotated."""
MAX_KEY_FILE_BYTES: Final = 1024 * 1024
MAX_KEY_SETS: Final = 256

KEYS_EVENT: Final = "log_keys_added"
"""The name of the `log_event` receipt that introduces keys."""

_STATES: Final = re.compile(r"r*(aa?|ap)")
_Seconds = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Seed = Annotated[bytes, Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]


class KeyFileError(ValueError):
    """The key file cannot be used: not private, not of this form, or not in the state asked for."""


class _KeySet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One set; its seeds are null once it has retired. `introduced_size`: the tree that names it has this size."""

    created_s: _Seconds
    state: Literal["pending", "active", "retired"]
    introduced_size: Annotated[int, Meta(ge=0, le=MAX_TREE_SIZE)]
    ed25519_public: Annotated[bytes, Meta(min_length=32, max_length=32)]
    ml_dsa_44_public: Annotated[bytes, Meta(min_length=1312, max_length=1312)]
    ed25519_seed: _Seed | None
    ml_dsa_44_seed: _Seed | None

    def __post_init__(self) -> None:
        if {each is None for each in (self.ed25519_seed, self.ml_dsa_44_seed)} != {self.state == "retired"}:
            raise ValueError("exactly the retired keys have no seeds")

    def __repr__(self) -> str:
        return f"_KeySet(created_s={self.created_s}, state={self.state!r})"

    def keys(self, name: str) -> tuple[VerifierKey, VerifierKey]:
        return (
            VerifierKey(name, ED25519, self.ed25519_public),
            VerifierKey(name, ML_DSA_44, self.ml_dsa_44_public),
        )


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file: the log's origin, which names every key, and its sets of keys, oldest first."""

    version: Literal[1]
    origin: str
    sets: Annotated[tuple[_KeySet, ...], Meta(min_length=1, max_length=MAX_KEY_SETS)]

    def __post_init__(self) -> None:
        if not is_key_name(self.origin):
            raise ValueError("the origin is no key name")
        # The first set needs no introduction: whoever trusts it was told so.
        if _STATES.fullmatch("".join(each.state[0] for each in self.sets)) is None:
            raise ValueError("the sets are not retired ones, one or two active ones, and perhaps a pending one")

    @property
    def active(self) -> tuple[_KeySet, ...]:
        return tuple(each for each in self.sets if each.state == "active")


def create_key_file(path: Path | str, origin: str, now_s: int, random_bytes: Callable[[int], bytes]) -> None:
    """Make the key file of the log `origin` with its first set of keys, mode 0600.

    `now_s`: POSIX seconds. `random_bytes`: the source of seeds. Raises FileExistsError when there is one,
    KeyFileError when `origin` is no key name, LogUnavailable.
    """
    try:
        content = _KeyFile(1, origin, (_new_set(now_s, random_bytes, "active"),))
    except ValueError as error:
        raise KeyFileError("the origin is no key name") from error
    path = Path(path)
    with _typed_errors():
        # The name appears only with the whole content behind it, and never over another file.
        unfinished = path.with_name(f"{path.name}.{random_bytes(8).hex()}{UNFINISHED}")
        try:
            write_synced(unfinished, msgspec.json.encode(content))
            os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync(path.parent)


class FileCheckpointSigner(CheckpointSigner):
    """Signs heads with the keys in the file at `path`; `clock_s` gives POSIX seconds.

    It has no memory of its own: it verifies each head against the one that the request names. Raises
    KeyFileError when the file is not private or not of its form, LogUnavailable when it cannot be read.
    """

    def __init__(self, path: Path | str, clock_s: Callable[[], int]) -> None:
        self._path = Path(path)
        self._clock_s = clock_s
        self._origin = self._read().origin

    @property
    def origin(self) -> str:
        """The origin of the log whose heads it signs."""
        return self._origin

    def sign(self, request: HeadRequest) -> tuple[NoteSignature, ...]:
        """Sign a head with every set in force; see `CheckpointSigner.sign`."""
        old, new = request.old, request.new
        if not old.origin == new.origin == self._origin:
            raise SignerRefused("the head is that of another log")
        try:
            verify_consistency(old.size, new.size, old.root, new.root, request.consistency)
        except ProofError as error:
            raise SignerRefused("the new head does not go on from the old one") from error
        text = compose_checkpoint(new)
        time_s = max(self._clock_s(), request.not_before_s)
        sets = self._read().active
        ed25519 = [Ed25519PrivateKey.from_private_bytes(each.ed25519_seed or b"") for each in sets]
        ml_dsa = [MLDSA44PrivateKey.from_seed_bytes(each.ml_dsa_44_seed or b"") for each in sets]
        return (
            *(sign_ed25519(key, self._origin, text) for key in ed25519),
            *(cosign_ml_dsa_44(key, self._origin, time_s, new) for key in ml_dsa),
        )

    def verifier_keys(self) -> tuple[VerifierKey, ...]:
        """Return the public keys of every set that is or was in force; see `CheckpointSigner.verifier_keys`."""
        sets = [each for each in self._read().sets if each.state != "pending"]
        return tuple(key for each in sets for key in each.keys(self._origin))

    def confirm(self, note: SignedNote) -> None:
        """Retire the older of two active sets if both signed this head, over the entry that names the newer one.

        See `CheckpointSigner.confirm`. Raises NoteFormatError when the note is no checkpoint.
        """
        if len(self._read().active) == 1:
            return
        size = parse_checkpoint(note.text).size
        signed = {(line.name, line.key_id) for line in note.signatures}
        with self._changing() as content:
            sets = content.active
            keys = {(key.name, key.key_id) for each in sets for key in each.keys(self._origin)}
            if len(sets) > 1 and keys <= signed and size >= sets[-1].introduced_size:
                retired = msgspec.structs.replace(sets[0], state="retired", ed25519_seed=None, ml_dsa_44_seed=None)
                self._replace([retired if each is sets[0] else each for each in content.sets])

    def prepare_rotation(self, random_bytes: Callable[[int], bytes]) -> tuple[VerifierKey, ...]:
        """Make a set of keys that signs nothing yet, and return its verifier keys; the pending one if there is one.

        Raises KeyFileError while an earlier rotation is unfinished, LogUnavailable.
        """
        with self._changing() as content:
            if len(content.active) > 1:
                raise KeyFileError("an earlier rotation waits for a head that both sets signed")
            new = content.sets[-1]
            if new.state != "pending":
                new = _new_set(self._clock_s(), random_bytes, "pending")
                self._replace([*content.sets, new])
            return new.keys(self._origin)

    def introduce(self, keys: Sequence[VerifierKey], tree_size: int) -> None:
        """Put the pending set in force, whose `keys` the log names in its first `tree_size` entries.

        Raises KeyFileError when these are not the keys of the pending set, LogUnavailable.
        """
        with self._changing() as content:
            new = content.sets[-1]
            if new.state != "pending" or new.keys(self._origin) != tuple(keys) or not 1 <= tree_size <= MAX_TREE_SIZE:
                raise KeyFileError("these are not the keys of a pending rotation, or no tree size")
            active = msgspec.structs.replace(new, state="active", introduced_size=tree_size)
            self._replace([*content.sets[:-1], active])

    def rotation_due(self, max_key_age_s: int = MAX_KEY_AGE_S) -> bool:
        """Say whether the newest set in force is older than `max_key_age_s`. Raises LogUnavailable, KeyFileError."""
        return self._clock_s() - self._read().active[-1].created_s > max_key_age_s

    def _read(self) -> _KeyFile:
        with _typed_errors(), os.fdopen(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise KeyFileError("the key file may be read by others: its mode must be 0600")
            data = file.read(MAX_KEY_FILE_BYTES + 1)
        try:
            if len(data) > MAX_KEY_FILE_BYTES:
                raise KeyFileError("the key file is too long")
            return msgspec.json.decode(data, type=_KeyFile)
        except msgspec.MsgspecError:
            # The cause is left out: it may quote what the file holds.
            raise KeyFileError("the key file has not its form") from None

    def _replace(self, sets: list[_KeySet]) -> None:
        """Put a new file in the place of the old one; the caller holds the lock."""
        replace_synced(self._path, msgspec.json.encode(_KeyFile(1, self._origin, tuple(sets))))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_KeyFile]:
        """Hold the lock, which the kernel opens when its holder dies, and read the file under it."""
        lock = self._path.with_name(f"{self._path.name}.lock")
        with _typed_errors(), os.fdopen(os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self._read()


def keys_event(keys: Sequence[VerifierKey]) -> EventFacts:
    """Say in a `log_event` receipt that these keys sign from now on."""
    return EventFacts(KEYS_EVENT, {"verifier_keys": [key.text for key in keys]})


def _new_set(now_s: int, random_bytes: Callable[[int], bytes], state: Literal["pending", "active"]) -> _KeySet:
    ed25519, ml_dsa = random_bytes(SEED_BYTES), random_bytes(SEED_BYTES)
    return _KeySet(
        created_s=now_s,
        state=state,
        introduced_size=0,
        ed25519_public=Ed25519PrivateKey.from_private_bytes(ed25519).public_key().public_bytes_raw(),
        ml_dsa_44_public=MLDSA44PrivateKey.from_seed_bytes(ml_dsa).public_key().public_bytes_raw(),
        ed25519_seed=ed25519,
        ml_dsa_44_seed=ml_dsa,
    )


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise LogUnavailable(f"key file: {type(error).__name__} {error.errno}") from error
