"""The command line: what it accepts, what it prints, what it ends with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from extproc.__main__ import EXIT_FAILED, EXIT_OK, EXIT_UNUSABLE, main
from tests.support.check_calls import FilterCalls, check_of, reason_of, unsigned
from tests.support.filter_process import FilterFolder, filter_folder

GOOD = '[[route]]\nname = "all"\npath = "/**"\n'


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """`main` takes over the root logger; give it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def config(folder: Path, text: str = GOOD) -> str:
    path = folder / "filter.toml"
    path.write_text(text)
    return str(path)


def test_check_says_that_a_configuration_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", config(tmp_path)]) == EXIT_OK
    printed = capsys.readouterr().out
    assert printed.startswith("valid: 1 routes, digest ")
    assert len(printed.split()[-1]) == 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one [[route]]"),
        (GOOD + "[filter]\nsurprise = 1\n", "surprise"),
        ('[nonce_store]\nkind = "memory"\n' + GOOD, "nonce_store.kind"),
        ('[admin]\nhost = "0.0.0.0"\n' + GOOD, "admin.host"),
    ],
)
@pytest.mark.parametrize("command", ["check", "serve", "admin", "worker"])
def test_bad_configuration_is_named_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, said: str
) -> None:
    extra = ["--index", "0"] if command == "worker" else []
    assert main([command, "--config", config(tmp_path, text), *extra]) == EXIT_UNUSABLE
    printed = capsys.readouterr().err
    assert printed.startswith("configuration: ")
    assert said in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filter.toml"]


@pytest.mark.parametrize("command", ["check", "serve", "worker"])
def test_a_policy_that_cannot_be_used_is_found_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    extra = ["--index", "0"] if command == "worker" else []
    text = GOOD + '[policy]\nmodule = "gone.wasm"\n'
    assert main([command, "--config", config(tmp_path, text), *extra]) == EXIT_UNUSABLE
    assert "policy: gone.wasm: cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filter.toml"]


def test_environment_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["check", "--config", config(tmp_path)])
    monkeypatch.setenv("SIGNET_FILTER_REALM", "other")
    main(["check", "--config", config(tmp_path)])
    first, second = capsys.readouterr().out.splitlines()
    assert first != second
    monkeypatch.setenv("SIGNET_FILTER_WORKERS", "0")
    assert main(["check", "--config", config(tmp_path)]) == EXIT_UNUSABLE


def test_admin_without_its_store_fails_with_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "receipts.sqlite3").write_text("this is no database" * 100)
    assert main(["admin", "--config", config(tmp_path)]) == EXIT_FAILED
    assert capsys.readouterr().err.startswith("receipts: ")


@pytest.mark.parametrize(
    "arguments",
    [[], ["serve"], ["worker", "--config", "x"], ["nonsense"], ["check", "--config", "x", "--surprise"], ["clients"]],
)
def test_unusable_arguments_end_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == EXIT_UNUSABLE
    assert "usage: python -m extproc" in capsys.readouterr().err


def test_real_process_ends_with_the_same_status() -> None:
    with filter_folder() as folder:
        assert folder.start("check").wait(15) == EXIT_OK
        folder.config.write_text("")
        assert folder.start("check").wait(15) == EXIT_UNUSABLE
        assert "configuration: " in folder.logged()


def test_served_process_logs_one_json_object_a_line(served_log: FilterFolder) -> None:
    lines = [json.loads(line) for line in served_log.logged().splitlines()]
    assert any(line["message"].startswith("worker 0 serves") for line in lines)
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in lines)


@pytest.fixture
def served_log() -> Iterator[FilterFolder]:
    with filter_folder(workers=1) as folder:
        process = folder.start("serve")
        folder.pid()
        process.terminate()
        assert process.wait(15) == EXIT_OK
        yield folder


def test_workers_log_in_the_format_and_at_the_level_of_the_one_that_starts_them() -> None:
    with filter_folder(workers=1) as folder:
        process = folder.start("--log-format", "text", "--log-level", "debug", "serve")
        folder.pid()
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        message = unsigned()
        traced = replace(message, headers=(("traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode()),))
        with FilterCalls(folder.socket(0)) as calls:
            assert reason_of(calls.check(check_of(traced))) == "missing_signature"
        process.terminate()
        assert process.wait(15) == EXIT_OK
        (line,) = (line for line in folder.logged().splitlines() if "refused: missing_signature" in line)
        assert " DEBUG signet.pipeline " in line
        assert line.endswith(f" trace_id={trace}")
