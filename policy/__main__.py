"""`python -m policy explain`: why a stored decision fell as it did, by asking the policy once more."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from policy.evaluator import PolicyError, PolicyInput, PolicyVerdict
from policy.verdict import ENTRYPOINT, verdict_from
from policy.wasm import WasmPolicy

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
OPA_TIMEOUT_S: Final = 30.0
OUTWARD: Final = frozenset({"http.send", "net.lookup_ip_addr", "opa.runtime"})
"""Built-ins by which Rego gets at more than its data and its input."""
EXIT_SAME: Final = 0
EXIT_DIFFERENT: Final = 1
EXIT_UNUSABLE: Final = 2
EXIT_NO_VERDICT: Final = 3
ALLOWING: Final = frozenset({"allowed", "body_pending"})
NO_VERDICT: Final = "policy_unavailable"
"""The reason of a decision whose policy gave no usable answer."""


class UnusableInput(Exception):
    """A file is not what it should be; the message says which."""


class _Bundle(msgspec.Struct, frozen=True):
    """What of a bundle is needed to decide again (`policy.bundle`)."""

    engine: str
    modules: dict[str, str]
    data: msgspec.Raw
    wasm: bytes


def explain(receipt: dict[str, Any], bundle_bytes: bytes, opa: Path | None = None) -> dict[str, Any]:
    """Ask the bundle's policy the receipt's question again and compare. Raises UnusableInput.

    `opa`: the OPA program, which an OPA server's policy is asked with.

    The stored input holds, beside the question, what the plan did afterwards (`stress`); policy sees null there.
    `agrees` is None when there was no verdict then. `decided_by`: `policy`, `fallback` when policy allowed the request
    but not that the classical half of a hybrid stands for it, `no verdict`, or `a later step`.
    """
    policy = receipt.get("policy")
    if receipt.get("kind") != "decision" or not isinstance(policy, dict):
        raise UnusableInput("the receipt is of no decision that policy was asked about")
    digest = hashlib.sha256(bundle_bytes).hexdigest()
    if policy.get("digest") != digest:
        raise UnusableInput(f"the receipt was decided under another policy: {policy.get('digest')}, not {digest}")
    question = _question(policy)
    verdict = _replay(bundle_bytes, {**question, "stress": None}, opa)
    reason = receipt.get("reason")
    # Allowed by its rules, and yet refused: the request was half a hybrid, for which policy has a word of its own.
    half_refused = verdict.allow and question.get("fallback") is True and not verdict.fallback_classic
    return {
        "receipt": receipt.get("id"),
        "told": {"decision": receipt.get("decision"), "reason": reason},
        "verdict": msgspec.to_builtins(verdict),
        "agrees": None if reason == NO_VERDICT else (verdict.allow and not half_refused) is (reason != "policy_denied"),
        "decided_by": _decided_by(verdict, reason, half_refused=half_refused),
        "plan": question.get("stress"),
        "input": question,
    }


def _decided_by(verdict: PolicyVerdict, reason: object, *, half_refused: bool) -> str:
    if reason == NO_VERDICT:
        return "no verdict"
    if half_refused:
        return "fallback"
    return "policy" if not verdict.allow or reason in ALLOWING else "a later step"


def _question(policy: dict[str, Any]) -> dict[str, Any]:
    """Give the stored input as it is, once it is seen to be a question. Raises UnusableInput."""
    question = policy.get("input")
    if not isinstance(question, dict):
        raise UnusableInput("the receipt does not hold what policy was asked")
    try:
        msgspec.convert(question, PolicyInput)
    except msgspec.ValidationError as error:
        raise UnusableInput(f"the receipt does not hold what policy was asked: {error}") from error
    return question


def _replay(bundle_bytes: bytes, question: dict[str, Any], opa: Path | None) -> PolicyVerdict:
    try:
        bundle, asked = msgspec.json.decode(bundle_bytes, type=_Bundle), json.dumps(question).encode()
        if bundle.engine == "wasm":
            return verdict_from(WasmPolicy(bundle.wasm, bytes(bundle.data), bundle.modules).query(asked))
        if opa is None:
            raise UnusableInput("the policy was an OPA server's, and there is no OPA program to ask it with: say --opa")
        return verdict_from(_by_opa(opa, bundle, asked))
    except (msgspec.DecodeError, PolicyError) as error:
        raise UnusableInput(f"the bundle cannot be used: {error}") from error


def _by_opa(program: Path, bundle: _Bundle, asked: bytes) -> object:
    """Give the value of the entry point by `opa eval`, which is let near no network. Raises PolicyError."""
    with tempfile.TemporaryDirectory(prefix="signet-explain-") as name:
        policy, able = Path(name) / "policy", Path(name) / "able.json"
        policy.mkdir()
        (policy / "data.json").write_bytes(bundle.data)
        for number, source in enumerate(bundle.modules.values()):
            (policy / f"{number}.rego").write_text(source, "utf-8")
        rule = f"data.{ENTRYPOINT.replace('/', '.')}"
        try:
            known = json.loads(_run([program, "capabilities", "--current"], b""))
            # Whoever made the bundle must reach nothing from the machine that replays it.
            known["builtins"] = [each for each in known["builtins"] if each["name"] not in OUTWARD]
            able.write_text(json.dumps(known | {"allow_net": []}))
            options = [f"--data={policy}", f"--capabilities={able}", "--format=json", "--stdin-input"]
            (answer,) = json.loads(_run([program, "eval", *options, rule], asked))["result"]
            return answer["expressions"][0]["value"]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError, TypeError) as error:
            raise PolicyError("OPA gave no answer") from error


def _run(command: list[str | Path], given: bytes) -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, timeout=OPA_TIMEOUT_S, check=True)  # noqa: S603  the operator's own program
    return done.stdout


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnusableInput(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise UnusableInput(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
    return raw


def _receipt(path: Path) -> dict[str, Any]:
    try:
        receipt = json.loads(_read(path))
    except ValueError as error:
        raise UnusableInput(f"{path}: is not JSON") from error
    if not isinstance(receipt, dict):
        raise UnusableInput(f"{path}: is no receipt")
    return receipt


def _told(found: dict[str, Any]) -> str:
    verdict, asked = found["verdict"], found["input"]
    phase = asked.get("phase", "closed")
    lines = [
        f"receipt   {found['receipt']}: {found['told']['decision']}, {found['told']['reason']}",
        (
            f"policy    {'allows' if verdict['allow'] else 'refuses'}, by rule {verdict['rule']}"
            f" (floor {verdict['floor_share']:g}, fallback {'yes' if verdict['fallback_classic'] else 'no'})"
        ),
        (
            f"asked     {asked['method']} {asked['path']} on route {asked['route']} by {asked['subject']}"
            f" with {'+'.join(asked['algorithms'])}, bound by {asked['binding']}, breaker {phase}"
        ),
    ]
    if asked.get("policy_commit"):
        lines.append(f"commit    the policy is of git commit {asked['policy_commit']}, as its operator said")
    if found["plan"]:
        plan = found["plan"]
        lines.append(
            f"plan      {plan['action']}: errors {plan['errors_permille'] / 10:g} %, slowness"
            f" {plan['slowness_permille'] / 10:g} %, transition {plan['epoch']}"
        )
    if found["decided_by"] == "fallback":
        lines.append("fallback  refused: policy permits no classical half of a hybrid alone on this route")
    if found["agrees"] is None:
        lines.append("there was no verdict then: the policy gave no usable answer")
    else:
        lines.append("the same verdict as then" if found["agrees"] else "NOT the verdict of then")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Obey the command line.

    0: the same verdict as then; 1: another one; 2: input that cannot be used; 3: there was no verdict then.
    """
    parser = argparse.ArgumentParser(prog="python -m policy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("explain", help="replay a receipt's question against the policy it was decided under")
    command.add_argument("receipt", type=Path, help="the receipt's JSON, as /v1/receipts/ID gives it")
    command.add_argument("--bundle", type=Path, required=True, help="policy/bundle of a pack, or log/policy-bundle")
    command.add_argument("--json", action="store_true", help="the answer as JSON")
    found_opa = shutil.which("opa")
    command.add_argument(
        "--opa", type=Path, default=found_opa and Path(found_opa), help="the OPA program, for its server"
    )
    options = parser.parse_args(arguments)
    try:
        found = explain(_receipt(options.receipt), _read(options.bundle), options.opa)
    except UnusableInput as error:
        print(f"policy: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    print(json.dumps(found, indent=2) if options.json else _told(found))
    if found["agrees"] is None:
        return EXIT_NO_VERDICT
    return EXIT_SAME if found["agrees"] else EXIT_DIFFERENT


if __name__ == "__main__":
    sys.exit(main())
