from __future__ import annotations

import argparse
import dataclasses
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from kms.capability import Authority, read_token
from kms.caveats import MAX_TOKEN_CHARS
from kms.errors import Unauthenticated
from kms.mint import Grant, MintError, attenuate, mint, register
from kms.principal import Scope
from kms.private_file import PrivateFileError
from kms.revocation import Revocations
from kms.root_key import MAX_MINTING_AGE_S, MAX_TOKEN_LIFE_S, RootKeyError, RootKeys, read_roots
from tests.support.kms_tokens import GRANT, KEY, TokenParts
from tests.support.log_parts import NOW_S, seeded

if TYPE_CHECKING:
    from pathlib import Path

    from kms.principal import Principal


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    args = parser.parse_args(argv)
    return int(args.run(args))


@pytest.mark.parametrize(
    "changes",
    [
        {"scopes": ()},
        {"tenants": ()},
        {"expires_at_s": None},
        {"expires_at_s": NOW_S},
        {"expires_at_s": NOW_S + MAX_TOKEN_LIFE_S + 1},
        {"scopes": ("kms:everything",)},
        {"tenants": ("a,b",) * 2},
        {"keys": ("x",)},
        {"rate_per_s": 0},
        {"paths": tuple(f"/{'x' * 200}/{number}" for number in range(32))},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_no_capability_is_made_without_bounds_or_with_caveats_that_deny(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(MintError):
        TokenParts(tmp_path).mint(dataclasses.replace(GRANT, **changes))  # type: ignore[arg-type]


def test_an_old_root_mints_no_more(tmp_path: Path) -> None:
    root = TokenParts(tmp_path).root
    for age_s, mints in ((MAX_MINTING_AGE_S - 1, True), (MAX_MINTING_AGE_S, False)):
        now_s = NOW_S + age_s
        grant = dataclasses.replace(GRANT, expires_at_s=now_s + 1)
        if mints:
            assert mint(root, grant, now_s, seeded("x"))
        else:
            with pytest.raises(MintError, match="30 days"):
                mint(root, grant, now_s, seeded("x"))


def test_an_attenuation_must_narrow_by_something_and_stay_short(tmp_path: Path) -> None:
    token = TokenParts(tmp_path).mint()
    with pytest.raises(MintError, match="nothing"):
        attenuate(token, Grant())
    with pytest.raises(MintError, match="malformed"):
        attenuate(token + "A", Grant(rate_per_s=1))
    for number in range(3):
        token = attenuate(token, Grant(paths=tuple(f"/{'x' * 90}/{at}" for at in range(10))))
        assert len(token) < MAX_TOKEN_CHARS, number
    with pytest.raises(MintError):
        attenuate(attenuate(token, Grant(paths=("/*",))), Grant(keys=tuple(f"t/{'p' * 60}/{x}/*" for x in range(40))))


def test_the_commands_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, token, narrow = tmp_path / "root.json", tmp_path / "token", tmp_path / "narrow"
    revoked = tmp_path / "revoked.json"
    assert run("root-key", "create", "--root-key-file", str(root)) == 0
    assert run("root-key", "rotate", "--root-key-file", str(root), "--overlap-s", "60") == 0
    made = ("--scope", "kms:sign,kms:read", "--scope", "kms:verify", "--tenant", "core", "--life-s", "600")
    assert run("mint", "--root-key-file", str(root), *made, "--out", str(token)) == 0
    told = capsys.readouterr()
    assert run("attenuate", "--token-file", str(token), "--scope", "kms:sign", "--key", KEY, "--out", str(narrow)) == 0
    assert stat.S_IMODE(token.stat().st_mode) == stat.S_IMODE(narrow.stat().st_mode) == 0o600
    assert token.read_text().strip() not in told.out + told.err
    principal = enter(root, revoked, narrow)
    assert (principal.scopes, principal.keys) == ({Scope.SIGN}, {KEY})
    assert f"token id {principal.token_id}" in told.err
    assert enter(root, revoked, token).scopes == {Scope.SIGN, Scope.READ, Scope.VERIFY}
    assert run("revoke", "--revocations-file", str(revoked), "--token-file", str(narrow)) == 0
    for path in (token, narrow):
        with pytest.raises(Unauthenticated, match="revoked"):
            enter(root, revoked, path)
    assert run("root-key", "list", "--root-key-file", str(root)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["verifies only", "mints"]
    assert read_roots(root)[1].id in lines[1]


def enter(root: Path, revoked: Path, token: Path) -> Principal:
    authority = Authority(RootKeys(root, time.monotonic), Revocations(revoked, time.monotonic))
    return authority.authenticate(f"Bearer {token.read_text().strip()}", int(time.time()))


def test_a_token_goes_to_standard_output_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root.json"
    run("root-key", "create", "--root-key-file", str(root))
    assert run("mint", "--root-key-file", str(root), "--scope", "kms:read", "--tenant", "core", "--out", "-") == 0
    assert read_token(capsys.readouterr().out.strip())


def test_the_commands_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    root, token = tmp_path / "root.json", tmp_path / "token"
    minting = ("mint", "--root-key-file", str(root), "--scope", "kms:read", "--tenant", "core", "--out", str(token))
    with pytest.raises(RootKeyError, match="no root key file"):
        run(*minting)
    run("root-key", "create", "--root-key-file", str(root))
    run(*minting)
    with pytest.raises(PrivateFileError, match="already"):
        run(*minting)
    with pytest.raises(RootKeyError, match="no token"):
        run("attenuate", "--token-file", str(tmp_path / "none"), "--rps", "1", "--out", "-")
    with pytest.raises(MintError, match="what to revoke"):
        run("revoke", "--revocations-file", str(tmp_path / "revoked.json"))
    os.truncate(token, 10)
    with pytest.raises(MintError, match="malformed"):
        run("revoke", "--revocations-file", str(tmp_path / "revoked.json"), "--token-file", str(token))
