"""What a running filter cannot change: every such setting is named, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.config import FilterConfig, load_config
from extproc.reload import needs_restart

ROUTE = '[[route]]\nname = "all"\npath = "/**"\n'


def config(folder: Path, text: str = "") -> FilterConfig:
    path = folder / "filter.toml"
    path.write_text(text + ROUTE)
    return load_config(path, {})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('[filter]\nsocket_dir = "other"\n', "filter.socket_dir"),
        ("[filter]\nworkers = 3\n", "filter.workers"),
        ("[filter]\nsocket_mode = 0o660\n", "filter.socket_mode"),
        ("[filter]\nbreaker_share_interval_ms = 300\n", "filter.breaker_share_interval_ms"),
        ("[filter]\nmax_age_s = 61\n", "filter.max_age_s"),
        ("[nonce_store]\ntimeout_ms = 251\n", "nonce_store"),
        ('[receipts]\nurl = "sqlite:other.sqlite3"\n', "receipts.url"),
        ("[receipts]\nmax_refusal_receipts_per_s = 1\n", "receipts.max_refusal_receipts_per_s"),
        ('[log]\ndir = "other"\n', "log.dir"),
        ('[log]\norigin = "other.example/receipts"\n', "log.origin"),
        ("[plan]\nmax_challenges_per_answer = 4\n", "plan.max_challenges_per_answer"),
        ("[plan]\nconcurrency_window_s = 11\n", "plan.concurrency_window_s"),
        ("[keyring]\npoll_interval_ms = 51\n", "keyring"),
        ('[sealing]\npath = "other.json"\n', "sealing.path"),
    ],
)
def test_a_setting_that_counts_from_the_start_alone_is_named(tmp_path: Path, text: str, name: str) -> None:
    assert needs_restart(config(tmp_path), config(tmp_path, text)) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[plan.breaker]\ntrip_errors = 0.6\n",
        "[filter]\nretry_after_s = 2\n",
        "[receipts]\ntimeout_ms = 900\n",
        "[log]\nmax_batch_age_ms = 400\n",
        '[[route]]\nname = "late"\npath = "/late"\n',
    ],
)
def test_what_a_reload_can_change_is_not_named(tmp_path: Path, text: str) -> None:
    assert needs_restart(config(tmp_path), config(tmp_path, text)) == []
