from __future__ import annotations

from tests.support.store_fixtures import (  # noqa: F401
    _postgres_session,
    any_store,
    own_postgres,
    postgres,
    postgres_url,
    store_url,
)
