"""When a dead service starts again, and how its command line is written (CONCURRENCY.md §2)."""

import argparse
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.__main__ import _parser, add_config_flags, config_flags, main
from kms.config_keys import KEYS
from kms.correlation import IdSource, accepted_corr_id, uuid7
from kms.supervisor import MAX_BACKOFF_S, MAX_RESTARTS, MIN_BACKOFF_S, RESTART_WINDOW_S, Backoff, as_arguments


class Hand:
    """A clock that only the test moves."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_back_off_doubles_from_100_ms_to_5_s_and_a_steady_life_resets_it():
    clock = Hand()
    backoff = Backoff(clock, lambda: 0.0)
    delays = []
    for _ in range(8):
        clock.now_s += 10
        delays.append(backoff.after_death(0.0))
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    clock.now_s += 100
    assert backoff.after_death(10.0) == MIN_BACKOFF_S


def test_jitter_lengthens_and_never_past_the_cap():
    backoff = Backoff(Hand(), lambda: 1.0)
    delays = [backoff.after_death(0.0) for _ in range(MAX_RESTARTS)]
    assert delays[0] == 0.125
    assert max(delays) == MAX_BACKOFF_S


def test_more_than_ten_restarts_a_minute_are_given_up():
    clock = Hand()
    backoff = Backoff(clock, lambda: 0.0)
    for _ in range(MAX_RESTARTS):
        assert backoff.after_death(0.0) is not None
        clock.now_s += 1
    assert backoff.after_death(0.0) is None
    clock.now_s = RESTART_WINDOW_S
    assert backoff.after_death(0.0) is not None


def test_flags_survive_the_way_to_the_serving_process():
    command = ["--config", "a b.toml", "--bind", "127.0.0.1:0", "--amnesia", "--pq-produce-hybrid", "--audit-dir=-x"]
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    flags = config_flags(parser.parse_args(command))
    assert flags == {
        "config": "a b.toml",
        "bind": "127.0.0.1:0",
        "amnesia": "true",
        "pq-produce-hybrid": "true",
        "audit-dir": "-x",
    }
    assert config_flags(parser.parse_args(as_arguments(flags))) == flags


def test_every_flag_of_the_documents_is_there():
    documented = (
        "config bind metrics max-conns read-timeout write-timeout idle-timeout backend amnesia allowed-algs attest "
        "pq-verify pq-produce-hybrid pq-rollout audit-dir audit-checkpoint-ops audit-sealing verify-cache-ttl "
        "allow-sign-fallback multi-backends log-format log-level"
    )
    assert set(re.findall(r"\S+", documented)) <= {key.flag for key in KEYS} | {"config"}


def test_commands_of_all_parts_are_there():
    text = _parser("").format_help()
    for command in ("serve", "check", "openapi", "mint", "attenuate", "revoke", "root-key"):
        assert command in text


def test_check_and_openapi_print_and_end_with_zero(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [each for each in __import__("os").environ if each.startswith("RON_KMS_")]:
        monkeypatch.delenv(name)
    assert main(["check", "--backend", "inmem", "--amnesia", "--metrics", "0.0.0.0:9909"]) == 0
    printed = capsys.readouterr().out
    assert "metrics_addr" in printed
    assert "valid, digest" in printed
    assert main(["check", "--backend", "floppy"]) == 2
    assert "service.backend" in capsys.readouterr().err
    assert main(["openapi"]) == 0
    assert '"openapi":"3.1.0"' in capsys.readouterr().out


# Ids of requests


def test_a_uuid_7_tells_its_time_and_orders_by_it():
    first, second = uuid7(1_760_041_822_007), uuid7(1_760_041_822_008)
    made = uuid.UUID(first)
    assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, 1_760_041_822_007)
    assert first < second


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_any_time_and_randomness_make_a_uuid_7(now_ms, noise):
    made = uuid.UUID(uuid7(now_ms, lambda _: noise))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


@given(st.text(max_size=40))
def test_a_correlation_id_is_a_canonical_uuid_or_nothing(text):
    accepted = accepted_corr_id(text)
    assert accepted is None or accepted == str(uuid.UUID(text))


@pytest.mark.parametrize("text", ["0" * 32, "{" + "0" * 34 + "}", "urn:uuid:" + "0" * 27, "0" * 36])
def test_other_spellings_of_a_uuid_are_not_taken(text):
    assert accepted_corr_id(text) is None


def test_request_ids_differ():
    ids = IdSource(lambda: 0)
    assert ids.request_id() != ids.request_id()
    assert ids.request_id().startswith("r-")
