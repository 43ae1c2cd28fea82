"""docs/reference/receipt.md freezes format v1: what it prints must be what the code makes, byte for byte."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from receipts import facts, receipt
from receipts.chain import ChainVerifier
from receipts.receipt import leaf_hash, parse_receipt, seal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from receipts.receipt import ReceiptDraft
    from receipts.receipt_id import WriterId

ROOT = Path(__file__).parents[3]
REFERENCE = (ROOT / "docs" / "reference" / "receipt.md").read_text("utf-8")
VECTORS = ROOT / "tests" / "vectors" / "receipts"
KINDS = ["decision", "body_verdict", "outcome", "summary", "log_event"]


@pytest.fixture
def chain(examples: Mapping[str, ReceiptDraft], writer: WriterId) -> dict[str, bytes]:
    """The five examples, sealed one after the other by one writer."""
    sealed: dict[str, bytes] = {}
    prev = None
    for wseq, kind in enumerate(KINDS, start=1):
        sealed[kind] = seal(examples[kind], writer, wseq, prev)
        prev = leaf_hash(sealed[kind])
    return sealed


def printed_example() -> bytes:
    (block,) = re.findall(r"```json receipt\n(.*?)\n```", REFERENCE, re.DOTALL)
    return str(block).encode()


def printed_hash(label: str) -> str:
    (value,) = re.findall(rf"{label}: `([0-9a-f]{{64}})`", REFERENCE)
    return str(value)


def test_the_vectors_are_what_the_code_seals(chain: dict[str, bytes]) -> None:
    assert {kind: (VECTORS / f"{kind}.json").read_bytes() for kind in KINDS} == chain
    hashes = json.loads((VECTORS / "leaf_hashes.json").read_text("ascii"))
    assert hashes == {kind: hashlib.sha256(b"\x00" + raw).hexdigest() for kind, raw in chain.items()}


def test_every_vector_file_has_its_row_and_checksum() -> None:
    readme = (VECTORS.parent / "receipts-README.md").read_text("utf-8")
    table = dict(re.findall(r"^\| (\S+/\S+) \|.*\| ([0-9a-f]{64}) \|$", readme, re.MULTILINE))
    files = [path for folder in ("jcs", "receipts") for path in (VECTORS.parent / folder).rglob("*") if path.is_file()]
    assert len(files) == 19
    for path in files:
        assert table[str(path.relative_to(VECTORS.parent))] == hashlib.sha256(path.read_bytes()).hexdigest(), path


def test_the_vectors_make_one_chain(chain: dict[str, bytes], writer: WriterId) -> None:
    chains = ChainVerifier()
    for kind in KINDS:
        chains.add((VECTORS / f"{kind}.json").read_bytes())
    assert chains.writers == {writer: len(chain)}


def test_the_printed_example_parses_and_hashes_as_printed(chain: dict[str, bytes]) -> None:
    raw = printed_example()
    assert raw == chain["decision"]
    assert parse_receipt(raw).id in REFERENCE
    assert printed_hash("SHA-256 of the bytes") == hashlib.sha256(raw).hexdigest()
    assert printed_hash("Leaf hash") == leaf_hash(raw).hex()
    assert f"{len(raw)} bytes" in REFERENCE


def rows(section: str) -> dict[str, list[str]]:
    """Read the table of the section whose heading ends in `section`: first cell to the other cells."""
    body = re.split(r"^#+ .*$", REFERENCE.split(f" {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in cells[2:]}


STRUCTS: dict[str, Any] = {
    "`request`": facts.RequestFacts,
    "`proof`": facts.ProofFacts,
    "`proof.signatures[]`": facts.SignatureFacts,
    "`policy`": facts.PolicyFacts,
    "`window`": facts.WindowFacts,
    "`outcome`": facts.OutcomeFacts,
    "`event`": facts.EventFacts,
}


@pytest.mark.parametrize("section", STRUCTS)
def test_every_member_has_a_row(section: str) -> None:
    assert set(rows(section)) == set(STRUCTS[section].__struct_fields__)


def test_the_kinds_table_names_every_member_of_every_kind() -> None:
    table = rows("Members by kind")
    structs = {kind: form.struct for kind, form in receipt._FORMS.items()}
    common = set.intersection(*(set(struct.__struct_fields__) for struct in structs.values()))
    assert set(rows("Members of every receipt")) == common | {"kind"}
    assert set(table) == set().union(*(set(struct.__struct_fields__) - common for struct in structs.values()))
    for member, cells in table.items():
        marked = {kind for kind, cell in zip(KINDS, cells, strict=True) if cell}
        assert marked == {kind for kind, struct in structs.items() if member in struct.__struct_fields__}, member
        nullable = {kind for kind, cell in zip(KINDS, cells, strict=True) if cell == "or null"}
        for kind in marked:
            field = next(each for each in msgspec.inspect.type_info(structs[kind]).fields if each.name == member)  # type: ignore[attr-defined]
            may_be_null = isinstance(field.type, msgspec.inspect.UnionType) and field.type.includes_none
            assert may_be_null == (kind in nullable), (member, kind)
