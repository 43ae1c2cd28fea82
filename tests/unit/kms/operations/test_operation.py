"""What a backend's refusal says of the backend: it is away, or one key is damaged, or it is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from kms.errors import KmsError, NotFound, StoreUnavailable, Timeout
from kms.kid import parse_kid
from kms.messages import WrapRequest
from kms.operations.operation import AWAY
from kms.providers.file import open_file_provider
from tests.support.kms_core import running_core
from tests.support.kms_providers import StagedProvider


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize(
    ("error", "away"),
    [
        *((StoreUnavailable("x", reason=reason), True) for reason in sorted(AWAY)),
        (Timeout("x"), True),
        (Timeout("x", reason="token_timeout"), True),
        *(
            (StoreUnavailable("x", reason=reason), False)
            for reason in ("key_limit", "disk_full", "sealed_file_seal_broken", "sealed_file_unreadable", "token_fault")
        ),
        (StoreUnavailable("x", reason="token_key_extractable"), False),
        (NotFound("x"), False),
    ],
)
async def test_only_what_means_away_is_noted_as_an_outage(error: KmsError, *, away: bool, in_process: bool) -> None:
    provider = StagedProvider(in_process=in_process)

    def refuse(*_: object) -> bytes:
        raise error

    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        provider.sign = refuse  # type: ignore[method-assign,assignment]
        with pytest.raises(type(error)):
            await bench.sign(kid)
        assert (bench.core.services.custody.outage_ms("staged") is not None) == away


async def test_one_damaged_key_file_leaves_every_other_key_as_it_was(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery staple")
    passphrase.chmod(0o600)
    provider = open_file_provider(tmp_path / "keys", passphrase)
    try:
        async with running_core(provider=provider) as bench:
            bad, good = await bench.create(tenant="mallory"), await bench.create(alg="ml-kem")
            handle = bench.store.keys.find(parse_kid(bad).name).newest.parts[0].handle
            provider._folder.keys[handle] = provider._folder.keys[handle][:-1] + b"\0"
            provider._open.pop(handle)
            with pytest.raises(StoreUnavailable) as refused:
                await bench.sign(bad)
            assert refused.value.reason.startswith("sealed_file_")
            assert (await bench.call("wrap", WrapRequest(kid=good, size=32))).kid == good
            assert bench.core.services.custody.outage_ms("file") is None
    finally:
        provider.close()
