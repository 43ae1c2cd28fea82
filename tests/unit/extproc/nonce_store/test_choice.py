"""The store that the configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from extproc.config import load_config
from extproc.nonce_store.choice import open_nonce_store
from extproc.nonce_store.memory import MemoryNonceStore
from extproc.nonce_store.redis import RedisNonceStore
from extproc.nonce_store.sqlite import SqliteNonceStore

if TYPE_CHECKING:
    from pathlib import Path

ROUTE = '[[route]]\nname = "all"\npath = "/**"\n'


@pytest.mark.parametrize(
    ("kind", "expected"), [("memory", MemoryNonceStore), ("sqlite", SqliteNonceStore), ("redis", RedisNonceStore)]
)
def test_the_configured_kind_is_built(tmp_path: Path, kind: str, expected: type) -> None:
    path = tmp_path / "f.toml"
    path.write_text(f'[filter]\nworkers = 1\n[nonce_store]\nkind = "{kind}"\n{ROUTE}')
    assert type(open_nonce_store(load_config(path, {}), lambda: 0)) is expected
    assert not (tmp_path / "nonces.sqlite3").exists()
