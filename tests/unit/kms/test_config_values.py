"""How values are written (CONFIG.md §3)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.config_values import DurationMs, SizeBytes, SocketAddress, decode_value, encode_value, parse_path


@pytest.mark.parametrize(
    ("written", "ms"),
    [("1ms", 1), ("250ms", 250), ("5s", 5000), ("2m", 120_000), ("1h", 3_600_000), ("24h", 86_400_000)],
)
def test_durations(written, ms):
    assert DurationMs.parse(written) == ms


@pytest.mark.parametrize(
    "written", ["", "5", "0s", "0ms", "25h", "1.5s", "5 s", "5S", "-1s", "5sec", 5, None, True, "٥s"]
)
def test_durations_that_are_refused(written):
    with pytest.raises(ValueError, match="must be"):
        DurationMs.parse(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [("1MiB", 1 << 20), ("64KiB", 65_536), ("1MB", 10**6), ("1KB", 1000), ("512B", 512), ("7", 7), (7, 7), ("0", 0)],
)
def test_sizes(written, size):
    assert SizeBytes.parse(written) == size


@pytest.mark.parametrize("written", ["", "1GiB", "-1", "1.5MiB", "1 MiB", True, None, 1 << 31, "2048MiB"])
def test_sizes_that_are_refused(written):
    with pytest.raises(ValueError, match="must be"):
        SizeBytes.parse(written)


@pytest.mark.parametrize(
    ("written", "host", "port", "loopback"),
    [
        ("127.0.0.1:9446", "127.0.0.1", 9446, True),
        ("0.0.0.0:1", "0.0.0.0", 1, False),
        ("[::1]:0", "::1", 0, True),
        ("[2001:DB8::0:1]:65535", "2001:db8::1", 65535, False),
    ],
)
def test_addresses_have_one_spelling(written, host, port, loopback):
    address = SocketAddress.parse(written)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    assert SocketAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "written",
    ["", "127.0.0.1", ":80", "localhost:80", "::1:80", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", 80, None],
)
def test_addresses_that_are_refused(written):
    with pytest.raises(ValueError, match="must be <ip>:<port>"):
        SocketAddress.parse(written)


@pytest.mark.parametrize("written", ["", "a\0b", "x" * 1025, 3])
def test_paths_that_are_refused(written):
    with pytest.raises(ValueError, match="must be a path"):
        parse_path(written)


def test_what_the_decoder_does_not_know_is_no_value_of_ours():
    with pytest.raises(NotImplementedError):
        decode_value(complex, "1")
    assert decode_value(Path, "x") == Path("x")
    assert (encode_value(DurationMs(5)), encode_value(Path("x"))) == (5, "x")


@given(st.text(max_size=20))
def test_whatever_is_written_is_a_value_or_refused(text):
    for kind in (DurationMs, SizeBytes, SocketAddress):
        try:
            value = kind.parse(text)
        except ValueError:
            continue
        assert isinstance(value, kind)
