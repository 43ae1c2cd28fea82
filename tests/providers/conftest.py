from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.provider_parts import PROVIDER_NAMES, open_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kms.providers.provider import Provider


@pytest.fixture(scope="module", params=PROVIDER_NAMES)
def provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """Each provider over its real part, one for all the tests of a file."""
    with open_named(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


@pytest.fixture(params=PROVIDER_NAMES)
def own_provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """Each provider over its real part, for a test that closes or breaks it."""
    with open_named(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened
