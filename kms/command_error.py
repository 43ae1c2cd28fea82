"""What a command of `python -m kms` says when it cannot do what it was asked."""

from __future__ import annotations


class CommandError(ValueError):
    """For the operator, in words; the message never holds a secret."""
