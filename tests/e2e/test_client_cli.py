"""The `pch` command end to end: keygen, request, sign, inspect, explain, and the demonstration."""

from __future__ import annotations

import io
import json
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from pch.algorithms import ALGORITHMS, HYBRIDS
from pch.client.cli import main
from pch.client.tls_session import TlsContext
from pch.keys import private_key_from_jwk, thumbprint
from tests.e2e.client_any import Bench
from tests.e2e.client_verifier import Forced, Verifier
from tools import pch_client_demo

CHALLENGE = "AQAAAAc" + "A" * 53
BINDING_HEX = "ab" * 32


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("cli")
    assert main(["keygen", "--out", str(folder / "key.json")]) == 0
    return Bench(folder, json.loads((folder / "key.json").read_text()))


def key_of(bench: Bench) -> str:
    return str(bench.folder / "key.json")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code, out, _ = run(capsys, *arguments, "--json")
    return code, json.loads(out)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_keygen_writes_a_private_key_for_its_owner_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, algorithm: str
) -> None:
    path, public = tmp_path / "key.json", tmp_path / "public.json"
    code, told = run_json(capsys, "keygen", "--alg", algorithm, "--out", str(path), "--public-out", str(public))
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    private = json.loads(path.read_text())
    assert private_key_from_jwk(private).algorithm.name == algorithm
    assert told["key_id"] == thumbprint(private)
    assert told["key_ids"] == [thumbprint(private)]
    assert json.loads(public.read_text()) == told["public_jwk"]
    assert private[ALGORITHMS[algorithm].private_member] not in json.dumps(told)


@pytest.mark.parametrize("algorithm", sorted(HYBRIDS))
def test_keygen_of_a_hybrid_writes_both_keys_as_a_jwk_set(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, algorithm: str
) -> None:
    path, public = tmp_path / "key.jwks", tmp_path / "public.jwks"
    code, told = run_json(capsys, "keygen", "--alg", algorithm, "--out", str(path), "--public-out", str(public))
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys = json.loads(path.read_text())["keys"]
    assert [private_key_from_jwk(key).algorithm.name for key in keys] == algorithm.split("+")
    assert told["key_ids"] == [thumbprint(key) for key in keys]
    assert json.loads(public.read_text()) == told["public_jwk"]
    assert [thumbprint(key) for key in told["public_jwk"]["keys"]] == told["key_ids"]
    for key, name in zip(keys, algorithm.split("+"), strict=True):
        assert key[ALGORITHMS[name].private_member] not in json.dumps(told)


@pytest.mark.parametrize(
    ("alg", "labels"),
    [
        (None, ["pch", "pch-pq"]),
        ("ed25519+ml-dsa-65", ["pch", "pch-pq"]),
        ("ed25519", ["pch"]),
        ("ml-dsa-65", ["pch"]),
    ],
)
def test_sign_uses_the_keys_that_alg_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, alg: str | None, labels: list[str]
) -> None:
    path = tmp_path / "key.jwks"
    assert run(capsys, "keygen", "--alg", "ed25519+ml-dsa-65", "--out", str(path))[0] == 0
    chosen = [] if alg is None else ["--alg", alg]
    url = "https://app.example/x"
    code, told = run_json(capsys, "sign", url, "--key", str(path), "--challenge", CHALLENGE, *chosen)
    assert code == 0
    fields = dict(told["headers"])
    assert [member.partition("=")[0] for member in fields["signature"].split(", ")] == labels
    assert len(told["signature_bases"]) == len(labels)
    assert told["signature_base"] == told["signature_bases"][0]


@pytest.mark.parametrize("alg", ["ecdsa-p256-sha256", "ed25519+ml-dsa-44", "nonsense", ""])
def test_an_algorithm_that_the_keys_cannot_do_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, alg: str
) -> None:
    path = tmp_path / "key.jwks"
    assert run(capsys, "keygen", "--alg", "ed25519+ml-dsa-65", "--out", str(path))[0] == 0
    assert run(capsys, "sign", "https://h/x", "--key", str(path), "--challenge", CHALLENGE, "--alg", alg)[0] == 2


