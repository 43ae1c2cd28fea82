"""Faults of the filter itself; what a client can cause is in `pch.errors`."""

from __future__ import annotations

from pch.errors import OurFault


class Overloaded(OurFault):
    """More requests are in flight than the worker admits."""


class ServerFault(Exception):
    """The worker cannot start or go on; the message names the setting or the file."""
