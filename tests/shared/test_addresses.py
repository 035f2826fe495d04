import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.addresses import format_address, is_ip_address, is_unspecified, parse_address
from layermesh.shared.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.168.1.7", "192.168.1.7", 50700),
        ("192.168.1.7:1", "192.168.1.7", 1),
        (" den-pc.local:65535 ", "den-pc.local", 65535),
        ("localhost", "localhost", 50700),
        ("a_b.example.", "a_b.example.", 50700),
        ("2001:db8::1", "2001:db8::1", 50700),
        ("[2001:db8::1]", "2001:db8::1", 50700),
        ("[fe80::1%eth0]:50701", "fe80::1%eth0", 50701),
        ("fe80::1%wlp3s0", "fe80::1%wlp3s0", 50700),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert parse_address(format_address(host, port)) == (host, port)


def test_the_default_port_can_be_another() -> None:
    assert parse_address("den-pc", 7) == ("den-pc", 7)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":50700", "host:", "host:0", "host:65536", "host:-1", "host:1.5", "host:٣", "host:50700x", "a b", "http://host:1",
        "1.2.3", "999.1.1.1", "1.2.3.4.5", "[1.2.3.4]:5", "[::1", "[::1]x", "[::1]5", "::1]:5", "[host]:5",
        "fe80::1%", "fe80::1%a b",
        "fe80::1%e/th", "fe80::zz", "-host", "host-", "a..b", "x" * 64, ".".join(["x" * 60] * 5), "host\n:5\x1b", "büro.local",
    ],
)  # fmt: skip
def test_nonsense_is_a_usage_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(text)


@given(st.text(max_size=80))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        host, port = parse_address(text)
    except UsageError:
        return
    assert parse_address(format_address(host, port)) == (host, port)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address_comes_back(address: object, port: int) -> None:
    assert is_ip_address(str(address))
    assert parse_address(format_address(str(address), port)) == (str(address), port)


@pytest.mark.parametrize(
    ("host", "unspecified"),
    [(None, True), ("", True), ("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("::1", False), ("den-pc", False)],
)
def test_hosts_that_stand_for_all_addresses(host, unspecified):
    assert is_unspecified(host) is unspecified
