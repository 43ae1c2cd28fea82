"""Write tests/conformance/cases/*.json from the definitions beside this file.

    python -m tests.conformance.make_cases

Run it when a definition changed, and read the difference before it is committed: the files are what other
implementations are held to. ECDSA and ML-DSA signatures come out anew each time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conformance.definitions import (
    accepted,
    after_the_proof,
    answers,
    before_the_proof,
    client,
    client_relaxes,
    connection,
    evidence,
    fallback,
    keys_and_signatures,
    parsing,
    relaxed,
    syntax,
)
from tests.conformance.definitions.step import Case, step_json
from tests.conformance.definitions.world import KEYS, world_json

FOLDER = Path(__file__).with_name("cases")
VERIFIER: dict[str, tuple[Case, ...]] = {
    "accepted": accepted.CASES,
    "before-the-proof": before_the_proof.CASES,
    "syntax": syntax.CASES,
    "connection": connection.CASES,
    "keys-and-signatures": keys_and_signatures.CASES,
    "after-the-proof": after_the_proof.CASES,
    "evidence": evidence.CASES,
    "parsing": parsing.CASES,
    "fallback": fallback.CASES,
    "relaxed": relaxed.CASES,
    "answers": answers.CASES,
}
CLIENT: dict[str, tuple[dict[str, Any], ...]] = {
    "client-signs": client.SIGN,
    "client-reads": client.CHALLENGES,
    "client-answers": client.ANSWERED,
    "client-relaxes": (*client_relaxes.SIGN, *client_relaxes.ANSWERED),
}


def identifier(file: str, rule: str, title: str) -> str:
    """Name a case by its file and what it says."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{rule.partition(' ')[2]} {title}".lower()).strip("-")
    return f"{file}/{words}"


def documents() -> dict[str, Any]:
    """Everything, by file name."""
    files: dict[str, Any] = {"world.json": world_json(), "keys.json": [key.as_json() for key in KEYS.values()]}
    for file, cases in VERIFIER.items():
        files[f"{file}.json"] = [
            {
                "id": identifier(file, case.rule, case.title),
                "kind": "verify",
                "rule": case.rule,
                "title": case.title,
                "steps": [step_json(step, reason) for step, reason in case.steps],
            }
            for case in cases
        ]
    for file, rows in CLIENT.items():
        files[f"{file}.json"] = [{"id": identifier(file, row["rule"], row["title"]), **row} for row in rows]
    return files


def check_unique(ids: Iterable[str]) -> None:
    """Refuse two cases of one name."""
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise ValueError(f"two cases are called {each}")
        seen.add(each)


def main() -> None:
    """Write the files."""
    files = documents()
    check_unique(
        each["id"] for document in files.values() if isinstance(document, list) for each in document if "id" in each
    )
    for name, document in files.items():
        (FOLDER / name).write_text(json.dumps(document, indent=1, ensure_ascii=True) + "\n")
        sys.stdout.write(f"{name}: {len(document)}\n")


if __name__ == "__main__":
    main()
