"""The stacks that the attacks share: one for each store kind, and one whose edge vouches for nothing. A key service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("tests.e2e.attack_case", "tests.e2e.attack_stage")

from tests.e2e.attack_stage import Stage, open_stage  # noqa: E402
from tests.support.kms_service import KmsProcess  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def sqlite_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("s")) as stage:
        yield stage


@pytest.fixture(scope="session")
def redis_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("r"), nonce_store="redis") as stage:
        yield stage


@pytest.fixture(scope="session")
def unbound_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("u"), edge="native-none") as stage:
        yield stage


@pytest.fixture
def kms(tmp_path: Path) -> Iterator[Callable[..., KmsProcess]]:
    """Start key services in one folder, each with these environment variables; stop them in the end."""
    started = []

    def start(**settings: str) -> KmsProcess:
        process = KmsProcess(tmp_path, settings)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.stop()
