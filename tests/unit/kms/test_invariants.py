"""docs/reference/kms-invariants.md names a test for every invariant and gate, and every test named exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "kms-invariants.md"
WANTED = [*(f"I-{n}" for n in range(1, 21)), *(f"PQ-I{n}" for n in range(1, 7)), *(f"G-{n}" for n in range(1, 16))]
NAMED = re.compile(r"^- `(tests/[\w/]+/test_\w+\.py)::(test_\w+)`$")


def read(text):
    """Give the tests that each heading's list names."""
    found, current = {}, None
    for line in text.splitlines():
        if line.startswith("### "):
            current = line.split()[1]
            assert current not in found, f"{current} stands there twice"
            found[current] = []
        elif line.startswith("- "):
            match = NAMED.match(line)
            assert match, f"no test is named by {line!r}"
            found[current].append(match.groups())
    return found


def collected_in(path):
    """List the functions of a file that pytest collects and does not skip."""
    if not path.exists():
        return set()
    functions = [
        each for each in ast.parse(path.read_text()).body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    skipping = ("pytest.mark.skip", "pytest.mark.xfail")
    return {
        each.name
        for each in functions
        if each.name.startswith("test_")
        and not any(ast.unparse(mark).startswith(skipping) for mark in each.decorator_list)
    }


def missing(text):
    """List the numbers without a test, and the tests that do not exist."""
    named = read(text)
    lacking = [each for each in WANTED if not named.get(each)]
    unknown = [
        f"{path}::{name}" for tests in named.values() for path, name in tests if name not in collected_in(ROOT / path)
    ]
    return lacking + unknown


def test_every_invariant_and_gate_has_tests_that_exist():
    assert missing(PAGE.read_text()) == []
    assert list(read(PAGE.read_text())) == WANTED


@pytest.mark.parametrize("number", ["I-6", "PQ-I3", "G-15"])
def test_a_missing_number_is_found(number):
    text = PAGE.read_text()
    cut = re.sub(rf"### {number} .*?(?=\n#|\Z)", "", text, flags=re.DOTALL)
    assert cut != text
    assert missing(cut) == [number]


def test_a_test_that_was_renamed_is_found():
    text = PAGE.read_text().replace("::test_nonces_never_repeat`", "::test_nonces_seldom_repeat`")
    assert missing(text) == ["tests/unit/kms/test_kem_envelope.py::test_nonces_seldom_repeat"]
