"""What the pages name is there: links and their headings, files, targets of make, modules that are run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("docs", "envoy", "extproc", "kms", "loadtest", "monitoring", "pch", "policy", "receipts", "scripts", "tools")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FILE = re.compile(
    rf"(?<![\w/.~-])(?:{'|'.join([*FOLDERS, 'deploy', 'tests'])})/[\w./-]+\.(?:c|h|json|md|py|rego|sh|toml|yaml|yml)\b"
)
QUOTED_TARGET = re.compile(r"`make ([a-z][a-z-]*)")
TARGET = re.compile(r"^ *make ([a-z][a-z-]*)", re.MULTILINE)
MODULE = re.compile(rf"python -m ((?:{'|'.join([*FOLDERS, 'tests'])})[a-z_.]*)")
TARGETS = re.compile(r"^([a-z][a-z -]*):", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", each) for each in HEADING.findall(FENCE.sub("", text))]
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


def leads_somewhere(link: str, page: Path, text: str) -> bool:
    name, _, anchor = link.partition("#")
    if name.startswith(("http:", "https:")):
        return True
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors(text if target == page else target.read_text()))


def targets(page: Path) -> set[str]:
    """The targets of our Makefile, and of the one beside the page."""
    files = {ROOT / "Makefile", page.parent / "Makefile"}
    text = "\n".join([each.read_text() for each in files if each.exists()])
    return {name for line in TARGETS.findall(text) for name in line.split()}


def is_module(name: str) -> bool:
    place = ROOT / name.rstrip(".").replace(".", "/")
    return place.with_suffix(".py").exists() or (place / "__main__.py").exists()


def faults(page: Path, text: str) -> set[str]:
    found = {link for link in LINK.findall(FENCE.sub("", text)) if not leads_somewhere(link, page, text)}
    found |= {each for each in FILE.findall(text) if not (ROOT / each).exists()}
    made = {*QUOTED_TARGET.findall(text), *TARGET.findall("\n".join(FENCE.findall(text)))}
    found |= {f"make {each}" for each in made - targets(page)}
    return found | {f"python -m {each}" for each in MODULE.findall(text) if not is_module(each)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_everything_that_a_page_names_is_there(page: Path) -> None:
    assert faults(page, page.read_text()) == set()


@pytest.mark.parametrize(
    "text",
    [
        "see [it](docs/reference/nothing.md)",
        "see [it](README.md#no-such-heading)",
        "see [it](#no-such-heading)",
        "`tests/e2e/test_nothing.py` shows it",
        "```sh\nmake nothing\n```",
        "`make nothing` does it",
        "`python -m kms.nothing serve`",
    ],
)
def test_what_is_not_there_is_found(text: str) -> None:
    assert len(faults(ROOT / "README.md", text)) == 1
    assert len(PAGES) > 40


def test_the_readme_counts_the_steps_of_the_guide() -> None:
    steps = re.findall(r"^## (\d+)\. ", (ROOT / "docs/guides/your-own-envoy.md").read_text(), re.MULTILINE)
    assert steps == [str(number) for number in range(1, 11)]
    assert "in ten steps" in (ROOT / "README.md").read_text()
