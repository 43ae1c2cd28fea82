from __future__ import annotations

from tests.support.store_fixtures import _postgres_session, any_store, postgres, postgres_url, store_url  # noqa: F401
