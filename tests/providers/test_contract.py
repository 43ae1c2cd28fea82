"""What `kms.providers.provider.Provider` promises, over every provider and every primitive that it claims."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from typing import TYPE_CHECKING

import pytest
from cryptography.exceptions import InvalidSignature

from kms.errors import BadRequest, KmsError, NotFound, TooLarge, Unsupported
from kms.primitive import SIGNING, Primitive
from kms.providers.key_handle import check_handle_binding
from kms.providers.provider import KeyHandle, Provider
from tests.support.provider_parts import kid_of, use
from tests.support.public_operations import SIGNATURE_BYTES, encapsulate, exchange, verify

if TYPE_CHECKING:
    from kms.providers.provider import ProviderKey

DIGEST = bytes(range(32))
UNKNOWN = KeyHandle("00" * 32)
SIGNERS = sorted(SIGNING)
# Every attribute of the protocol and nothing else: a provider has no method by which a private key could leave (I-1).
VERBS = {
    *("generate", "sign", "agree", "decapsulate", "derive", "wrap", "unwrap", "destroy", "attest", "check", "close"),
    *("name", "attestation_class", "primitives", "wraps_itself", "in_process", "max_keys"),
}


def claimed(provider: Provider, primitive: Primitive) -> ProviderKey | None:
    """Make a key; None, after checking the refusal, where the provider does not claim the primitive."""
    if primitive not in provider.primitives:
        with pytest.raises(Unsupported):
            provider.generate(primitive, kid_of(primitive))
        return None
    return provider.generate(primitive, kid_of(primitive))


@pytest.mark.parametrize("primitive", SIGNERS)
def test_a_signature_verifies_and_its_mutated_twins_do_not(provider: Provider, primitive: Primitive) -> None:
    key = claimed(provider, primitive)
    if key is None:
        return
    signature = provider.sign(key.handle, primitive, DIGEST)
    assert len(signature) == SIGNATURE_BYTES[primitive]
    verify(primitive, key.public, DIGEST, signature)
    for position in (0, len(signature) // 2, len(signature) - 1):
        altered = bytearray(signature)
        altered[position] ^= 1
        with pytest.raises((InvalidSignature, ValueError)):
            verify(primitive, key.public, DIGEST, bytes(altered))
    with pytest.raises(InvalidSignature):
        verify(primitive, key.public, DIGEST[::-1], signature)
    other = provider.generate(primitive, kid_of(primitive, 2))
    assert other.public != key.public
    with pytest.raises(InvalidSignature):
        verify(primitive, other.public, DIGEST, signature)


@pytest.mark.parametrize("primitive", SIGNERS)
def test_messages_that_are_no_digest_are_signed_as_they_are(provider: Provider, primitive: Primitive) -> None:
    """A tree head's text is longer than a digest."""
    key = claimed(provider, primitive)
    if key is None:
        return
    for message in (b"", b"x", b"example.com/log\n1\nAAAA\n" * 20):
        verify(primitive, key.public, message, provider.sign(key.handle, primitive, message))
    with pytest.raises(TooLarge):
        provider.sign(key.handle, primitive, bytes(4097))


@pytest.mark.parametrize("primitive", list(Primitive))
def test_a_handle_is_bound_to_its_kid_and_primitive(provider: Provider, primitive: Primitive) -> None:
    key = claimed(provider, primitive)
    if key is None:
        return
    assert key.primitive is primitive
    check_handle_binding(key.handle, kid_of(primitive), primitive)
    other = Primitive.X25519 if primitive is not Primitive.X25519 else Primitive.ED25519
    for kid, wrong in ((kid_of(primitive, 2), primitive), (kid_of(primitive, 1, "evil"), primitive)):
        with pytest.raises(NotFound):
            check_handle_binding(key.handle, kid, wrong)
    with pytest.raises(NotFound):
        check_handle_binding(key.handle, kid_of(primitive), other)


