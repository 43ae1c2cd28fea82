"""The policy itself: its own tests by OPA, whole coverage, and the committed module is what its source gives."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import jsonschema
import msgspec
import pytest

from policy.evaluator import PolicyInput
from tests.support.opa_parts import opa_program
from tests.unit.policy.test_engines import ASKED

POLICY = Path(__file__).resolve().parents[3] / "policy"


def opa(*arguments: str) -> str:
    done = subprocess.run([opa_program(), *arguments], cwd=POLICY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_policys_own_tests_pass_and_cover_every_rule() -> None:
    told = json.loads(opa("test", "--coverage", "shield.rego", "shield_test.rego"))
    assert told["files"]["shield.rego"]["coverage"] == 100
    assert json.loads(opa("test", "--format=json", "shield.rego", "shield_test.rego"))


def test_the_source_is_formatted_and_strict() -> None:
    assert opa("fmt", "--diff", "shield.rego", "shield_test.rego") == ""
    opa("check", "--strict", "shield.rego", "shield_test.rego")


def test_the_committed_module_is_what_its_source_compiles_to(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    opa("build", "--target=wasm", "--entrypoint=signet/shield/verdict", f"--output={bundle}", "shield.rego")
    with tarfile.open(bundle) as archive:
        member = archive.extractfile("/policy.wasm")
        assert member is not None
        compiled = member.read()
    committed = (POLICY / "compiled/shield.wasm").read_bytes()
    assert hashlib.sha256(compiled).hexdigest() == hashlib.sha256(committed).hexdigest(), "run `make policy`"


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    document = json.loads((POLICY / "input.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


def test_the_schema_describes_the_input_member_for_member(schema: jsonschema.Draft202012Validator) -> None:
    document = schema.schema
    assert set(document["properties"]) == set(document["required"]) == set(PolicyInput.__struct_fields__)
    assert document["additionalProperties"] is False
    schema.validate(msgspec.to_builtins(ASKED) | {"key_ids": ["k"], "algorithms": ["ed25519"]})


@pytest.mark.parametrize("name", PolicyInput.__struct_fields__)
def test_the_schema_refuses_an_input_without_a_member_or_with_one_of_another_type(
    schema: jsonschema.Draft202012Validator, name: str
) -> None:
    whole = json.loads(msgspec.json.encode(ASKED))
    schema.validate(whole)
    assert not schema.is_valid({key: value for key, value in whole.items() if key != name})
    assert not schema.is_valid(whole | {name: 7.5})
