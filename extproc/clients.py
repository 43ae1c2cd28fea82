"""`python -m extproc clients add | list | revoke`: edit the keyring file; running workers follow within 2 s.

Every change is made under a lock, checked whole as the workers will check it, and put in place atomically.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from extproc.config import load_config
from extproc.file_watch import FileRefusedError, locked, read_file, replace, write_new
from extproc.keyring import KeyEntry, KeyringError, parse_keyring, parse_time, read_keyring
from extproc.priority import Priority
from extproc.subject import check_subject
from pch.keys import KeyFormatError, jwks_members, public_key_from_jwk, thumbprint

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from pch.algorithms import KeyId

MAX_JWK_BYTES: Final = 65_536
NEW_FILE_MODE: Final = 0o640
"""Public keys, but the names of subjects too."""
EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1


class ClientsError(Exception):
    """The command cannot be carried out; the message says why."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `clients` to a command line; each verb sets `run(args) -> int`."""
    clients = subparsers.add_parser("clients", help="list and change the registered client keys")
    verbs = clients.add_subparsers(dest="verb", required=True)

    add = _verb(verbs, "add", "register a public key", _add)
    add.add_argument("--subject", required=True, help="who the key belongs to")
    add.add_argument(
        "--jwk",
        type=Path,
        required=True,
        help="file with the public JWK, or the JWK Set of a hybrid; - reads standard input",
    )
    add.add_argument(
        "--partner",
        metavar="KEY_ID",
        help="--partner=ID: registered key of the subject that this one is half of a hybrid with",
    )
    add.add_argument(
        "--class",
        dest="priority",
        choices=[str(each) for each in Priority],
        help="who goes on where not everyone can; default: that of the subject's keys, or normal",
    )
    add.add_argument("--not-before", help="first moment it is valid, RFC 3339 in UTC")
    add.add_argument("--not-after", help="first moment it is not valid any more, RFC 3339 in UTC")

    listing = _verb(verbs, "list", "list the registered keys", _list)
    listing.add_argument("--json", action="store_true", help="as a JSON list")

    revoke = _verb(verbs, "revoke", "revoke one key, or every key of a subject", _revoke)
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--key-id", metavar="ID", help="--key-id=ID: the key's RFC 7638 thumbprint, which may start with a dash"
    )
    which.add_argument("--subject", help="whose keys")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    run: Callable[[argparse.Namespace, Path], str],
) -> argparse.ArgumentParser:
    def guarded(args: argparse.Namespace) -> int:
        try:
            sys.stdout.write(run(args, load_config(args.config, os.environ).keyring.path))
        except (ClientsError, KeyringError) as error:
            sys.stderr.write(f"clients {name}: {error}\n")
            return EXIT_REFUSED
        except OSError as error:
            sys.stderr.write(f"clients {name}: {error.filename}: {error.strerror}\n")
            return EXIT_REFUSED
        return EXIT_OK

    parser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("--config", type=Path, required=True, help="the filter's TOML file")
    parser.set_defaults(run=guarded, func=guarded)
    return parser


def _add(args: argparse.Namespace, path: Path) -> str:
    try:
        jwks = jwks_members(_read_jwk(args.jwk))
        new = {thumbprint(jwk): _new_item(args, jwk) for jwk in jwks}
    except KeyFormatError as error:
        raise ClientsError(f"the JWK is refused: {error}") from error
    except ValueError as error:
        raise ClientsError(f"--subject {error}") from error
    if len(new) > 1:
        first, second = new
        new[first]["partner"], new[second]["partner"] = second, first
    with locked(path):
        items, entries = _load(path) if path.exists() else ([], {})
        for key_id in new:
            registered = entries.get(key_id)
            if registered is not None:
                state = "revoked" if registered.revoked else "registered"
                raise ClientsError(f"the key {key_id} is already {state}, for {registered.subject}")
        _classify(entries, args, new)
        if args.partner is not None:
            _pair(items, entries, args.partner, new)
        _store(path, [*items, *new.values()])
    return "".join(f"added {key_id} for {args.subject}\n" for key_id in new)


def _new_item(args: argparse.Namespace, jwk: Mapping[str, object]) -> dict[str, Any]:
    public_key_from_jwk(jwk)
    return {
        "subject": check_subject(args.subject),
        "jwk": jwk,
        "not_before": _time("--not-before", args.not_before),
        "not_after": _time("--not-after", args.not_after),
        "status": "active",
        "partner": None,
    }