def test_x25519_agrees_with_its_peer_and_refuses_what_gives_zeros(provider: Provider) -> None:
    key = claimed(provider, Primitive.X25519)
    if key is None:
        return
    if provider.wraps_itself:
        assert key.public == b""
        with pytest.raises(Unsupported):
            provider.agree(key.handle, bytes(range(32)))
        return
    ours, secret = exchange(key.public)
    assert provider.agree(key.handle, ours) == secret
    changed = bytes([ours[0] ^ 1]) + ours[1:]
    assert provider.agree(key.handle, changed) != secret
    for peer in (bytes(32), b"\1" + bytes(31), ours[:-1], ours + b"\0", b""):
        with pytest.raises(BadRequest):
            provider.agree(key.handle, peer)


def test_ml_kem_decapsulates_and_an_altered_ciphertext_gives_another_secret(provider: Provider) -> None:
    key = claimed(provider, Primitive.ML_KEM_768)
    if key is None:
        return
    if provider.wraps_itself:
        assert key.public == b""
        with pytest.raises(Unsupported):
            provider.decapsulate(key.handle, bytes(1088))
        return
    ciphertext, secret = encapsulate(key.public)
    assert provider.decapsulate(key.handle, ciphertext) == secret
    altered = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    rejected = provider.decapsulate(key.handle, altered)
    assert rejected != secret
    assert rejected == provider.decapsulate(key.handle, altered)
    for wrong in (ciphertext[:-1], ciphertext + b"\0", b""):
        with pytest.raises(BadRequest):
            provider.decapsulate(key.handle, wrong)


@pytest.mark.parametrize("primitive", list(Primitive))
def test_children_are_the_same_for_the_same_root_and_context_only(provider: Provider, primitive: Primitive) -> None:
    root = claimed(provider, Primitive.HKDF_ROOT)
    if root is None:
        return
    assert root.public == b""
    info = b"ron-kms::acme::auth::ctx"
    child = provider.derive(root.handle, info, primitive, kid_of(primitive))
    again = provider.derive(root.handle, info, primitive, kid_of(primitive))
    assert child.handle != again.handle
    if primitive is Primitive.HKDF_ROOT:  # it has no public half: its children tell
        below = [
            provider.derive(parent.handle, b"x", Primitive.ED25519, kid_of(Primitive.ED25519)).public
            for parent in (child, again, root)
        ]
        assert below[0] == below[1] != below[2]
        return
    other_root = provider.generate(Primitive.HKDF_ROOT, kid_of(Primitive.HKDF_ROOT, 2))
    assert child.public == again.public
    assert child.public != provider.derive(root.handle, info + b"2", primitive, kid_of(primitive)).public
    assert child.public != provider.derive(other_root.handle, info, primitive, kid_of(primitive)).public
    if primitive.signs:
        verify(primitive, child.public, DIGEST, provider.sign(again.handle, primitive, DIGEST))


def test_a_derivation_wants_a_bounded_context(provider: Provider) -> None:
    root = claimed(provider, Primitive.HKDF_ROOT)
    if root is None:
        return
    with pytest.raises(BadRequest):
        provider.derive(root.handle, b"", Primitive.ED25519, kid_of(Primitive.ED25519))
    with pytest.raises(TooLarge):
        provider.derive(root.handle, bytes(1025), Primitive.ED25519, kid_of(Primitive.ED25519))


