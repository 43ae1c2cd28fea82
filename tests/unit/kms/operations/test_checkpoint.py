from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest

from kms.errors import BadRequest, Conflict, ConflictingHead, KmsError, NoCapability, NotFound
from kms.messages import ChangeKeyStateRequest, CheckpointRequest, GetKeyRequest, RotateKeyRequest
from kms.principal import Scope
from kms.providers.inmem import InMemoryProvider
from receipts.checkpoint import verify_checkpoint
from receipts.cosignature import note_verifier
from receipts.merkle import EMPTY_ROOT
from receipts.merkle_prove import prove_consistency
from receipts.signed_note import ED25519, ML_DSA_44, VerifierKey, parse_note
from tests.support import merkle_reference as reference
from tests.support.kms_core import Bench, principal, running_core
from tests.support.log_parts import ORIGIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from receipts.signed_note import NoteVerifier

LEAVES = [reference.leaf(number) for number in range(64)]
OTHER = [reference.leaf(number + 1000) for number in range(64)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running_core() as bench:
        yield bench


async def tlog_key(bench: Bench) -> str:
    return await bench.create("hybrid", purpose="tlog")


def request(kid: str, old: int, new: int, leaves: list[bytes] = LEAVES, **changes: Any) -> CheckpointRequest:
    proof = prove_consistency(reference.LeafNodes(leaves), min(old, new), max(old, new))
    fields: dict[str, Any] = {
        "kid": kid,
        "origin": ORIGIN,
        "old_size": old,
        "new_size": new,
        "root": reference.mth(leaves[:new]).hex(),
        "consistency": [each.hex() for each in proof],
    }
    return CheckpointRequest(**{**fields, **changes})


async def verifiers(bench: Bench, kid: str) -> list[NoteVerifier]:
    parts = (await bench.call("get_key", GetKeyRequest(kid=kid))).public.parts
    types = {"ed25519": ED25519, "ml-dsa-44": ML_DSA_44}
    return [note_verifier(VerifierKey(ORIGIN, types[each.alg], base64.b64decode(each.pubkey_b64))) for each in parts]


async def test_a_head_is_signed_with_both_keys_as_the_logs_own_signer_does(bench: Bench) -> None:
    kid = await tlog_key(bench)
    for old, new in ((0, 3), (3, 7), (7, 64)):
        answer = await bench.call("checkpoint", request(kid, old, new))
        verified = verify_checkpoint(answer.note.encode(), await verifiers(bench, kid), ORIGIN)
        assert (verified.head.size, verified.head.root) == (new, reference.mth(LEAVES[:new]))
        assert {each.key.signature_type for each in verified.signatures} == {ED25519, ML_DSA_44}
        assert verified.time_s == bench.hand.clock.wall_ms() // 1000
        assert answer.kid == kid
    events = bench.audit.of("checkpoint")
    assert [event.detail["size"] for event in events] == ["3", "7", "64"]
    assert events[-1].detail["digest"] == bench.store.state_digest()
    assert events[-1].detail["epoch"] == str(bench.store.epoch)
    assert not bench.store.unaudited()


async def test_the_head_of_an_empty_log_can_be_signed(bench: Bench) -> None:
    kid = await tlog_key(bench)
    answer = await bench.call("checkpoint", request(kid, 0, 0))
    assert verify_checkpoint(answer.note.encode(), await verifiers(bench, kid), ORIGIN).head.root == EMPTY_ROOT
    assert (await bench.call("checkpoint", request(kid, 0, 5))).note


CONFLICTS: dict[str, tuple[dict[str, Any], type[KmsError], int]] = {
    "a stale size": ({"old": 3, "new": 20}, Conflict, 409),
    "a size that was never signed": ({"old": 11, "new": 20}, Conflict, 409),
    "from the beginning again": ({"old": 0, "new": 20}, Conflict, 409),
    "the same head from the beginning": ({"old": 0, "new": 10}, Conflict, 409),
    "another root of the same size": ({"old": 10, "new": 10, "leaves": OTHER}, ConflictingHead, 422),
    "a fork": ({"old": 10, "new": 20, "leaves": OTHER}, ConflictingHead, 422),
    "set back": ({"old": 10, "new": 5}, ConflictingHead, 422),
    "no proof": ({"old": 10, "new": 20, "consistency": []}, ConflictingHead, 422),
    "a proof too long": ({"old": 10, "new": 10, "consistency": ["00" * 32]}, ConflictingHead, 422),
    "a proof of zeros": ({"old": 10, "new": 20, "consistency": ["00" * 32] * 5}, ConflictingHead, 422),
    "another size than was proved": ({"old": 10, "new": 20, "new_size": 40}, ConflictingHead, 422),
    "another root than was proved": ({"old": 10, "new": 20, "root": "11" * 32}, ConflictingHead, 422),
    "an empty tree": ({"old": 10, "new": 0}, ConflictingHead, 422),
    "another log": ({"old": 10, "new": 20, "origin": "other.example/log"}, ConflictingHead, 422),
    "an origin with a control character": ({"old": 10, "new": 20, "origin": "a\x01b"}, BadRequest, 400),
}


@pytest.mark.parametrize(("change", "error", "status"), CONFLICTS.values(), ids=CONFLICTS)
async def test_what_does_not_extend_the_last_head_is_not_signed(
    bench: Bench, change: dict[str, Any], error: type[KmsError], status: int
) -> None:
    kid = await tlog_key(bench)
    await bench.call("checkpoint", request(kid, 0, 10))
    epoch = bench.store.epoch
    with pytest.raises(error) as caught:
        await bench.call("checkpoint", request(kid, **change))
    assert caught.value.http_status == status
    if status == 409:
        assert caught.value.hint == "signed_size=10"
    assert bench.store.epoch == epoch
    assert bench.audit.events[-1].result != "ok"
    assert (await bench.call("checkpoint", request(kid, 10, 20))).note


async def test_a_first_head_must_begin_with_the_empty_log(bench: Bench) -> None:
    kid = await tlog_key(bench)
    with pytest.raises(Conflict) as caught:
        await bench.call("checkpoint", request(kid, 5, 10))
    assert caught.value.hint == "signed_size=0"
    with pytest.raises(ConflictingHead):
        await bench.call("checkpoint", request(kid, 0, 0, root="11" * 32))


async def test_a_lost_answer_can_be_asked_for_again(bench: Bench) -> None:
    kid = await tlog_key(bench)
    first = await bench.call("checkpoint", request(kid, 0, 10))
    epoch = bench.store.epoch
    again = await bench.call("checkpoint", request(kid, 10, 10))
    assert parse_note(again.note.encode()).text == parse_note(first.note.encode()).text
    assert parse_note(again.note.encode()).signatures[0] == parse_note(first.note.encode()).signatures[0]
    assert bench.store.epoch == epoch


async def test_the_time_in_a_head_never_goes_back(bench: Bench) -> None:
    kid = await tlog_key(bench)
    verifying = await verifiers(bench, kid)
    first = await bench.call("checkpoint", request(kid, 0, 10))
    bench.hand.now_s -= 500
    second = await bench.call("checkpoint", request(kid, 10, 20))
    times = [verify_checkpoint(each.note.encode(), verifying, ORIGIN).time_s for each in (first, second)]
    assert times[0] == times[1]


async def test_of_two_forks_at_once_one_is_signed(bench: Bench) -> None:
    kid = await tlog_key(bench)
    asked = [request(kid, 0, size, leaves) for size in (5, 9) for leaves in (LEAVES, OTHER)]
    answers = await asyncio.gather(*(bench.call("checkpoint", each) for each in asked), return_exceptions=True)
    assert len([each for each in answers if not isinstance(each, BaseException)]) == 1
    assert all(isinstance(each, Conflict) for each in answers if isinstance(each, BaseException))


async def test_every_version_shares_one_memory(bench: Bench) -> None:
    kid = await tlog_key(bench)
    await bench.call("checkpoint", request(kid, 0, 10))
    second = (await bench.call("rotate", RotateKeyRequest(kid=kid))).kid
    with pytest.raises(ConflictingHead):
        await bench.call("checkpoint", request(second, 10, 20, OTHER))
    both = [
        await bench.call("checkpoint", request(kid, 10, 20)),
        await bench.call("checkpoint", request(second, 20, 20)),
    ]
    for each, of in zip(both, (kid, second), strict=True):
        assert verify_checkpoint(each.note.encode(), await verifiers(bench, of), ORIGIN).head.size == 20


async def test_only_enabled_tlog_keys_sign_heads_and_only_with_the_scope(bench: Bench) -> None:
    kid = await tlog_key(bench)
    plain = await bench.create("ed25519")
    with pytest.raises(BadRequest) as caught:
        await bench.call("checkpoint", request(plain, 0, 5))
    assert caught.value.reason == "not_tlog"
    with pytest.raises(NoCapability) as refused:
        await bench.sign(kid)
    assert refused.value.reason == "tlog_only"
    with pytest.raises(NoCapability):
        await bench.call("checkpoint", request(kid, 0, 5), who=principal("core", scopes=frozenset({Scope.READ})))
    with pytest.raises(NotFound):
        await bench.call("checkpoint", request(kid.replace("#v1", "#v2"), 0, 5))
    await bench.call("disable", ChangeKeyStateRequest(kid=kid))
    with pytest.raises(Conflict):
        await bench.call("checkpoint", request(kid, 0, 5))


async def test_the_last_head_is_remembered_over_a_restart_and_by_the_digest(tmp_path: Path) -> None:
    provider = InMemoryProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        kid = await tlog_key(bench)
        before = bench.store.state_digest()
        await bench.call("checkpoint", request(kid, 0, 10))
        after = bench.store.state_digest()
        assert before != after
    async with running_core(provider=provider, directory=tmp_path) as bench:
        assert bench.store.state_digest() == after
        with pytest.raises(ConflictingHead):
            await bench.call("checkpoint", request(kid, 10, 20, OTHER))
        assert (await bench.call("checkpoint", request(kid, 10, 20))).note


async def test_a_head_is_durable_before_it_is_signed(bench: Bench) -> None:
    kid = await tlog_key(bench)
    sizes = []
    real = bench.provider.sign

    def sign(handle: Any, primitive: Any, message: bytes) -> bytes:
        record = next(iter(bench.store.keys))
        sizes.append(record.last_head.size if record.last_head else None)
        return real(handle, primitive, message)

    bench.provider.sign = sign  # type: ignore[method-assign]
    await bench.call("checkpoint", request(kid, 0, 10))
    assert sizes == [10, 10]
