"""The receipts log's signer when the key service holds its keys: a client, and a file of what is public about them.

The service remembers the last head, so neither this program nor whoever owns its disk can fork the log or set it back.
The file says which versions of the key sign, as `receipts.checkpoint_keys` explains for a rotation: a new version is
made, an entry of the log names it, both sign, and once a durable head has both signatures the older one retires.
"""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from kms.client_wire import SIGNED_SIZE_HINT
from kms.errors import Conflict, ConflictingHead, KmsError
from kms.messages import CheckpointRequest, GetKeyRequest, RotateKeyRequest
from kms.private_file import PrivateFileError, changing, create_private, read_private, replace_private
from receipts.checkpoint import CheckpointSigner, HeadRequest, SignerBehind, SignerRefused, compose_checkpoint
from receipts.checkpoint import parse_checkpoint as parse_head
from receipts.checkpoint_keys import MAX_KEY_AGE_S, KeyFileError
from receipts.log_errors import LogUnavailable
from receipts.signed_note import ED25519, ML_DSA_44, NoteError, NoteSignature, SignedNote, VerifierKey, parse_note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from kms.client import KmsClient
    from kms.kid import KeyName

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_VERSIONS: Final = 256
_TYPES: Final = {"ed25519": ED25519, "ml-dsa-44": ML_DSA_44}
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of the key. `introduced_size`: the tree that names it has this size."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    created_s: Annotated[int, msgspec.Meta(ge=0)]
    state: Literal["pending", "active", "retired"]
    introduced_size: _Count
    ed25519_public: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    ml_dsa_44_public: Annotated[bytes, msgspec.Meta(min_length=1312, max_length=1312)]

    def keys(self, origin: str) -> tuple[VerifierKey, VerifierKey]:
        return (
            VerifierKey(origin, ED25519, self.ed25519_public),
            VerifierKey(origin, ML_DSA_44, self.ml_dsa_44_public),
        )


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    origin: str
    key: str
    versions: Annotated[tuple[_Version, ...], msgspec.Meta(min_length=1, max_length=MAX_VERSIONS)]

    @property
    def active(self) -> tuple[_Version, ...]:
        return tuple(each for each in self.versions if each.state == "active")


