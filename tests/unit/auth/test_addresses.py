"""Which address a request comes from: `gateway.auth.addresses`."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway.auth.addresses import client_address, counted_as, is_loopback, networks


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "client"),
    [
        ("9.9.9.9", b"1.1.1.1", "", "9.9.9.9"),
        ("9.9.9.9", b"1.1.1.1", "10.0.0.0/8", "9.9.9.9"),
        ("10.0.0.1", b"1.1.1.1", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"6.6.6.6, 1.1.1.1", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"6.6.6.6, 1.1.1.1, 10.0.0.2", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.0/8", "10.0.0.3"),
        ("10.0.0.1", b"nonsense", "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", b"1.1.1.1, nonsense", "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", None, "10.0.0.0/8", "10.0.0.1"),
        ("10.0.0.1", b"1.1.1.1," + b"10.0.0.2," * 14 + b"10.0.0.2", "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", b"1.1.1.1," + b"10.0.0.2," * 6000 + b"10.0.0.3", "10.0.0.0/8", "10.0.0.2"),
        ("::1", b"2001:db8::1", "::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", b"1.1.1.1", "10.0.0.0/8", "1.1.1.1"),
        ("unknown", b"1.1.1.1", "0.0.0.0/0", "unknown"),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, forwarded: bytes | None, trusted: str, client: str) -> None:
    """The header is read from its right end, for as long as the sender is a trusted proxy."""
    assert client_address(peer, forwarded, networks(trusted)) == client


@given(some.binary(max_size=50))
def test_no_forwarded_header_raises(forwarded: bytes) -> None:
    """The result is an address in it, or the peer."""
    assert client_address("10.0.0.1", forwarded, networks("0.0.0.0/0,::/0"))


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:3::6", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, counted: str) -> None:
    """Its owner can send each request from another address."""
    assert counted_as(address) == counted


def test_loopback_hosts_are_recognized() -> None:
    """Only this machine reaches a server that listens there."""
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "", "127.0.0.1.nip.io")))
