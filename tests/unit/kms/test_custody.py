"""Several backends: the authority signs, nothing falls back by itself (I-20, G-12)."""

from __future__ import annotations

import pytest

from kms.custody import Custody
from kms.errors import PolicyDenied, StoreUnavailable
from kms.key_record import KeyRecord, KeyState
from kms.providers.inmem import InMemoryProvider
from tests.support.kms_core import HandClock
from tests.support.kms_records import name_of, version_of


class Named(InMemoryProvider):
    """The in-memory provider under a name and an attestation class of the test's choice."""

    def __init__(self, name: str, class_: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.attestation_class = class_


def record(provider: str) -> KeyRecord:
    return KeyRecord(name_of(), (version_of(1),), KeyState.ENABLED, 1, (), provider)


def custody(authority: Named, *others: Named, fallback: bool = False) -> Custody:
    by_name = {each.name: each for each in (authority, *others)}
    return Custody(authority, by_name, allow_sign_fallback=fallback, clock=HandClock().clock)


@pytest.mark.parametrize(
    ("authority_class", "other_class", "fallback", "signs"),
    [
        (None, None, False, False),
        (None, None, True, False),
        ("tpm-2.0", "tpm-2.0", False, False),
        ("tpm-2.0", "tpm-2.0", True, True),
        ("tpm-2.0", "pkcs11", True, False),
        ("tpm-2.0", None, True, False),
        (None, "tpm-2.0", True, False),
    ],
)
def test_another_backend_signs_only_where_it_may_and_attests_the_same_class(
    authority_class: str | None, other_class: str | None, *, fallback: bool, signs: bool
) -> None:
    authority, other = Named("pkcs11", authority_class), Named("file", other_class)
    both = custody(authority, other, fallback=fallback)
    assert both.signer(record("pkcs11")) is authority
    if signs:
        assert both.signer(record("file")) is other
    else:
        with pytest.raises(PolicyDenied) as refused:
            both.signer(record("file"))
        assert refused.value.reason == "not_authoritative"
    assert both.holder(record("file")) is other


def test_a_key_of_a_provider_that_is_not_configured_is_refused_not_signed_elsewhere() -> None:
    alone = custody(Named("pkcs11"), fallback=True)
    for use in (alone.signer, alone.holder):
        with pytest.raises(StoreUnavailable) as refused:
            use(record("file"))
        assert refused.value.reason == "provider_missing"
    assert alone.attestation_class("file") is None
    assert alone.outage_ms("file") is not None


def test_an_outage_is_as_long_as_nothing_answered() -> None:
    hand = HandClock()
    provider = Named("file", "c")
    one = Custody(provider, {"file": provider}, allow_sign_fallback=False, clock=hand.clock)
    assert one.outage_ms("file") is None
    hand.now_s += 2
    one.note("file", answered=False)
    assert one.outage_ms("file") == 2000
    one.note("file", answered=True)
    assert one.outage_ms("file") is None
    assert (one.names, one.attestation_class("file")) == (("file",), "c")


def test_only_a_probe_takes_a_provider_out_of_use_and_only_a_probe_brings_it_back() -> None:
    hand = HandClock()
    provider = Named("file")
    one = Custody(provider, {"file": provider}, allow_sign_fallback=False, clock=hand.clock)
    uses = (lambda: one.signer(record("file")), lambda: one.holder(record("file")), one.maker)
    one.note("file", answered=False)
    assert [use() for use in uses] == [provider] * 3
    one.note("file", answered=False, probed=True)
    hand.now_s += 3
    one.note("file", answered=True)
    for use in uses:
        with pytest.raises(StoreUnavailable) as refused:
            use()
        assert refused.value.retry_after_s == 1
    assert one.outage_ms("file") == 3000
    one.note("file", answered=True, probed=True)
    assert [use() for use in uses] == [provider] * 3
    assert one.outage_ms("file") is None
