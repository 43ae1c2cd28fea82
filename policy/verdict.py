"""Read an engine's answer: strictly, for whatever is not a verdict denies."""

from __future__ import annotations

from typing import Final

import msgspec

from policy.evaluator import PolicyError, PolicyVerdict

ENTRYPOINT: Final = "signet/shield/verdict"
"""The rule that every engine is asked for."""


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rule's value with every member present: a default here would answer in the policy's stead."""

    allow: bool
    rule: str
    floor_share: float
    fallback_classic: bool


def verdict_from(value: object) -> PolicyVerdict:
    """Turn the value of `signet.shield.verdict` into a verdict. Raises PolicyError for anything else."""
    try:
        answer = msgspec.convert(value, _Answer, strict=True)
        return msgspec.convert(msgspec.to_builtins(answer), PolicyVerdict, strict=True)
    except msgspec.ValidationError as error:
        raise PolicyError("the policy's answer is not a verdict") from error