def test_the_halves_of_a_hybrid_may_come_from_two_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("ml-dsa-65", "ecdsa-p256-sha256", "ml-dsa-44"):
        assert run(capsys, "keygen", "--alg", name, "--out", str(tmp_path / name))[0] == 0
    keys = ["--key", str(tmp_path / "ml-dsa-65"), "--key", str(tmp_path / "ecdsa-p256-sha256")]
    code, out, _ = run(capsys, "sign", "https://h/x", "--challenge", CHALLENGE, *keys)
    assert code == 0
    assert out.index('alg="ecdsa-p256-sha256"') < out.index('alg="ml-dsa-65"')
    wrong = ["--key", str(tmp_path / "ml-dsa-44"), "--key", str(tmp_path / "ecdsa-p256-sha256")]
    assert run(capsys, "sign", "https://h/x", "--challenge", CHALLENGE, *wrong)[0] == 2


def test_keygen_never_overwrites(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text("precious")
    assert run(capsys, "keygen", "--out", str(path))[0] == 2
    assert path.read_text() == "precious"
    code, out, err = run(capsys, "keygen", "--out", str(tmp_path / "new.json"))
    assert code == 0
    assert set(json.loads(out)) == {"kty", "crv", "x"}
    assert thumbprint(json.loads(out)) in err
    assert run(capsys, "keygen", "--out", str(tmp_path / "absent" / "key.json"))[0] == 2


def test_request_gets_through(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with bench.server() as server:
        options = ["--key", key_of(bench), "--cacert", str(bench.ca.path)]
        code, out, _ = run(capsys, "request", *options, server.url(), "-d", "hello")
        assert (code, out) == (0, "app:hello")
        code, out, err = run(capsys, "request", *options, server.url(), "-i", "-v", "--http1.1", "-H", "X-A: b")
        assert code == 0
        assert out.startswith("HTTP/1.1 200\n")
        assert "pch-receipt" in out
        assert "(unsigned): 401" in err
        assert server.verifier.received[-1].message.lines("x-a") == [b"b"]
        code, told = run_json(capsys, "request", *options, server.url(), "-X", "PUT")
        assert code == 0
        assert (told["status"], told["signed"], told["sends"], told["content"]) == (200, True, 2, "app:")
        assert told["receipt_id"]


def test_request_tells_a_refusal_by_its_exit_code(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with bench.server(verifier=Verifier(bench.key)) as server:
        options = ["--key", key_of(bench), "--cacert", str(bench.ca.path)]
        server.verifier.forced.append(Forced(403, "policy_denied"))
        code, _, err = run(capsys, "request", *options, server.url())
        assert code == 1
        assert "policy_denied" in err
        code, told = run_json(capsys, "request", *options, "--binding", "none", server.url())
        assert (code, told["error"]) == (1, "ChallengeUnusable")
        code, told = run_json(capsys, "request", "--key", key_of(bench), server.url())
        assert (code, told["error"]) == (3, "CertificateRefused")
        assert run(capsys, "request", "--key", key_of(bench), "--insecure", server.url())[0] == 0
    assert run(capsys, "request", "--key", key_of(bench), "https://127.0.0.1:1/")[0] == 3
    assert run(capsys, "request", "--key", key_of(bench), "ftp://127.0.0.1/")[0] == 2
    assert run(capsys, "request", "--key", key_of(bench), "-H", "no colon", "https://h/")[0] == 2


def test_binary_content_survives_json(bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\xff\x00")
    with bench.server() as server:
        code, told = run_json(
            capsys, "request", "--key", key_of(bench), "-k", "--data-file", str(tmp_path / "data"), server.url()
        )
    assert code == 0
    assert told["content_base64"] == "YXBwOv8A"


@pytest.mark.parametrize(
    ("name", "content"),
    [("broken", b"{"), ("list", b"[]"), ("other", b'{"kty": "oct", "k": "AAAA"}'), ("long", b" " * 70_000)],
)
def test_unusable_key_file_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    path.chmod(0o600)
    assert run(capsys, "request", "--key", str(path), "https://127.0.0.1:1/")[0] == 2
    assert run(capsys, "request", "--key", str(tmp_path / "absent"), "https://127.0.0.1:1/")[0] == 2


def test_key_file_open_to_others_is_told(bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(bench.key))
    path.chmod(0o644)
    arguments = ["sign", "--challenge", CHALLENGE, "https://h/"]
    assert "open to other users" in run(capsys, *arguments, "--key", str(path))[2]
    path.chmod(0o600)
    assert run(capsys, *arguments, "--key", str(path))[2] == ""


def test_signed_fields_are_usable_by_another_program(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    verifier = Verifier(bench.key, binding="none")
    with bench.server(http2=False, verifier=verifier) as server:
        verifier.issued[CHALLENGE] = 1
        target = ["-d", "hi", server.url("/protected?q=1")]
        code, told = run_json(capsys, "sign", "--key", key_of(bench), "--challenge", CHALLENGE, *target)
        assert code == 0
        fields = "".join(f"{name}: {value}\r\n" for name, value in told["headers"])
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            session = TlsContext(verify=False, bound=False, http2=False).session("localhost")
            while not session.handshake():
                raw.sendall(session.outgoing())
                session.receive(raw.recv(65536))
            head = f"POST /protected?q=1 HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\ncontent-length: 2\r\n"
            session.write((head + fields + "\r\nhi").encode())
            raw.sendall(session.outgoing())
            while (answer := session.read(65536)) is None:
                session.receive(raw.recv(65536))
        assert answer.startswith(b"HTTP/1.1 200")


def test_sign_prints_lines_that_explain_reads(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, fields, _ = run(
        capsys,
        "sign",
        "--key",
        key_of(bench),
        "--challenge",
        CHALLENGE,
        "--binding-hex",
        BINDING_HEX,
        "-d",
        "hi",
        "-H",
        "X-A: 1",
        "--cover",
        "x-a",
        "--created",
        "1000",
        "https://h/a?b",
    )
    assert code == 0
    (tmp_path / "fields").write_text("HTTP/1.1 200 OK\n" + fields + "x-a: 1\n")
    request = ["-d", "hi", "--headers-file", str(tmp_path / "fields"), "https://h/a?b"]
    code, out, _ = run(capsys, "explain", *request)
    assert code == 0
    assert '"@method": POST' in out
    assert '"x-a": 1' in out
    assert "no other one has this exporter" in out
    code, told = run_json(capsys, "explain", *request, "--label", "pch")
    assert [line["component"] for line in told["lines"]] == [
        "@method",
        "@authority",
        "@path",
        "@query",
        "content-digest",
        "pch-channel-binding",
        "x-a",
        "@signature-params",
    ]
    assert told["missing_components"] == []
    assert all(line["meaning"] for line in told["lines"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(fields.encode())))
    code, out, _ = run(capsys, "inspect", "--headers-file", "-")
    assert code == 0
    assert "created_utc: 1970-01-01T00:16:40.000Z" in out
    assert "signature_bytes: 64" in out


def test_explain_tells_what_is_not_covered(capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["-H", 'Signature-Input: a=("@method");tag="x"', "-H", "PCH-Channel-Binding: b"]
    code, out, _ = run(capsys, "explain", *fields, "https://h/")
    assert code == 0
    for name in ("@authority", "@path", "@query", "pch-channel-binding"):
        assert f"wants it: {name}" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["explain", "https://h/"], 2),
        (["explain", "https://h/", "-H", 'Signature-Input: a=("@method")', "--label", "b"], 2),
        (["explain", "https://h/", "-H", "Signature-Input: a="], 1),
        (["explain", "https://h/", "-H", 'Signature-Input: a=("x-absent")'], 1),
        (["inspect"], 2),
        (["inspect", "-H", "X-A: 1"], 2),
        (["inspect", "--challenge", "short"], 2),
        (["inspect", "-H", "Signature-Input: a="], 1),
        (["inspect", "-H", "PCH-Challenge: x"], 1),
        (["inspect", "--headers-file", "/nonexistent"], 2),
        (["sign", "--key", "/nonexistent", "--challenge", CHALLENGE, "https://h/"], 2),
    ],
)
def test_unusable_input_has_its_exit_code(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    assert run(capsys, *arguments)[0] == code
    as_json, told = run_json(capsys, *arguments)
    assert as_json == code
    assert told["message"]


@pytest.mark.parametrize(
    "changes",
    [
        ["--binding-hex", "zz"],
        ["--binding-hex", "ab"],
        ["--challenge", "short"],
        ["-H", "PCH-Evidence: x"],
        ["-X", "A B"],
    ],
)
def test_request_that_cannot_be_signed_is_a_usage_error(
    bench: Bench, capsys: pytest.CaptureFixture[str], changes: list[str]
) -> None:
    good = ["sign", "--key", key_of(bench), "--challenge", CHALLENGE, "https://h/"]
    assert run(capsys, *good)[0] == 0
    assert run(capsys, *good, *changes)[0] == 2


def test_inspect_reads_an_offered_challenge(capsys: pytest.CaptureFixture[str]) -> None:
    offered = (
        f'WWW-Authenticate: PCH realm="r", challenge="{CHALLENGE}", algs="ed25519", mode="and", '
        'binding="none", max-age=60, evidence="none"'
    )
    listed = f'PCH-Challenge: "{CHALLENGE}", "{"B" * 60}"'
    signature = ["-H", 'Signature-Input: a=("@method");nonce="n";created=99999999999999', "-H", "Signature: b=:eA==:"]
    code, told = run_json(capsys, "inspect", "-H", offered, "-H", listed, *signature)
    assert code == 0
    assert told["offered"]["challenge"]["epoch"] == 7
    assert [each["challenge"] for each in told["challenges"]] == [CHALLENGE, "B" * 60]
    assert told["signatures"][0]["nonce_parts"] == "not a PCH challenge"
    assert told["signatures"][0]["created_utc"] == "out of range"
    assert told["signatures"][1] == {"label": "b", "signature_bytes": 1}
    assert run(capsys, "inspect", "-H", offered, *signature)[0] == 0
    assert run(capsys, "inspect", "--challenge", f'"{CHALLENGE}"')[0] == 0


@pytest.mark.parametrize("verb", [[], ["keygen"], ["public"], ["request"], ["sign"], ["inspect"], ["explain"]])
def test_every_verb_has_help(capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    assert ("--json" in capsys.readouterr().out) == bool(verb)


def test_missing_verb_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2


def test_demonstration_tells_the_whole_story(bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with bench.server() as server:
        stack = tmp_path / "stack.json"
        origin = server.url("")
        stack.write_text(json.dumps({"demo_key": key_of(bench), "ca": str(bench.ca.path), "https": origin}))
        arguments = ["--stack", str(stack), "--binding", "tls-exporter", "--url", server.url()]
        for extra in ([], ["--insecure"], ["--alg", "ed25519"], ["--cacert", str(bench.ca.path)]):
            assert pch_client_demo.main([*arguments, *extra]) == 0
            out = capsys.readouterr().out
            for told in (
                "← 401",
                "challenge",
                "signature-input: pch=",
                '| "pch-channel-binding":',
                "← 200",
                "receipt:  0192",
            ):
                assert told in out
        assert pch_client_demo.main([*arguments, "--json", "--method", "POST", "--data", "x"]) == 0
        assert json.loads(capsys.readouterr().out)["status"] == 200
        server.verifier.forced.append(Forced(403, "policy_denied"))
        assert pch_client_demo.main(arguments) == 1
        assert "refused: policy_denied" in capsys.readouterr().out
        assert pch_client_demo.main([*arguments, "--alg", "ml-dsa-65"]) == 2
        assert pch_client_demo.main([*arguments, "--binding", "none"]) == 1
        assert pch_client_demo.main(["--url", server.url(), "--stack", str(tmp_path / "absent")]) == 2
        assert pch_client_demo.main(["--url", server.url(), "--stack", str(tmp_path), "--key", key_of(bench)]) == 3
        assert pch_client_demo.main([*arguments[:-1], server.url("/open")]) == 0
        assert "not guarded" in capsys.readouterr().out
