"""Who is behind a proxy, and what counts as one address."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from llmesh.gateway.addresses import client_address, counted_as

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/64"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("1.2.3.4", ["9.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        ("::ffff:10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9, 10.0.0.2"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6", "9.9.9.9, 2001:db8::5"], "9.9.9.9"),
        ("10.0.0.1", ["9.9.9.9, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9, "], "10.0.0.1"),
        ("10.0.0.1", [", ".join(["10.0.0.3"] * 1000)], "10.0.0.3"),
        ("<local>", ["9.9.9.9"], "<local>"),
    ],
)
def test_only_listed_proxies_are_believed(peer: str, forwarded: list[str], address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("<local>", "<local>"),
    ],
)
def test_one_customer_is_one_address(address: str, name: str) -> None:
    assert counted_as(address) == name
