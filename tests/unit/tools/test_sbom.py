"""The bill of materials says what the locks say, is valid CycloneDX, and every package is locked by hash (G-9)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools import sbom
from tools.sbom import LOCKS, ROOT, LockError, bill, parse_lock, write_bill

LOCK = (ROOT / "requirements.lock").read_text()
HASH = "--hash=sha256:"
ONE = f"Some.Package==1.0 ; python_version < '3.13' \\\n    {HASH}{'a' * 64} \\\n    {HASH}{'b' * 64}\n    # via x\n"


def is_valid(text: str) -> bool:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def blocks(text: str) -> dict[tuple[str, str], set[str]]:
    """Read a lock in another way than the tool does: by its blocks."""
    found: dict[tuple[str, str], set[str]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + text):
        head = re.match(r"([A-Za-z0-9][\w.-]*)==(\S+)", block)
        if head is not None:
            found[head[1], head[2]] = set(re.findall(r"sha256:([0-9a-f]+)", block))
    return found


def listed(text: str) -> dict[tuple[str, str], set[str]]:
    return {
        (each["name"], each["version"]): {entry["content"] for entry in each["hashes"]}
        for each in json.loads(text)["components"]
    }


def test_the_bill_names_every_locked_package_with_its_hashes_and_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "build" / "sbom.cdx.json"
    count = write_bill(file)
    text = file.read_text()
    assert is_valid(text)
    expected = {key: hashes for name in LOCKS for key, hashes in blocks((ROOT / name).read_text()).items()}
    assert listed(text) == expected
    assert count == len(expected) > 100
    loaded = json.loads(text)
    assert (loaded["bomFormat"], loaded["specVersion"]) == ("CycloneDX", "1.6")
    assert all(each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}" for each in loaded["components"])
    (signet,) = [each for each in loaded["dependencies"] if each["ref"] == "signet"]
    assert sorted(signet["dependsOn"]) == sorted(each["bom-ref"] for each in loaded["components"])


def test_the_same_locks_give_the_same_bytes_and_others_do_not() -> None:
    packages = parse_lock(LOCK)
    text = bill(packages, "1.0")
    assert bill(reversed(packages), "1.0") == text
    assert "timestamp" not in json.loads(text)["metadata"]
    serials = {json.loads(each)["serialNumber"] for each in (text, bill(packages[1:], "1.0"), bill(packages, "1.1"))}
    assert len(serials) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda loaded: loaded["components"].append({"name": "no type"}),
        lambda loaded: loaded["components"][0]["hashes"][0].update(content="short"),
        lambda loaded: loaded.update(specVersion=1.6),
        lambda loaded: loaded.update(surprise=True),
    ],
)
def test_a_bill_that_is_not_valid_is_found(change: Any) -> None:
    loaded = json.loads(bill(parse_lock(ONE), "1.0"))
    assert is_valid(json.dumps(loaded))
    change(loaded)
    assert not is_valid(json.dumps(loaded))


def test_a_package_that_left_the_lock_or_lost_a_hash_is_seen() -> None:
    whole = listed(bill(parse_lock(LOCK), "1.0"))
    (name, version), hashes = next(iter(blocks(LOCK).items()))
    assert whole[name, version] == hashes
    assert listed(bill(parse_lock(LOCK)[1:], "1.0")) != whole
    fewer = LOCK.replace(f" \\\n    {HASH}{min(hashes)}", "", 1)
    assert fewer != LOCK
    assert listed(bill(parse_lock(fewer), "1.0")) != whole


def test_every_package_is_locked_by_hash() -> None:
    for name in LOCKS:
        packages = parse_lock((ROOT / name).read_text())
        assert packages
        assert all(package.sha256 for package in packages)
    assert len({(each.name, each.version) for each in parse_lock(LOCK)}) == len(blocks(LOCK))


def test_a_locked_package_is_read_whole() -> None:
    (package,) = parse_lock(ONE)
    assert (package.name, package.version) == ("some-package", "1.0")
    assert package.marker == 'python_version < "3.13"'
    assert package.sha256 == ("a" * 64, "b" * 64)
    (component,) = json.loads(bill([package], "1.0"))["components"]
    assert component["properties"] == [{"name": "signet:marker", "value": 'python_version < "3.13"'}]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("package==1.0", "no sha256 hash"),
        (f"package==1.0 \\\n    {HASH}{'a' * 63}", "not a pinned package"),
        (f"package==1.0 \\\n    --hash=md5:{'a' * 32}", "not a pinned package"),
        (f"package>=1.0 \\\n    {HASH}{'a' * 64}", "not pinned to one version"),
        (f"package==1.* \\\n    {HASH}{'a' * 64}", "not pinned to one version"),
        (f"package==1.0,!=1.1 \\\n    {HASH}{'a' * 64}", "not pinned to one version"),
        (f"package \\\n    {HASH}{'a' * 64}", "not pinned to one version"),
        (f"package @ https://packages.example/p.whl \\\n    {HASH}{'a' * 64}", "not pinned to one version"),
        ("--index-url https://packages.example/simple", "not a pinned package"),
        ("-e .", "not a pinned package"),
    ],
)
def test_a_line_that_pins_nothing_by_hash_is_refused(line: str, why: str) -> None:
    with pytest.raises(LockError, match=why):
        parse_lock(ONE + line + "\n")


def test_the_command_writes_the_file_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bill.json"
    monkeypatch.setattr("sys.argv", ["sbom.py", str(file)])
    assert sbom.main() == 0
    assert is_valid(file.read_text())
    assert str(file) in capsys.readouterr().out
