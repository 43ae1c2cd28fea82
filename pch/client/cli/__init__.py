"""The `pch` command: one file per verb."""

from pch.client.cli.main import main

__all__ = ["main"]
