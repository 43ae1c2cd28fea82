"""A provider that is closed. Its own file: a PKCS#11 module has one provider at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kms.errors import StoreUnavailable
from tests.support.provider_parts import kid_of, use

if TYPE_CHECKING:
    from kms.providers.provider import Provider


def test_a_closed_provider_refuses_everything(own_provider: Provider) -> None:
    keys = [own_provider.generate(primitive, kid_of(primitive)) for primitive in sorted(own_provider.primitives)]
    own_provider.close()
    own_provider.close()
    with pytest.raises(StoreUnavailable):
        own_provider.check()
    for key in keys:
        with pytest.raises(StoreUnavailable):
            use(own_provider, key.primitive, key.handle)
        with pytest.raises(StoreUnavailable):
            own_provider.generate(key.primitive, kid_of(key.primitive))