def _classify(entries: dict[str, KeyEntry], args: argparse.Namespace, new: dict[KeyId, dict[str, Any]]) -> None:
    """Give new keys the class of their subject, which is the same for all of its keys."""
    known = next((entry.priority for entry in entries.values() if entry.subject == args.subject), None)
    wanted = args.priority or known or Priority.NORMAL
    if known is not None and known != wanted:
        raise ClientsError(f"--class: {args.subject} is registered with the class {known}")
    for item in new.values():
        item["class"] = str(wanted)


def _pair(
    items: list[dict[str, Any]], entries: dict[str, KeyEntry], partner: str, new: dict[KeyId, dict[str, Any]]
) -> None:
    """Make a registered key and a new one the halves of one hybrid; whether they can be is checked with the file."""
    if len(new) != 1:
        raise ClientsError("--partner: goes with one JWK, not with a set of two")
    ((key_id, entry),) = new.items()
    registered = entries.get(partner)
    if registered is None:
        raise ClientsError(f"--partner: no key {partner} is registered")
    if registered.partner is not None:
        raise ClientsError(f"--partner: {partner} is half of a hybrid already, with {registered.partner}")
    if registered.subject != entry["subject"]:
        raise ClientsError(f"--partner: {partner} is of another subject")
    items[list(entries).index(partner)]["partner"] = key_id
    entry["partner"] = partner


def _list(args: argparse.Namespace, path: Path) -> str:
    items, entries = _load(path)
    rows = [
        {
            "key_id": entry.key_id,
            "subject": entry.subject,
            "alg": entry.public_key.algorithm.name,
            "not_before": item.get("not_before"),
            "not_after": item.get("not_after"),
            "status": item["status"],
            "partner": entry.partner,
            "class": str(entry.priority),
        }
        for item, entry in zip(items, entries.values(), strict=True)
    ]
    if args.json:
        return json.dumps(rows, indent=1) + "\n"
    return "".join(
        f"{row['key_id']}  {row['status']:7}  {row['alg']:17}  {row['subject']}"
        f"  {row['not_before'] or '-'} .. {row['not_after'] or '-'}"
        f"{'' if row['class'] == Priority.NORMAL else '  class ' + row['class']}"
        f"{'  with ' + row['partner'] if row['partner'] else ''}\n"
        for row in rows
    )


def _revoke(args: argparse.Namespace, path: Path) -> str:
    told: list[str] = []
    with locked(path):
        items, entries = _load(path)
        for item, entry in zip(items, entries.values(), strict=True):
            if args.key_id not in {None, entry.key_id} or args.subject not in {None, entry.subject}:
                continue
            told.append(f"{'was already revoked' if entry.revoked else 'revoked'}: {entry.key_id} of {entry.subject}\n")
            item["status"] = "revoked"
        if not told:
            raise ClientsError("no such key is registered")
        _store(path, items)
    return "".join(told)


def _read_jwk(path: Path) -> dict[str, Any]:
    """Read one JWK. Its text is never part of an error: it may turn out to be a private key."""
    if str(path) == "-":
        content = sys.stdin.buffer.read(MAX_JWK_BYTES + 1)
    else:
        try:
            content = read_file(path, max_bytes=MAX_JWK_BYTES, forbidden_mode=0).content
        except FileRefusedError as error:
            raise ClientsError(str(error)) from error
    try:
        jwk = json.loads(content)
    except (ValueError, RecursionError):
        raise ClientsError("the JWK is refused: it is not JSON") from None
    if not isinstance(jwk, dict):
        raise ClientsError("the JWK is refused: it is no JSON object")
    return jwk


def _time(option: str, text: str | None) -> str | None:
    try:
        parse_time(text)
    except ValueError as error:
        raise ClientsError(f"{option} {error}") from error
    return text


def _load(path: Path) -> tuple[list[dict[str, Any]], dict[str, KeyEntry]]:
    """Read the keyring file, both as it is written and as the workers see it, in the same order."""
    content = read_keyring(path)
    keyring = _checked(path, content)
    return json.loads(content), keyring


def _store(path: Path, items: list[dict[str, Any]]) -> None:
    content = json.dumps(items, indent=1).encode() + b"\n"
    _checked(path, content)
    if path.exists():
        replace(path, content, stat.S_IMODE(path.stat().st_mode))
    elif not write_new(path, content, NEW_FILE_MODE):
        raise ClientsError(f"{path}: was created by another program meanwhile")


def _checked(path: Path, content: bytes) -> dict[str, KeyEntry]:
    try:
        return dict(parse_keyring(content).entries)
    except KeyringError as error:
        raise KeyringError(f"{path}: {error}") from error
