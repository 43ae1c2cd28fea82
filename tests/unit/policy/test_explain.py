from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import policy.__main__ as policy_main
from policy.__main__ import EXIT_NO_VERDICT, EXIT_UNUSABLE, MAX_FILE_BYTES, UnusableInput, explain, main
from policy.bundle import PolicyBundle, bundle_bytes, bundle_digest
from policy.evaluator import StressFacts
from policy.wasm import WasmPolicy
from tests.support.opa_parts import opa_program
from tests.unit.policy.test_engines import ASKED, COMPILED, ROUTES, policy_data

ENGINE = WasmPolicy(COMPILED.read_bytes(), policy_data(ROUTES), {"shield.rego": "package signet.shield\n"})


def receipt(reason: str = "allowed", decision: str = "allow", **changes: Any) -> dict[str, Any]:
    stress = StressFacts(action="probe", epoch=4, errors_permille=505, slowness_permille=0, dwell_ms=1_000)
    asked = msgspec.structs.replace(ASKED, stress=stress, **changes)
    return {
        "kind": "decision",
        "id": "019aa56d-607b-7cd3-94eb-485fd695f47e",
        "decision": decision,
        "reason": reason,
        "policy": {"digest": ENGINE.digest, "input": json.loads(msgspec.json.encode(asked))},
    }


@pytest.mark.parametrize(
    ("stored", "allows", "decided_by"),
    [
        (receipt(), True, "policy"),
        (receipt("policy_denied", "deny", binding="none"), False, "policy"),
        (receipt("breaker_open", "deny"), True, "a later step"),
        (receipt("bad_content_digest", "deny"), True, "a later step"),
    ],
)
def test_the_replayed_question_gets_the_verdict_of_then(stored: dict[str, Any], allows: bool, decided_by: str) -> None:
    found = explain(stored, ENGINE.bundle)
    assert (found["verdict"]["allow"], found["agrees"], found["decided_by"]) == (allows, True, decided_by)
    assert found["plan"]["action"] == "probe"


@pytest.mark.parametrize(
    "stored",
    [receipt(binding="none"), receipt("policy_denied", "deny"), receipt("breaker_open", "deny", binding="none")],
)
def test_a_receipt_that_does_not_follow_from_its_policy_is_found(stored: dict[str, Any]) -> None:
    assert explain(stored, ENGINE.bundle)["agrees"] is False


def other_bundle(**changes: Any) -> bytes:
    values: dict[str, Any] = {"engine": "wasm", "modules": {}, "data": msgspec.Raw(b"{}"), "wasm": b"\x00asm"}
    return bundle_bytes(PolicyBundle(**values | changes))


@pytest.mark.parametrize("bundle", [other_bundle(), other_bundle(engine="opa"), b"{", b"[]", b'{"engine": 1}'])
def test_a_bundle_that_cannot_be_used_is_an_error(bundle: bytes) -> None:
    stored = receipt()
    stored["policy"]["digest"] = bundle_digest(bundle)
    with pytest.raises(UnusableInput):
        explain(stored, bundle)


OUTWARD = """package signet.shield

verdict := {{"allow": true, "rule": "x", "floor_share": 0, "fallback_classic": false}} if {{
	{}
}}
"""


def of_a_server(**changes: Any) -> bytes:
    source = (COMPILED.parents[1] / "shield.rego").read_text()
    values = {"engine": "opa", "modules": {"/policy/shield.rego": source}, "data": msgspec.Raw(policy_data(ROUTES))}
    return bundle_bytes(PolicyBundle(**values | changes))  # type: ignore[arg-type]


def decided_under(bundle: bytes, stored: dict[str, Any]) -> dict[str, Any]:
    return stored | {"policy": stored["policy"] | {"digest": bundle_digest(bundle)}}


@pytest.mark.parametrize(
    ("stored", "allows", "agrees"),
    [
        (receipt(), True, True),
        (receipt("policy_denied", "deny", binding="none"), False, True),
        (receipt("policy_denied", "deny"), True, False),
        (receipt(route="nowhere"), False, False),
    ],
)
def test_a_question_to_a_server_is_replayed_with_its_program(
    stored: dict[str, Any], allows: bool, agrees: bool
) -> None:
    bundle = of_a_server()
    found = explain(decided_under(bundle, stored), bundle, opa_program())
    assert (found["verdict"]["allow"], found["agrees"]) == (allows, agrees)


@pytest.mark.parametrize(
    "changes",
    [
        {"modules": {}},
        {"modules": {"a": "package signet.shield\n\nverdict := 1\n"}},
        {"modules": {"a": "package"}},
        {"modules": {"a": 'package signet.shield\n\nverdict := true if input.path == "/b"\n'}},
        {
            "modules": {
                "a": OUTWARD.format('http.send({"method": "get", "url": "http://127.0.0.1:1/", "raise_error": false})')
            }
        },
        {"modules": {"a": OUTWARD.format("opa.runtime()")}},
    ],
    ids=["none", "no verdict", "no Rego", "undefined", "network", "environment"],
)
def test_a_servers_policy_that_gives_no_verdict_is_an_error(changes: dict[str, Any]) -> None:
    bundle = of_a_server(**changes)
    with pytest.raises(UnusableInput, match="cannot be used"):
        explain(decided_under(bundle, receipt()), bundle, opa_program())


