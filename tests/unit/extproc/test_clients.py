"""The clients commands: they change the file that workers watch, whole or not at all."""

from __future__ import annotations

import argparse
import io
import json
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from extproc import clients
from extproc.keyring import KeyringFile
from pch.keys import generate, public_jwk, thumbprint

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE = generate("ed25519")
PUBLIC = public_jwk(PRIVATE)
OTHER = public_jwk(generate("ecdsa-p256-sha256"))


class Bench:
    """A configuration, key files, and the command line over them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.config, self.keyring = folder / "f.toml", folder / "keyring.json"
        self.config.write_text('[[route]]\nname = "all"\npath = "/**"\n')

    def jwk(self, jwk: object, name: str = "key.jwk") -> str:
        path = self.folder / name
        path.write_text(jwk if isinstance(jwk, str) else json.dumps(jwk))
        return str(path)

    def run(self, verb: str, *arguments: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        clients.register(parser.add_subparsers())
        args = parser.parse_args(["clients", verb, "--config", str(self.config), *arguments])
        assert args.func is args.run
        status = args.run(args)
        said = self.capsys.readouterr()
        assert bool(said.err) == bool(status)
        return status, said.out + said.err

    def add(self, jwk: object, subject: str = "alice", *arguments: str) -> tuple[int, str]:
        return self.run("add", "--subject", subject, "--jwk", self.jwk(jwk), *arguments)

    def items(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.keyring.read_text())
        return items


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def test_a_key_is_added_to_an_absent_file_and_to_one_that_is_there(bench: Bench) -> None:
    assert bench.add(PUBLIC) == (0, f"added {thumbprint(PUBLIC)} for alice\n")
    dates = ("--not-before", "2026-01-01T00:00:00Z", "--not-after", "2027-01-01T00:00:00Z")
    assert bench.add(OTHER, "bob", *dates)[0] == 0
    assert [each["subject"] for each in bench.items()] == ["alice", "bob"]
    found = KeyringFile(bench.keyring).current.lookup(thumbprint(OTHER))
    assert (found.subject, found.not_before_ms) == ("bob", 1_767_225_600_000)
    assert stat.S_IMODE(bench.keyring.stat().st_mode) == clients.NEW_FILE_MODE


def test_a_change_keeps_the_mode_and_the_other_entries_as_they_are_written(bench: Bench) -> None:
    bench.add(PUBLIC | {"kid": "my key"})
    bench.keyring.chmod(0o600)
    bench.add(OTHER)
    assert stat.S_IMODE(bench.keyring.stat().st_mode) == 0o600
    assert bench.items()[0]["jwk"] == PUBLIC | {"kid": "my key"}


def test_the_jwk_may_come_from_standard_input(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(PUBLIC).encode())))
    assert bench.run("add", "--subject", "alice", "--jwk", "-")[0] == 0


@pytest.mark.parametrize(
    ("jwk", "subject", "arguments", "message"),
    [
        (PRIVATE, "alice", (), "the JWK is refused: JWK holds a private key"),
        (PUBLIC | {"k": "x"}, "alice", (), "the JWK is refused"),
        ("{", "alice", (), "the JWK is refused: it is not JSON"),
        ("[" * 60_000, "alice", (), "the JWK is refused: it is not JSON"),
        ("[]", "alice", (), "the JWK is refused: it is no JSON object"),
        (" " * 70_000, "alice", (), "is larger than 65536 bytes"),
        ({"kty": "OKP"}, "alice", (), "the JWK is refused"),
        (PUBLIC, "a b", (), "--subject must be a subject"),
        (PUBLIC, "", (), "--subject must be a subject"),
        (PUBLIC, "alice", ("--not-before", "tomorrow"), "--not-before must be an RFC 3339 time"),
        (PUBLIC, "alice", ("--not-after", "2026-02-30T00:00:00Z"), "--not-after "),
        (
            PUBLIC,
            "alice",
            ("--not-before", "2027-01-01T00:00:00Z", "--not-after", "2026-01-01T00:00:00Z"),
            "not_before must be earlier than not_after",
        ),
    ],
)
def test_a_key_that_is_refused_changes_nothing(
    bench: Bench, jwk: object, subject: str, arguments: tuple[str, ...], message: str
) -> None:
    bench.add(OTHER)
    before = bench.keyring.read_bytes()
    status, said = bench.add(jwk, subject, *arguments)
    assert status == 1
    assert message in said
    assert PRIVATE["d"] not in said
    assert bench.keyring.read_bytes() == before


def test_a_key_is_registered_once_and_a_revoked_one_does_not_come_back(bench: Bench) -> None:
    bench.add(PUBLIC)
    assert "is already registered, for alice" in bench.add(PUBLIC, "bob")[1]
    bench.run("revoke", f"--key-id={thumbprint(PUBLIC)}")
    assert "is already revoked, for alice" in bench.add(PUBLIC)[1]


def test_one_key_or_all_of_a_subject_are_revoked(bench: Bench) -> None:
    third = public_jwk(generate("ed25519"))
    bench.add(PUBLIC)
    bench.add(OTHER)
    bench.add(third, "bob")
    assert bench.run("revoke", f"--key-id={thumbprint(OTHER)}") == (0, f"revoked: {thumbprint(OTHER)} of alice\n")
    assert [each["status"] for each in bench.items()] == ["active", "revoked", "active"]
    status, said = bench.run("revoke", "--subject", "alice")
    assert status == 0
    assert said.splitlines() == [
        f"revoked: {thumbprint(PUBLIC)} of alice",
        f"was already revoked: {thumbprint(OTHER)} of alice",
    ]
    assert [each["status"] for each in bench.items()] == ["revoked", "revoked", "active"]
    assert not KeyringFile(bench.keyring).current.lookup(thumbprint(third)).revoked


def test_revoking_what_is_not_there_is_an_error(bench: Bench) -> None:
    assert "cannot be read" in bench.run("revoke", "--subject", "alice")[1]
    bench.add(PUBLIC)
    for which in (("--subject", "bob"), ("--key-id", "x"), ("--subject", ""), ("--key-id", "")):
        assert bench.run("revoke", *which) == (1, "clients revoke: no such key is registered\n")


def test_the_list_tells_keys_and_never_their_material(bench: Bench) -> None:
    bench.add(PUBLIC, "alice", "--not-after", "2027-01-01T00:00:00Z")
    bench.add(OTHER, "bob")
    bench.run("revoke", "--subject", "bob")
    text = bench.run("list")[1].splitlines()
    assert text[0].split() == [thumbprint(PUBLIC), "active", "ed25519", "alice", "-", "..", "2027-01-01T00:00:00Z"]
    assert text[1].split()[1:4] == ["revoked", "ecdsa-p256-sha256", "bob"]
    listed = json.loads(bench.run("list", "--json")[1])
    assert listed[0] == {
        "key_id": thumbprint(PUBLIC),
        "subject": "alice",
        "alg": "ed25519",
        "not_before": None,
        "not_after": "2027-01-01T00:00:00Z",
        "status": "active",
        "partner": None,
        "class": "normal",
    }
    assert PUBLIC["x"] not in json.dumps(listed)


def test_a_broken_keyring_is_reported_and_left_alone(bench: Bench) -> None:
    bench.keyring.write_text("[broken")
    for verb in (("list",), ("revoke", "--subject", "alice")):
        assert "keyring.json: is not JSON" in bench.run(*verb)[1]
    assert "keyring.json: is not JSON" in bench.add(PUBLIC)[1]
    assert bench.keyring.read_text() == "[broken"


def test_a_folder_that_cannot_be_written_is_reported(bench: Bench) -> None:
    bench.config.write_text('[keyring]\npath = "none/k"\n[[route]]\nname = "a"\npath = "/"\n')
    status, said = bench.add(PUBLIC)
    assert status == 1
    assert "No such file" in said


def test_commands_that_run_at_once_lose_nothing(bench: Bench) -> None:
    jwks = [public_jwk(generate("ecdsa-p256-sha256")) for _ in range(8)]
    paths = [bench.jwk(jwk, f"{number}.jwk") for number, jwk in enumerate(jwks)]

    def add(path: str) -> None:
        parser = argparse.ArgumentParser()
        clients.register(parser.add_subparsers())
        args = parser.parse_args(["clients", "add", "--config", str(bench.config), "--subject", "s", "--jwk", path])
        args.run(args)

    threads = [threading.Thread(target=add, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    current = KeyringFile(bench.keyring).current
    assert len(current) == 8
    assert [path.name for path in bench.folder.iterdir() if path.suffix == ".tmp"] == []


def test_a_keyring_created_by_another_meanwhile_is_not_overwritten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "write_new", lambda *_: False)
    assert "was created by another program" in bench.add(PUBLIC)[1]


PQ = public_jwk(generate("ml-dsa-65"))
OTHER_PQ = public_jwk(generate("ml-dsa-65"))


def partners(bench: Bench) -> dict[str, str | None]:
    return {thumbprint(item["jwk"]): item.get("partner") for item in bench.items()}


def test_the_jwk_set_of_a_hybrid_registers_two_partners(bench: Bench) -> None:
    said = f"added {thumbprint(PUBLIC)} for alice\nadded {thumbprint(PQ)} for alice\n"
    assert bench.add({"keys": [PUBLIC, PQ]}) == (0, said)
    assert partners(bench) == {thumbprint(PUBLIC): thumbprint(PQ), thumbprint(PQ): thumbprint(PUBLIC)}
    keyring = KeyringFile(bench.keyring).current
    assert keyring.lookup(thumbprint(PUBLIC)).partner == thumbprint(PQ)
    assert bench.run("list")[1].splitlines()[1].endswith(f"with {thumbprint(PUBLIC)}")


def test_a_registered_key_is_joined_by_the_other_half_of_its_hybrid(bench: Bench) -> None:
    bench.add(PUBLIC)
    assert bench.add(PQ, "alice", f"--partner={thumbprint(PUBLIC)}")[0] == 0
    assert partners(bench) == {thumbprint(PUBLIC): thumbprint(PQ), thumbprint(PQ): thumbprint(PUBLIC)}
    refused = bench.add(OTHER_PQ, "alice", f"--partner={thumbprint(PUBLIC)}")
    assert refused == (
        1,
        f"clients add: --partner: {thumbprint(PUBLIC)} is half of a hybrid already, with {thumbprint(PQ)}\n",
    )
    assert len(bench.items()) == 2


@pytest.mark.parametrize(
    ("jwk", "subject", "partner", "message"),
    [
        (PQ, "bob", thumbprint(PUBLIC), "is of another subject"),
        (PQ, "alice", "x" * 43, "is registered"),
        (public_jwk(generate("ed25519")), "alice", thumbprint(PUBLIC), "the two keys are no hybrid"),
        (public_jwk(generate("ml-dsa-44")), "alice", thumbprint(PUBLIC), "the two keys are no hybrid"),
        ({"keys": [OTHER, PQ]}, "alice", thumbprint(PUBLIC), "goes with one JWK"),
        ({"keys": [OTHER, public_jwk(generate("ml-dsa-87"))]}, "alice", None, "the two keys are no hybrid"),
        ({"keys": []}, "alice", None, "is not a list of one or two"),
        ({"keys": [OTHER, PQ, OTHER_PQ]}, "alice", None, "is not a list of one or two"),
        ({"keys": [OTHER, "x"]}, "alice", None, "is no JWK"),
        ({"keys": [OTHER, generate("ml-dsa-65")]}, "alice", None, "holds a private key"),
        ({"keys": [PUBLIC, PQ]}, "alice", None, "is already registered"),
    ],
)
def test_what_is_no_hybrid_is_refused_and_nothing_changes(
    bench: Bench, jwk: object, subject: str, partner: str | None, message: str
) -> None:
    bench.add(PUBLIC)
    before = bench.keyring.read_bytes()
    status, said = bench.add(jwk, subject, *([] if partner is None else [f"--partner={partner}"]))
    assert status == 1
    assert message in said
    assert bench.keyring.read_bytes() == before


def classes(bench: Bench) -> list[str]:
    return [item.get("class") for item in bench.items()]


def test_a_class_is_the_subjects_and_later_keys_take_it_over(bench: Bench) -> None:
    assert bench.add(PUBLIC, "alice", "--class", "low")[0] == 0
    assert bench.add(OTHER, "alice")[0] == 0
    assert bench.add(PQ, "bob")[0] == 0
    assert classes(bench) == ["low", "low", "normal"]
    assert KeyringFile(bench.keyring).current.lookup(thumbprint(OTHER)).priority == "low"
    listed = json.loads(bench.run("list", "--json")[1])
    assert [row["class"] for row in listed] == ["low", "low", "normal"]
    assert bench.run("list")[1].count("  class low\n") == 2


def test_another_class_for_a_subject_that_has_one_is_refused(bench: Bench) -> None:
    assert bench.add(PUBLIC, "alice")[0] == 0
    before = bench.keyring.read_text()
    status, said = bench.add(OTHER, "alice", "--class", "high")
    assert (status, said) == (1, "clients add: --class: alice is registered with the class normal\n")
    assert bench.keyring.read_text() == before


def test_a_class_that_is_none_is_no_command(bench: Bench) -> None:
    with pytest.raises(SystemExit):
        bench.run("add", "--subject", "a", "--jwk", bench.jwk(PUBLIC), "--class", "highest")
    bench.capsys.readouterr()