@pytest.mark.parametrize("primitive", list(Primitive))
def test_a_key_does_only_its_own_verb(provider: Provider, primitive: Primitive) -> None:
    key = claimed(provider, primitive)
    if key is None:
        return
    refused = (NotFound, Unsupported)
    for other in Primitive:
        if other is not primitive or not primitive.signs:
            with pytest.raises(refused):
                provider.sign(key.handle, other, DIGEST)
    if primitive is not Primitive.X25519:
        with pytest.raises(refused):
            provider.agree(key.handle, bytes(range(32)))
    if primitive is not Primitive.ML_KEM_768:
        with pytest.raises(refused):
            provider.decapsulate(key.handle, bytes(1088))
    if primitive is not Primitive.HKDF_ROOT:
        with pytest.raises(refused):
            provider.derive(key.handle, b"x", Primitive.ED25519, kid_of(Primitive.ED25519))
    if not provider.wraps_itself:
        with pytest.raises(Unsupported):
            provider.wrap(key.handle, b"secret", b"")
        with pytest.raises(Unsupported):
            provider.unwrap(key.handle, b"secret", b"")


@pytest.mark.parametrize("primitive", list(Primitive))
def test_a_destroyed_key_is_gone(provider: Provider, primitive: Primitive) -> None:
    key = claimed(provider, primitive)
    if key is None:
        return
    provider.destroy(key.handle)
    provider.destroy(key.handle)
    if provider.wraps_itself:
        return  # a handle is a name there: docs/reference/kms-providers.md says so
    with pytest.raises(NotFound):
        use(provider, primitive, key.handle)


@pytest.mark.parametrize("handle", [UNKNOWN, "", "x", "../" * 20, "0" * 63, "G" * 64, "00" * 32 + "\n", "00" * 33])
def test_a_handle_from_nowhere_is_refused(provider: Provider, handle: str) -> None:
    if provider.wraps_itself and handle in {UNKNOWN, ""}:
        return  # any well-formed name wraps, and the empty one is the service's own
    for primitive in provider.primitives:
        with pytest.raises(NotFound):
            use(provider, primitive, KeyHandle(handle))
    with pytest.raises((NotFound, Unsupported)):
        provider.attest(KeyHandle(handle), b"nonce")


def test_many_threads_use_one_provider(provider: Provider) -> None:
    signers = [primitive for primitive in SIGNERS if primitive in provider.primitives]
    keys = [provider.generate(primitive, kid_of(primitive)) for primitive in signers]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                for key in keys:
                    verify(key.primitive, key.public, DIGEST, provider.sign(key.handle, key.primitive, DIGEST))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert failures == []


def test_it_says_how_many_key_parts_it_may_hold(provider: Provider) -> None:
    """docs/reference/kms-core.md: a tenant may have half of them."""
    bounds = {"inmem": 32_768, "file": 16_384, "tpm": 4_096, "pkcs11": None, "cloud": None}
    assert provider.max_keys == bounds[provider.name]


def test_no_member_gives_a_private_key_out(provider: Provider) -> None:
    public = {name for name, _ in inspect.getmembers(type(provider)) if not name.startswith("_")}
    instance = {name for name in vars(provider) if not name.startswith("_")}
    # Beside the protocol's members, a TPM has a counter for the audit log.
    assert (public | instance) - {"audit_counter"} == VERBS
    for member in sorted(public & VERBS):
        verb = getattr(type(provider), member)
        returns = str(inspect.get_annotations(verb).get("return", "")) if callable(verb) else ""
        assert "Private" not in returns
        assert "SecretBuffer" not in returns


def test_a_provider_is_not_pickled_or_copied(provider: Provider) -> None:
    if provider.primitives:
        provider.generate(min(provider.primitives), kid_of(min(provider.primitives)))
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(provider)
    with pytest.raises((TypeError, AttributeError)):
        copy.deepcopy(provider)


def test_check_tells_of_a_provider_that_can_serve(provider: Provider) -> None:
    provider.check()


def test_errors_name_no_handle_and_no_path(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> None:
    unknown = KeyHandle("x" * 64) if provider.wraps_itself else UNKNOWN
    for primitive in provider.primitives:
        with pytest.raises(KmsError) as caught:
            use(provider, primitive, unknown)
        assert unknown not in caught.value.message
        assert str(tmp_path_factory.getbasetemp()) not in caught.value.message
