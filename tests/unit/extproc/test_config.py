"""The configuration file: what is accepted, what is refused and where the message points."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from extproc.config import MAX_CONFIG_BYTES, MAX_SOCKET_PATH_BYTES, FilterConfig, load_config
from extproc.config_fields import ConfigError, kinds_of
from extproc.config_kinds import Number
from extproc.config_sections import SECTIONS
from extproc.plan import BreakerPlan, Plan
from extproc.route import MAX_ROUTES, Route

REFERENCE = Path(__file__).parents[3] / "docs/reference/filter.toml"
ROUTE = '[[route]]\nname = "all"\npath = "/**"\n'


def load(folder: Path, text: str, environ: dict[str, str] | None = None) -> FilterConfig:
    path = folder / "f.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ or {})


def refusal(folder: Path, text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    return str(caught.value).replace(str(folder / "f.toml"), "f.toml")


def test_every_documented_default_is_the_codes_default() -> None:
    documented = load_config(REFERENCE, {})
    base = REFERENCE.parent
    for name, section in SECTIONS.items():
        expected = section()
        for field in dataclasses.fields(section):
            default = getattr(expected, field.name)
            if isinstance(default, Path):
                default = base / default
            if (name, field.name) == ("receipts", "url"):
                default = f"sqlite:{base / 'receipts.sqlite3'}"
            assert getattr(getattr(documented, name), field.name) == default, f"{name}.{field.name}"
    assert documented.routes == (Route(name="protected", path="/protected/**"),)


def test_every_key_is_documented_with_its_range() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    tables = dict(zip(*[iter(re.split(r"^\[+([a-z_.]+)\]+$", text, flags=re.MULTILINE)[1:])] * 2, strict=True))
    assert set(tables) == {*SECTIONS, "route", "plan", "plan.breaker"}
    for name, struct in {"plan": Plan, "plan.breaker": BreakerPlan}.items():
        for key in set(struct.__struct_fields__) - {"version", "breaker"}:
            default = getattr(Plan() if name == "plan" else Plan().breaker, key)
            assert re.search(rf"^{key} = {default!r} +# .*$", tables[name], re.MULTILINE), f"{name}.{key}"
    for name, section in {**SECTIONS, "route": Route}.items():
        for key, kind in kinds_of(section).items():
            line = re.search(rf"^(?:# )?{key} = .*$", tables[name], re.MULTILINE)
            assert line, f"{name}.{key}"
            assert "#" in line[0], f"{name}.{key} has no comment"
            if isinstance(kind, Number):
                assert f"{kind.minimum} to {kind.maximum}" in tables[name], f"{name}.{key}"


def test_an_empty_file_with_a_route_has_all_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, ROUTE)
    assert config.filter.workers == 2
    assert config.nonce_store.path == tmp_path / "nonces.sqlite3"
    assert config.receipts.url == f"sqlite:{tmp_path}/receipts.sqlite3"
    assert config.routes[0].guarded
    assert config.routes[0].bound


def test_paths_are_relative_to_the_file_and_absolute_ones_stay(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        '[keyring]\npath = "a/k.json"\n[sealing]\npath = "/etc/s.json"\n[receipts]\nurl = "sqlite:/var/r"\n' + ROUTE,
    )
    assert config.keyring.path == tmp_path / "a/k.json"
    assert config.sealing.path == Path("/etc/s.json")
    assert config.receipts.url == "sqlite:/var/r"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.toml: route: at least one [[route]] is required"),
        ("route = 3", "f.toml: route: at least one [[route]] is required"),
        ("x = 1\n" + ROUTE, "f.toml: x: unknown section"),
        ("[filtre]\n" + ROUTE, "f.toml: filtre: unknown section"),
        ("[filter]\nworkres = 1\n" + ROUTE, "f.toml: filter.workres: unknown key"),
        ('[filter]\n"a\\nb" = 1\n' + ROUTE, "f.toml: filter.a?b: unknown key"),
        ("filter = 3\n" + ROUTE, "f.toml: filter: must be a table"),
        (ROUTE + "max_body = 1", "f.toml: route[1].max_body: unknown key"),
        ('[[route]]\npath = "/"', "f.toml: route[1].name: is required"),
        ('[[route]]\nname = "a"', "f.toml: route[1].path: is required"),
        (ROUTE + ROUTE, "f.toml: route[2].name: is used by an earlier route"),
        (ROUTE + 'algorithms = ["rsa"]', "f.toml: route[1].algorithms: member 1 is not one of"),
        (ROUTE + "algorithms = []", "f.toml: route[1].algorithms: must have 1 to 16 members"),
        (
            ROUTE + 'algorithms = ["ed25519", "ed25519"]',
            "f.toml: route[1].algorithms: has a duplicate member",
        ),
        (ROUTE + 'algorithms = "ed25519"', "f.toml: route[1].algorithms: must be a list of texts"),
        (
            ROUTE + 'methods = ["get"]',
            'f.toml: route[1].methods: member 1 must be "*" or an upper-case method',
        ),
        (ROUTE + 'methods = ["*", "GET"]', 'f.toml: route[1].methods: "*" stands alone'),
        (ROUTE + 'hosts = ["Example.com"]', "f.toml: route[1].hosts: member 1 must be a lower-case host"),
        (ROUTE + 'guard = "none"', 'f.toml: route[1].guard: must be one of "pch", "open"'),
        (ROUTE + 'binding = "off"', 'f.toml: route[1].binding: must be one of "tls-exporter", "none"'),
        (ROUTE + 'mode = "xor"', 'f.toml: route[1].mode: must be one of "and", "or", "pq_only"'),
        (ROUTE + 'mode = "pq_only"', 'f.toml: route[1].algorithms: mode "pq_only" accepts no ed25519 alone'),
        (
            ROUTE + 'algorithms = ["ed25519+ml-dsa-44"]',
            "f.toml: route[1].algorithms: member 1 is not one of ecdsa-p256",
        ),
        (ROUTE + 'evidence = "perhaps"', "f.toml: route[1].evidence: must be"),
        (ROUTE + 'relax = "never"', "f.toml: route[1].relax: must be"),
        (ROUTE + 'guard = "open"\nrelax = "always"', 'f.toml: route[1].relax: has no effect with guard = "open"'),
        (ROUTE + "max_field_bytes = 49153", "f.toml: route[1].max_field_bytes: must be"),
        (ROUTE + 'guard = "open"\nsubjects = ["a"]', "f.toml: route[1].subjects: has no effect with guard"),
        (
            ROUTE + 'guard = "open"\nbinding = "tls-exporter"',
            "f.toml: route[1].binding: has no effect with guard",
        ),
        (ROUTE + 'subjects = [""]', "f.toml: route[1].subjects: member 1 must be a subject"),
        (ROUTE + 'permit_upgrade = "yes"', "f.toml: route[1].permit_upgrade: must be true or false"),
        ('[[route]]\nname = "A"\npath = "/"', "f.toml: route[1].name: must be 1 to 64 of"),
        (
            '[[route]]\nname = "a"\npath = "/a/**/b"',
            "f.toml: route[1].path: may hold ** only as its last segment",
        ),
        ('[[route]]\nname = "a"\npath = 3', "f.toml: route[1].path: must be text"),
        (
            '[nonce_store]\nkind = "memory"\n' + ROUTE,
            'f.toml: nonce_store.kind: "memory" guards one process only',
        ),
        (
            "[filter]\nsocket_mode = 0o666\n" + ROUTE,
            "f.toml: filter.socket_mode: must be one of 0o600, 0o660",
        ),
        ("[filter]\nsocket_mode = 600\n" + ROUTE, "f.toml: filter.socket_mode: must be one of 0o600, 0o660"),
        ('[nonce_store]\nkind = "etcd"\n' + ROUTE, "f.toml: nonce_store.kind: must be one of"),
        ('[nonce_store]\npath = ""\n' + ROUTE, "f.toml: nonce_store.path: must be a path"),
        (
            '[admin]\nhost = "0.0.0.0"\n' + ROUTE,
            "f.toml: admin.host: other than loopback needs tls_cert, tls_key",
        ),
        ('[admin]\nhost = "::"\n' + ROUTE, "f.toml: admin.host: other than loopback needs tls_cert, tls_key"),
        ('[admin]\nhost = "::ffff:10.0.0.1"\n' + ROUTE, "f.toml: admin.host: other than loopback needs"),
        ('[admin]\nhost = "127.0.0.1.example"\n' + ROUTE, "f.toml: admin.host: must be an IP address"),
        ('[admin]\nhost = "1.2.3"\n' + ROUTE, "f.toml: admin.host: must be an IP address"),
        ('[admin]\nhost = ""\n' + ROUTE, "f.toml: admin.host: must be an IP address"),
        (
            '[admin]\nhost = "10.0.0.1"\ntls_cert = "c"\ntls_key = "k"\n' + ROUTE,
            "f.toml: admin.host: other than loopback needs tls_cert, tls_key and bearer_token_file",
        ),
        (
            '[admin]\nhost = "10.0.0.1"\nbearer_token_file = "t"\n' + ROUTE,
            "f.toml: admin.host: other than loopback needs tls_cert, tls_key and bearer_token_file",
        ),
        ('[admin]\ntls_cert = "c"\n' + ROUTE, "f.toml: admin.tls_cert: goes together with admin.tls_key"),
        ('[filter]\nrealm = "a\\"b"\n' + ROUTE, "f.toml: filter.realm: must be 1 to 64 of"),
        (
            "[filter]\nworkers = true\n" + ROUTE,
            "f.toml: filter.workers: must be an integer from 1 to 64 (processes)",
        ),
        (
            '[filter]\nworkers = "2"\n' + ROUTE,
            "f.toml: filter.workers: must be an integer from 1 to 64 (processes)",
        ),
        (
            "[filter]\nworkers = 2.0\n" + ROUTE,
            "f.toml: filter.workers: must be an integer from 1 to 64 (processes)",
        ),
        (
            "[filter]\nsocket_dir = '" + "x" * MAX_SOCKET_PATH_BYTES + "'\n" + ROUTE,
            "f.toml: filter.socket_dir: makes",
        ),
        ("[filter\n", "f.toml: is not TOML"),
        ("#" * (MAX_CONFIG_BYTES + 1), f"f.toml: is larger than {MAX_CONFIG_BYTES} bytes"),
        (
            "".join(f'[[route]]\nname = "r{n}"\npath = "/"\n' for n in range(MAX_ROUTES + 1)),
            f"f.toml: route: at most {MAX_ROUTES} are accepted",
        ),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


NUMBERS = [
    (name, key, kind)
    for name, section in SECTIONS.items()
    for key, kind in kinds_of(section).items()
    if isinstance(kind, Number)
]


@pytest.mark.parametrize(("name", "key", "kind"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_numbers_are_accepted_at_both_ends_and_refused_one_beyond(
    tmp_path: Path, name: str, key: str, kind: Number
) -> None:
    for value in (kind.minimum, kind.maximum):
        config = load(tmp_path, f"[{name}]\n{key} = {value}\n" + ROUTE)
        assert getattr(getattr(config, name), key) == value
    for value in (kind.minimum - 1, kind.maximum + 1):
        message = refusal(tmp_path, f"[{name}]\n{key} = {value}\n" + ROUTE)
        assert message.startswith(f"f.toml: {name}.{key}: must be an integer from {kind.minimum} to {kind.maximum}")
        assert kind.unit in message


def test_an_admin_host_beyond_loopback_is_accepted_with_all_three_files(tmp_path: Path) -> None:
    files = 'tls_cert = "c"\ntls_key = "k"\nbearer_token_file = "t"\n'
    config = load(tmp_path, f'[admin]\nhost = "0.0.0.0"\n{files}' + ROUTE)
    assert config.admin.tls_key == tmp_path / "k"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_files(tmp_path: Path, host: str) -> None:
    assert load(tmp_path, f'[admin]\nhost = "{host}"\n' + ROUTE).admin.host == host


def test_the_memory_store_is_accepted_for_one_worker(tmp_path: Path) -> None:
    config = load(tmp_path, '[filter]\nworkers = 1\n[nonce_store]\nkind = "memory"\n' + ROUTE)
    assert config.nonce_store.kind == "memory"


def test_an_override_can_make_the_file_unacceptable(tmp_path: Path) -> None:
    text = '[filter]\nworkers = 1\n[nonce_store]\nkind = "memory"\n' + ROUTE
    assert "guards one process only" in refusal(tmp_path, text, {"SIGNET_FILTER_WORKERS": "2"})


def test_the_environment_overrides_scalars_and_other_variables_are_left_alone(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "[filter]\nworkers = 3\n" + ROUTE,
        {
            "SIGNET_FILTER_WORKERS": "5",
            "SIGNET_NONCE_STORE_URL": "unix:///run/redis.sock",
            "SIGNET_RECEIPTS_URL": "sqlite:r2",
            "SIGNET_ADMIN_PORT": "8081",
            "SIGNET_FILTER_SOCKET_MODE": "0o660",
            "SIGNET_KEYRING_PATH": "other.json",
            "SIGNET_TLS_CERTIFICATE": "of another program",
            "PATH": "/bin",
        },
    )
    assert config.filter.workers == 5
    assert config.nonce_store.url == "unix:///run/redis.sock"
    assert config.receipts.url == f"sqlite:{tmp_path}/r2"
    assert config.admin.port == 8081
    assert config.filter.socket_mode == 0o660
    assert config.keyring.path == tmp_path / "other.json"


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("SIGNET_FILTER_WORKRES", "1", "environment: SIGNET_FILTER_WORKRES: unknown key"),
        ("SIGNET_FILTER_workers", "1", "environment: SIGNET_FILTER_workers: unknown key"),
        ("SIGNET_FILTER_WORKERS", "two", "environment: SIGNET_FILTER_WORKERS: must be an integer"),
        ("SIGNET_FILTER_SOCKET_MODE", "0660", "environment: SIGNET_FILTER_SOCKET_MODE: must be one of 0o600"),
        ("SIGNET_FILTER_WORKERS", "0", "environment: SIGNET_FILTER_WORKERS: must be an integer"),
        ("SIGNET_FILTER_WORKERS", "٣", "environment: SIGNET_FILTER_WORKERS: must be an integer"),
        ("SIGNET_NONCE_STORE_URL", "http://x/", "environment: SIGNET_NONCE_STORE_URL: must be a URL"),
    ],
)
def test_a_bad_override_is_refused_with_its_name(tmp_path: Path, variable: str, text: str, message: str) -> None:
    assert refusal(tmp_path, ROUTE, {variable: text}).startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@h:99999/0",
        "http://:hunter2@h/",
        "redis://:hunter2@h/0#f",
        "redis://[hunter2",
        "redis:",
        3,
    ],
)
def test_a_refused_url_is_not_shown(tmp_path: Path, url: object) -> None:
    message = refusal(tmp_path, f"[nonce_store]\nurl = {url if isinstance(url, int) else repr(url)}\n" + ROUTE)
    assert message.startswith("f.toml: nonce_store.url: must be a URL")
    assert "hunter2" not in message


def test_credentials_are_neither_shown_nor_digested(tmp_path: Path) -> None:
    one = load(tmp_path, ROUTE, {"SIGNET_NONCE_STORE_URL": "redis://u:hunter2@h:1/0?password=hunter2"})
    two = load(tmp_path, ROUTE, {"SIGNET_NONCE_STORE_URL": "redis://u:hunter3@h:1/0?password=hunter3"})
    other = load(tmp_path, ROUTE, {"SIGNET_NONCE_STORE_URL": "redis://u:hunter2@h:2/0"})
    assert "hunter2" in one.nonce_store.url
    assert "hunter2" not in repr(one)
    assert one.digest == two.digest != other.digest


def test_the_digest_depends_on_settings_and_not_on_the_folder_or_the_spelling(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    plain = load(tmp_path, ROUTE)
    assert re.fullmatch("[0-9a-f]{64}", plain.digest)
    assert load(tmp_path / "b", "# comment\n[filter]\nworkers=2\n" + ROUTE).digest == plain.digest
    assert load(tmp_path, ROUTE, {"SIGNET_FILTER_WORKERS": "2"}).digest == plain.digest
    changed = {
        load(tmp_path, "[filter]\nworkers = 3\n" + ROUTE).digest,
        load(tmp_path, ROUTE, {"SIGNET_FILTER_WORKERS": "4"}).digest,
        load(tmp_path, ROUTE + 'subjects = ["a"]').digest,
        load(tmp_path, ROUTE.replace("all", "any")).digest,
        load(tmp_path, '[keyring]\npath = "k"\n' + ROUTE).digest,
    }
    assert len(changed | {plain.digest}) == 6


def test_a_file_that_cannot_be_read_or_decoded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml", {})
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(path, {})


def test_the_configuration_is_frozen(tmp_path: Path) -> None:
    config = load(tmp_path, ROUTE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.filter.workers = 9  # type: ignore[misc]