class KmsCheckpointSigner(CheckpointSigner):
    """Has heads signed by the key `name` of purpose `tlog`; `path` is the file of its public halves.

    Without a file, one is made from the key's newest version. Raises KeyFileError when the file is that of another key
    or log, LogUnavailable when it cannot be read, or there is none and the key service does not answer.
    """

    def __init__(self, path: Path, client: KmsClient, name: KeyName, origin: str, clock_s: Callable[[], int]) -> None:
        self._path, self._client, self._name, self._origin, self._clock_s = path, client, name, origin, clock_s
        if not path.exists():
            self._create()
        self._read()

    @property
    def origin(self) -> str:
        """The origin of the log whose heads it signs."""
        return self._origin

    def sign(self, request: HeadRequest) -> tuple[NoteSignature, ...]:
        """Have a head signed by every version in force; see `CheckpointSigner.sign`."""
        if not request.old.origin == request.new.origin == self._origin:
            raise SignerRefused("the head is that of another log")
        signatures: list[NoteSignature] = []
        old_size, proof = request.old.size, request.consistency
        for version in self._read().active:
            signatures += self._ask(request, version, old_size, proof)
            # For the key service the head is now the last one, whichever version signed it.
            old_size, proof = request.new.size, ()
        return tuple(signatures)

    def verifier_keys(self) -> tuple[VerifierKey, ...]:
        """Return the public keys of every version that is or was in force; see `CheckpointSigner.verifier_keys`."""
        versions = [each for each in self._read().versions if each.state != "pending"]
        return tuple(key for each in versions for key in each.keys(self._origin))

    def confirm(self, note: SignedNote) -> None:
        """Retire the older of two versions if both signed this head; see `CheckpointSigner.confirm`."""
        if len(self._read().active) == 1:
            return
        size = parse_head(note.text).size
        signed = {(line.name, line.key_id) for line in note.signatures}
        with self._changing() as content:
            active = content.active
            keys = {(key.name, key.key_id) for each in active for key in each.keys(self._origin)}
            if len(active) > 1 and keys <= signed and size >= active[-1].introduced_size:
                retired = msgspec.structs.replace(active[0], state="retired")
                self._replace(content, [retired if each is active[0] else each for each in content.versions])

    def prepare_rotation(self, random_bytes: Callable[[int], bytes]) -> tuple[VerifierKey, ...]:
        """Have the key rotated, and return the new version's verifier keys; the pending one's if there is one.

        Raises KeyFileError while an earlier rotation is unfinished, LogUnavailable.
        """
        del random_bytes  # The key service has its own.
        with self._changing() as content, _log_errors():
            if len(content.active) > 1:
                raise KeyFileError("an earlier rotation waits for a head that both sets signed")
            newest = content.versions[-1]
            if newest.state != "pending":
                # After a crash between rotating and writing, the version is there already.
                number = self._newest_number()
                if number <= newest.number:
                    number = _number_of(self._client.rotate(RotateKeyRequest(kid=str(self._name))).kid)
                newest = self._fetch(number, "pending")
                self._replace(content, [*content.versions, newest])
            return newest.keys(self._origin)

    def introduce(self, keys: Sequence[VerifierKey], tree_size: int) -> None:
        """Put the pending version in force, whose `keys` the log names in its first `tree_size` entries.

        Raises KeyFileError when these are not its keys, LogUnavailable.
        """
        with self._changing() as content:
            newest = content.versions[-1]
            if newest.state != "pending" or newest.keys(self._origin) != tuple(keys) or tree_size < 1:
                raise KeyFileError("these are not the keys of a pending rotation, or no tree size")
            active = msgspec.structs.replace(newest, state="active", introduced_size=tree_size)
            self._replace(content, [*content.versions[:-1], active])

    def rotation_due(self, max_key_age_s: int = MAX_KEY_AGE_S) -> bool:
        """Say whether the newest version in force is older than `max_key_age_s`. Raises LogUnavailable."""
        return self._clock_s() - self._read().active[-1].created_s > max_key_age_s

    def _ask(
        self, request: HeadRequest, version: _Version, old_size: int, proof: Sequence[bytes]
    ) -> tuple[NoteSignature, ...]:
        wanted = CheckpointRequest(
            kid=str(self._name.version(version.number)),
            origin=self._origin,
            old_size=old_size,
            new_size=request.new.size,
            root=request.new.root.hex(),
            consistency=[each.hex() for each in proof],
        )
        with _log_errors():
            note = parse_note(self._client.checkpoint(wanted).note.encode())
        own = {key.key_id for key in version.keys(self._origin)}
        lines = tuple(line for line in note.signatures if line.name == self._origin and line.key_id in own)
        if note.text != compose_checkpoint(request.new) or len(lines) != len(own):
            raise LogUnavailable("the key service signed something else")
        return lines

    def _create(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _log_errors():
            content = _File(1, self._origin, str(self._name), (self._fetch(self._newest_number(), "active"),))
            with contextlib.suppress(FileExistsError):  # Another process was faster.
                create_private(self._path, msgspec.json.encode(content))

    def _newest_number(self) -> int:
        return _number_of(self._client.get_key(GetKeyRequest(kid=str(self._name))).versions[-1])

    def _fetch(self, number: int, state: Literal["pending", "active"]) -> _Version:
        answer = self._client.get_key(GetKeyRequest(kid=str(self._name.version(number))))
        publics = {_TYPES.get(each.alg): base64.b64decode(each.pubkey_b64) for each in answer.public.parts}
        if set(publics) != {ED25519, ML_DSA_44}:
            raise KeyFileError("the key is none of purpose tlog")
        return _Version(number, self._clock_s(), state, 0, publics[ED25519], publics[ML_DSA_44])

    def _read(self) -> _File:
        with _log_errors():
            try:
                content = msgspec.json.decode(read_private(self._path, MAX_FILE_BYTES), type=_File)
            except FileNotFoundError as error:
                raise LogUnavailable("the file of the log's public keys is gone") from error
            except msgspec.MsgspecError as error:
                raise KeyFileError("the file of the log's public keys has not its form") from error
        if (content.origin, content.key) != (self._origin, str(self._name)) or not content.active:
            raise KeyFileError("the file of public keys is that of another log or key")
        return content

    def _replace(self, content: _File, versions: list[_Version]) -> None:
        with _log_errors():
            replace_private(self._path, msgspec.json.encode(msgspec.structs.replace(content, versions=tuple(versions))))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_File]:
        with _log_errors(), changing(self._path):
            yield self._read()


def _number_of(kid: str) -> int:
    return int(kid.rpartition("#v")[2])


@contextlib.contextmanager
def _log_errors() -> Iterator[None]:
    """Turn what client and files raise into what the log understands."""
    try:
        yield
    except ConflictingHead as error:
        raise SignerRefused(f"the key service refused the head: {error.message}") from error
    except Conflict as error:
        size = (error.hint or "").removeprefix(SIGNED_SIZE_HINT)
        if error.hint is not None and error.hint.startswith(SIGNED_SIZE_HINT) and size.isdecimal() and len(size) < 20:
            raise SignerBehind(int(size)) from error
        raise LogUnavailable(f"the key service: {error.code.value}") from error
    except (KmsError, NoteError) as error:
        raise LogUnavailable(f"the key service: {getattr(error, 'reason', 'its note is none')}") from error
    except PrivateFileError as error:
        raise LogUnavailable(str(error)) from error
