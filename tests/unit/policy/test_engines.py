"""One contract for both engines: the compiled policy in this process, and a real OPA server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from policy import opa
from policy.evaluator import PolicyError, PolicyEvaluator, PolicyInput, PolicyVerdict
from policy.opa import OpaPolicy, read_bundle
from policy.route_data import RoutePolicyData, policy_data
from policy.verdict import verdict_from
from policy.wasm import WasmPolicy
from tests.support.opa_parts import opa_program, opa_server

ROOT = Path(__file__).resolve().parents[3]
COMPILED = ROOT / "policy/compiled/shield.wasm"
ROUTES = {
    "plain": RoutePolicyData(
        binding="tls-exporter",
        subjects=(),
        algorithms=("ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"),
        mode="and",
        evidence="none",
        fallback_classic=False,
    ),
    "listed": RoutePolicyData(
        binding="tls-exporter",
        subjects=("alice",),
        algorithms=("ed25519",),
        mode="and",
        evidence="none",
        fallback_classic=False,
    ),
    "post_quantum": RoutePolicyData(
        binding="none",
        subjects=(),
        algorithms=("ed25519", "ml-dsa-65"),
        mode="pq_only",
        evidence="none",
        fallback_classic=False,
    ),
    "either": RoutePolicyData(
        binding="tls-exporter",
        subjects=(),
        algorithms=("ed25519+ml-dsa-65", "ml-dsa-65"),
        mode="and",
        evidence="required",
        fallback_classic=True,
    ),
}
ASKED = PolicyInput(
    time_ms=1,
    route="plain",
    method="GET",
    authority="app.example",
    path="/a",
    subject="alice",
    key_ids=("k",),
    algorithms=("ed25519",),
    binding="tls-exporter",
    mode="and",
    evidence=False,
    body_bytes=0,
)


@dataclass(frozen=True)
class Engines:
    wasm: WasmPolicy
    opa: OpaPolicy

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.wasm, self.opa))


@pytest.fixture(scope="module")
def opa_port(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    data = tmp_path_factory.mktemp("opa") / "data.json"
    data.write_bytes(policy_data(ROUTES))
    with opa_server(ROOT / "policy/shield.rego", data) as (port, _):
        yield port


@contextlib.asynccontextmanager
async def opa_policy(port: int, timeout_s: float = 5.0, commit: str | None = None) -> AsyncIterator[OpaPolicy]:
    engine = OpaPolicy("127.0.0.1", port, timeout_s=timeout_s, commit=commit)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def engines(opa_port: int) -> AsyncIterator[Engines]:
    async with opa_policy(opa_port) as opa:
        yield Engines(WasmPolicy(COMPILED.read_bytes(), policy_data(ROUTES)), opa)


def asked(**changes: object) -> PolicyInput:
    return msgspec.structs.replace(ASKED, **changes)


def refused(rule: str, *, fallback: bool = False) -> PolicyVerdict:
    return PolicyVerdict(allow=False, rule=rule, floor_share=0.05, fallback_classic=fallback)


def allowed(*, fallback: bool = False) -> PolicyVerdict:
    return PolicyVerdict(allow=True, rule="shield.allow", floor_share=0.05, fallback_classic=fallback)


@pytest.mark.parametrize(
    ("question", "verdict"),
    [
        (asked(), allowed()),
        (asked(route="nowhere"), refused("route.unknown")),
        (asked(binding="none"), refused("binding.required")),
        (asked(route="listed"), allowed()),
        (asked(route="listed", subject="bob"), refused("subject.not_admitted")),
        (asked(algorithms=()), refused("algorithm.missing")),
        (asked(algorithms=("ecdsa-p256-sha256",)), refused("algorithm.not_allowed")),
        (asked(algorithms=("ed25519", "ml-dsa-65")), allowed()),
        (asked(route="post_quantum", binding="none"), refused("algorithm.post_quantum_missing")),
        (asked(route="post_quantum", algorithms=("ml-dsa-65",)), allowed()),
        (asked(fallback=True, phase="open"), refused("fallback.not_permitted")),
        (asked(route="either", fallback=True, evidence=True, phase="open"), allowed(fallback=True)),
        (asked(route="either", fallback=True, evidence=True), refused("fallback.not_needed", fallback=True)),
        (asked(route="either", evidence=True), refused("algorithm.not_allowed", fallback=True)),
        (asked(route="either", evidence=True, algorithms=("ml-dsa-65",)), allowed(fallback=True)),
        (asked(route="either", algorithms=("ml-dsa-65",)), refused("evidence.missing", fallback=True)),
        (asked(path='/ä\u0000"\\', subject="ü" * 200), allowed()),
    ],
)
async def test_both_engines_give_the_same_verdict(
    engines: Engines, question: PolicyInput, verdict: PolicyVerdict
) -> None:
    for engine in engines:
        assert await engine.evaluate(question) == verdict


async def test_evaluations_do_not_see_each_other(engines: Engines) -> None:
    for engine in engines:
        for number in range(200):
            expected = allowed() if number % 2 else refused("binding.required")
            question = asked(binding="tls-exporter" if number % 2 else "none", path="/" + "x" * (number * 37))
            assert await engine.evaluate(question) == expected


async def test_the_bundle_holds_what_decides_and_the_digest_is_of_it(engines: Engines) -> None:
    await engines.opa.refresh()
    for engine in engines:
        assert hashlib.sha256(engine.bundle).hexdigest() == engine.digest
    wasm, opa = (msgspec.json.decode(engine.bundle) for engine in engines)
    assert wasm["data"] == opa["data"] == json.loads(policy_data(ROUTES))
    assert base64.b64decode(wasm["wasm"]) == COMPILED.read_bytes()
    assert list(opa["modules"].values()) == [(ROOT / "policy/shield.rego").read_text()]


async def test_the_digest_changes_with_the_policy_and_with_its_data(engines: Engines, opa_port: int) -> None:
    module, data = COMPILED.read_bytes(), policy_data(ROUTES)
    other_data = policy_data({"plain": ROUTES["plain"]})
    assert WasmPolicy(module, data).digest == engines.wasm.digest
    assert WasmPolicy(module, other_data).digest != engines.wasm.digest
    await engines.opa.refresh()
    assert engines.opa.bundle == await asyncio.to_thread(read_bundle, "127.0.0.1", opa_port, timeout_s=5.0)
    async with opa_policy(opa_port) as again:
        await again.refresh()
        assert again.digest == engines.opa.digest
    # A custom section changes no rule, and yet it is another module.
    assert WasmPolicy(module + b"\x00\x02\x01x", data).digest != engines.wasm.digest


# The embedded engine alone


@pytest.mark.parametrize(
    "module",
    [
        b"",
        b"\x00asm\x01\x00\x00\x00",
        COMPILED.read_bytes()[:-1],
        COMPILED.read_bytes()[:1000],
        b"\x00" * (4 * 1024 * 1024 + 1),
    ],
    ids=["nothing", "empty module", "one byte short", "cut", "too large"],
)
def test_what_is_no_compiled_policy_is_refused(module: bytes) -> None:
    with pytest.raises(PolicyError):
        WasmPolicy(module, b"{}")


@pytest.mark.parametrize("data", [b"{", b"nonsense", b'{"a": }'])
def test_data_that_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyError):
        WasmPolicy(COMPILED.read_bytes(), data)


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"signet":{}}', b'{"signet":{"routes":{"plain":7}}}'])
async def test_a_table_that_is_not_there_admits_nobody(data: bytes) -> None:
    engine = WasmPolicy(COMPILED.read_bytes(), data)
    assert not (await engine.evaluate(ASKED)).allow


@pytest.mark.parametrize("text", [b"", b"{", b"nonsense", b'{"a": }', b"[]", b"7", b"null", b"{}"])
def test_an_input_that_is_no_question_is_not_allowed(text: bytes) -> None:
    engine = WasmPolicy(COMPILED.read_bytes(), policy_data(ROUTES))
    assert not verdict_from(engine.query(text)).allow


def test_an_input_beyond_the_bound_is_an_error_and_the_next_one_is_answered() -> None:
    engine = WasmPolicy(COMPILED.read_bytes(), policy_data(ROUTES))
    with pytest.raises(PolicyError, match="too large"):
        engine.query(json.dumps({"path": "x" * 70_000}).encode())
    assert engine.query(msgspec.json.encode(ASKED)) == msgspec.to_builtins(allowed())


def test_memory_does_not_grow_with_the_number_of_evaluations() -> None:
    engine = WasmPolicy(COMPILED.read_bytes(), policy_data(ROUTES))
    question = msgspec.json.encode(asked(path="/" + "x" * 10_000))
    engine.query(question)
    before = engine._memory.data_len(engine._store)
    for _ in range(500):
        engine.query(question)
    assert engine._memory.data_len(engine._store) == before


def test_what_stops_midway_spoils_no_later_evaluation() -> None:
    """Without a fresh instance its stack pointer creeps: after some thousand stops nothing is answered any more."""
    engine = WasmPolicy(COMPILED.read_bytes(), policy_data(ROUTES))
    question, enough = msgspec.json.encode(ASKED), engine._fuel
    for stop in range(3_000):
        engine._fuel = 20_000 + stop if stop % 2 else 60_000
        with contextlib.suppress(PolicyError):
            engine.query(question)
    engine._fuel = enough
    assert engine.query(question) == msgspec.to_builtins(allowed())
    assert engine.query(msgspec.json.encode(asked(subject="x", route="nowhere"))) != msgspec.to_builtins(allowed())


def test_as_many_subjects_as_a_route_may_name_are_looked_through() -> None:
    names = tuple(f"spiffe://example.org/tenant/customer-{number:06d}" for number in range(10_000))
    table = {"plain": msgspec.structs.replace(ROUTES["plain"], subjects=names)}
    engine = WasmPolicy(COMPILED.read_bytes(), policy_data(table))
    last, nobody = asked(subject=names[-1]), asked(subject="nobody")
    assert verdict_from(engine.query(msgspec.json.encode(last))).allow
    assert verdict_from(engine.query(msgspec.json.encode(nobody))) == refused("subject.not_admitted")


def test_more_data_than_fits_is_a_policy_that_cannot_be_used() -> None:
    names = tuple(f"spiffe://example.org/tenant/customer-{number:06d}" for number in range(10_000))
    table = {str(number): msgspec.structs.replace(ROUTES["plain"], subjects=names) for number in range(8)}
    with pytest.raises(PolicyError, match="cannot be used"):
        WasmPolicy(COMPILED.read_bytes(), policy_data(table))


# The server alone


async def test_a_server_that_is_not_there_denies(opa_port: int) -> None:
    with opa_server(ROOT / "policy/shield.rego") as (port, server):
        async with opa_policy(port) as engine:
            assert not (await engine.evaluate(ASKED)).allow
            server.kill()
            server.wait()
            with pytest.raises(PolicyError, match="no answer"):
                await engine.evaluate(ASKED)
            with pytest.raises(PolicyError, match="did not tell"):
                await engine.refresh()
    absent = OpaPolicy("127.0.0.1", port, timeout_s=1.0)
    with pytest.raises(PolicyError):
        await absent.evaluate(ASKED)
    assert (absent.bundle, absent.digest) == (b"", hashlib.sha256(b"").hexdigest())
    await absent.close()


async def test_a_server_that_hangs_denies_every_question_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with opa_server(ROOT / "policy/shield.rego") as (port, server):
        async with opa_policy(port, timeout_s=0.5) as engine:
            await engine.refresh()
            server.send_signal(signal.SIGSTOP)
            try:
                for age_s in (opa.MAX_BUNDLE_AGE_S, -1.0):
                    monkeypatch.setattr(opa, "MAX_BUNDLE_AGE_S", age_s)
                    async with asyncio.timeout(10):
                        answers = await asyncio.gather(
                            *(engine.evaluate(ASKED) for _ in range(40)), return_exceptions=True
                        )
                    assert {type(answer) for answer in answers} == {PolicyError}
            finally:
                server.send_signal(signal.SIGCONT)


async def test_more_questions_than_the_bound_are_denied_and_not_queued(
    opa_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opa_policy(opa_port) as engine:
        await engine.refresh()
        monkeypatch.setattr(opa, "MAX_IN_FLIGHT", 2)
        answers = await asyncio.gather(*(engine.evaluate(ASKED) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [PolicyVerdict, PolicyVerdict, PolicyError]
        assert (await engine.evaluate(ASKED)).allow


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "verdict := 1",
        "verdict := true",
        'verdict := {"allow": "true", "rule": "x", "floor_share": 0, "fallback_classic": false}',
        'verdict := {"allow": true}',
        'verdict := {"allow": true, "rule": "", "floor_share": 0.1, "fallback_classic": false}',
        'verdict := {"allow": true, "rule": "x", "floor_share": 2, "fallback_classic": false}',
        'verdict := {"allow": true, "rule": "x", "floor_share": 0.1, "fallback_classic": false, "more": 1}',
        'verdict := {"allow": true, "rule": "x", "floor_share": 0.1, "fallback_classic": false} if input.nonsense',
    ],
)
async def test_whatever_is_no_verdict_denies(rule: str, tmp_path: Path) -> None:
    module = tmp_path / "odd.rego"
    module.write_text(f"package signet.shield\n\nimport rego.v1\n\nother := 1\n\n{rule}\n")
    with opa_server(module) as (port, _):
        async with opa_policy(port) as engine:
            with pytest.raises(PolicyError):
                await engine.evaluate(ASKED)


async def test_a_change_of_the_servers_policy_is_seen_by_a_refresh(tmp_path: Path) -> None:
    module = tmp_path / "one.rego"
    module.write_text((ROOT / "policy/shield.rego").read_text())
    with opa_server(module) as (port, _):
        async with opa_policy(port) as engine:
            await engine.refresh()
            before = engine.digest
            await engine._client.update_or_create_data({"plain": {}}, "signet/routes")
            await engine.refresh()
            assert engine.digest != before


async def test_an_answer_goes_with_no_older_policy_than_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "one.rego"
    module.write_text((ROOT / "policy/shield.rego").read_text())
    with opa_server(module) as (port, _):
        async with opa_policy(port) as engine, opa_policy(port) as other:
            await engine.evaluate(ASKED)
            before = engine.digest
            await engine._client.update_or_create_data(json.loads(policy_data(ROUTES))["signet"], "signet")
            assert (await engine.evaluate(ASKED)).allow
            assert engine.digest == before, "within the bound it is not asked again"
            monkeypatch.setattr(opa, "MAX_BUNDLE_AGE_S", -1.0)
            assert (await engine.evaluate(ASKED)).allow
            await other.refresh()
            assert engine.digest == other.digest != before


def test_both_are_evaluators(opa_port: int) -> None:
    engine: PolicyEvaluator = WasmPolicy(COMPILED.read_bytes(), b"{}")
    assert len(engine.digest) == 64


# The git commit that a policy is of

COMMIT = "0123456789abcdef" * 2 + "01234567"


def bundle_of(folder: Path, revision: str) -> Path:
    (folder / "src/signet/routes").mkdir(parents=True)
    (folder / "src/signet/routes/data.json").write_bytes(msgspec.json.encode(ROUTES))
    (folder / "src/shield.rego").write_text((ROOT / "policy/shield.rego").read_text())
    command = [opa_program(), "build", "--bundle", "src", "--revision", revision, "--output", "b.tar.gz"]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder / "b.tar.gz"


@pytest.mark.parametrize(("revision", "said"), [(COMMIT, True), ("v7", False), ("", False)])
async def test_a_servers_bundle_decides_and_its_revision_is_the_commit(
    tmp_path: Path, revision: str, said: bool
) -> None:
    with opa_server(bundle_of(tmp_path, revision), options=("--bundle",)) as (port, _):
        async with opa_policy(port, commit="f" * 40) as engine:
            assert await engine.evaluate(ASKED) == allowed()
            assert await engine.evaluate(asked(binding="none")) == refused("binding.required")
        assert engine.commit == (COMMIT if said else "f" * 40)
        told = msgspec.json.decode(engine.bundle)
        assert told["commit"] == engine.commit
        assert list(told["modules"].values()) == [(ROOT / "policy/shield.rego").read_text()]


async def test_without_a_bundle_the_commit_is_the_operators_word_or_none(opa_port: int) -> None:
    for commit in (COMMIT, None):
        async with opa_policy(opa_port, commit=commit) as server:
            await server.refresh()
        wasm = WasmPolicy(COMPILED.read_bytes(), policy_data(ROUTES), commit=commit)
        for engine in (server, wasm):
            assert engine.commit == commit
            assert msgspec.json.decode(engine.bundle)["commit"] == commit


@pytest.mark.parametrize("bundles", [None, {}, [], {"a": 1}, {"a": {"manifest": {"revision": 7}}}, {"a": {}}])
def test_what_names_no_one_revision_names_none(bundles: object) -> None:
    assert opa._revision(bundles) is None
    one = {"manifest": {"revision": COMMIT}}
    assert opa._revision({"a": one}) == COMMIT
    assert opa._revision({"a": one, "b": one}) is None