@pytest.mark.parametrize("program", [None, Path("/absent/opa"), Path("/bin/false")])
def test_without_the_program_a_servers_policy_cannot_be_asked(tmp_path: Path, program: Path | None) -> None:
    bundle = of_a_server()
    with pytest.raises(UnusableInput):
        explain(decided_under(bundle, receipt()), bundle, program)
    arguments = files(tmp_path, decided_under(bundle, receipt()))
    (tmp_path / "bundle").write_bytes(bundle)
    assert main([*arguments, "--opa", str(program or tmp_path / "absent")]) == EXIT_UNUSABLE
    assert main([*arguments, "--opa", str(opa_program())]) == 0


def test_a_bundle_other_than_the_one_it_was_decided_under_is_an_error() -> None:
    with pytest.raises(UnusableInput, match="another policy"):
        explain(receipt(), ENGINE.bundle + b" ")


@pytest.mark.parametrize("changes", [{"policy": None}, {"kind": "outcome"}, {"policy": 7}])
def test_a_receipt_that_no_policy_was_asked_about_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(UnusableInput, match="no decision"):
        explain(receipt() | changes, ENGINE.bundle)


@pytest.mark.parametrize("question", [None, [], {}, 7, {"v": 2}, {"time_ms": "late"}])
def test_a_receipt_without_its_question_is_an_error_and_no_traceback(
    tmp_path: Path, question: object, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = receipt()
    stored["policy"]["input"] = question
    with pytest.raises(UnusableInput, match="what policy was asked"):
        explain(stored, ENGINE.bundle)
    del stored["policy"]["input"]
    assert main(files(tmp_path, stored)) == EXIT_UNUSABLE
    assert "what policy was asked" in capsys.readouterr().err


@pytest.mark.parametrize("binding", ["tls-exporter", "none"])
def test_where_there_was_no_verdict_none_is_said_to_be_the_same(
    tmp_path: Path, binding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = receipt("policy_unavailable", "deny", binding=binding)
    found = explain(stored, ENGINE.bundle)
    assert (found["agrees"], found["decided_by"]) == (None, "no verdict")
    assert main(files(tmp_path, stored)) == EXIT_NO_VERDICT
    told = capsys.readouterr().out
    assert "there was no verdict then" in told
    assert "verdict of then" not in told
    assert "same verdict" not in told


class HalfRefusing:
    """A policy of one's own that allows the request, and says that no half of a hybrid may stand for it."""

    def __init__(self, *_: object) -> None:
        pass

    def query(self, _question: bytes) -> object:
        return {"allow": True, "rule": "own.allow", "floor_share": 0.5, "fallback_classic": False}


def test_a_refused_fallback_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(policy_main, "WasmPolicy", HalfRefusing)
    refused = receipt("policy_denied", "deny", fallback=True, phase="open")
    found = explain(refused, ENGINE.bundle)
    assert (found["agrees"], found["decided_by"]) == (True, "fallback")
    assert main(files(tmp_path, refused)) == 0
    told = capsys.readouterr().out
    assert "permits no classical half of a hybrid alone" in told
    assert told.endswith("the same verdict as then\n")
    passed = receipt(fallback=True, phase="open")
    assert explain(passed, ENGINE.bundle)["agrees"] is False, "it could not have passed"
    whole = receipt("policy_denied", "deny")
    assert explain(whole, ENGINE.bundle)["agrees"] is False, "no fallback, so nothing that could refuse it"


def files(folder: Path, stored: object) -> list[str]:
    (folder / "receipt.json").write_text(stored if isinstance(stored, str) else json.dumps(stored))
    (folder / "bundle").write_bytes(ENGINE.bundle)
    return ["explain", str(folder / "receipt.json"), "--bundle", str(folder / "bundle")]


def test_the_command_tells_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = files(tmp_path, receipt())
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "rule shield.allow" in told
    assert "probe: errors 50.5 %" in told
    assert told.endswith("the same verdict as then\n")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agrees"] is True
    assert main(files(tmp_path, receipt(binding="none"))) == 1
    assert "NOT the verdict" in capsys.readouterr().out
    stored = receipt()
    stored["policy"]["input"]["stress"] = None
    assert main(files(tmp_path, stored)) == 0
    assert "plan " not in capsys.readouterr().out


def test_the_command_tells_the_commit_that_the_receipt_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files(tmp_path, receipt())) == 0
    assert "commit" not in capsys.readouterr().out
    assert main(files(tmp_path, receipt(policy_commit="ab" * 20))) == 0
    assert f"git commit {'ab' * 20}" in capsys.readouterr().out


def test_a_receipt_from_before_commits_were_told_is_replayed(tmp_path: Path) -> None:
    stored = receipt()
    del stored["policy"]["input"]["policy_commit"]
    assert explain(stored | {"v": 2}, ENGINE.bundle)["agrees"] is True


@pytest.mark.parametrize("stored", ["", "[]", "{", "{}"])
def test_the_command_refuses_what_is_no_receipt(
    tmp_path: Path, stored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(files(tmp_path, stored)) == 2
    assert capsys.readouterr().err.startswith("policy: ")


def test_the_command_reads_no_file_beyond_its_bound_and_none_that_is_absent(tmp_path: Path) -> None:
    arguments = files(tmp_path, receipt())
    with (tmp_path / "bundle").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert main(arguments) == 2
    (tmp_path / "bundle").unlink()
    assert main(arguments) == 2
