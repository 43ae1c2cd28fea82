"""The README inside a pack: for whoever opens it without knowing Signet."""

from __future__ import annotations

from typing import Final

_TEXT: Final = """\
Signet compliance pack
======================

Log:  {origin}
Day:  {date}, UTC{note}

Every decision that the log took in on this day, and what it takes to check that none of them was changed, added
later or left out. No service has to be asked: the checks below need this file alone.

To verify, with Python 3.11 or later and the package "cryptography" (50 or later):

    python verify.py pack.zip --trust jwks.json

jwks.json is the log's set of public keys. Get it another way than this pack, and not only now: a copy inside the
pack (keys/jwks.json) proves nothing about who made it. If you have an earlier pack, add "--since earlier.zip".
Take verify.py from this pack only if you have read it; any copy of the same version will do.

    exit status 0   valid
    exit status 1   invalid; the first receipt that fails is named
    exit status 2   the file is no pack, or beyond a bound; no verdict

What is here

    receipts.jsonl             one receipt on each line, in the order of the log, bytes as they were signed over
    checkpoint                 the signed tree head that everything leads to: C2SP tlog-checkpoint
    sth.json                   every tree head of the day, from the last one before it
    proofs/tile/               hash tiles, C2SP tlog-tiles
    proofs/inclusion/          sampled inclusion proofs, C2SP tlog-proof
    proofs/consistency.json    RFC 9162 consistency proofs from earlier tree sizes, among them that of the last pack
    proofs/predecessors.jsonl  the receipt before each writer's first one here
    keys/                      the log's keys as JWK set and as signed-note verifier keys; entries that introduced keys
    policy/                    the policy bundle in force when the pack was made, and its SHA-256
    cbom.json                  CycloneDX bill of the cryptography that all this rests on
    manifest.json              size and SHA-256 of every member
    verify.py                  the verifier

The zip's comment, its last line, is the SHA-256 of every byte before it.
"""


def readme(date: str, origin: str, *, complete: bool) -> str:
    """Write the README of one pack."""
    note = "" if complete else " (the day was not over when this was made)"
    return _TEXT.format(date=date, origin=origin, note=note)
