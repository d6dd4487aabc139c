"""The network addresses from which a server may fetch files for its callers."""

from __future__ import annotations

import ipaddress

import pytest

from whisper_api.outbound.addresses import is_own, is_public, resolve

PUBLIC = ("93.184.215.14", "8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e")
PRIVATE = {
    "this machine": ("127.0.0.1", "127.255.255.254", "::1"),
    "no machine": ("0.0.0.0", "0.1.2.3", "::"),
    "private": ("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1", "fec0::1"),
    "link-local, and what clouds tell of themselves": ("169.254.169.254", "169.254.0.1", "fe80::1", "fd00:ec2::254"),
    "shared by a provider's customers": ("100.64.0.1", "100.127.255.255", "100.100.100.200"),
    "multicast": ("224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"),
    "reserved": ("240.0.0.1", "255.255.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "2001:db8::1"),
    "IPv4 in IPv6": ("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:7f00:1"),
    "translated": ("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1"),
    "tunneled": ("2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::1", "2001:0:4136:e378:8000:63bf:80ff:fffe"),
}


@pytest.mark.parametrize("address", PUBLIC)
def test_the_open_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("kind", "address"), [(kind, address) for kind, addresses in PRIVATE.items() for address in addresses]
)
def test_other_addresses_are_not_public(kind: str, address: str) -> None:
    assert not is_public(ipaddress.ip_address(address)), kind


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8"])
def test_a_translated_public_address_is_public(address: str) -> None:
    number = int(ipaddress.IPv4Address(address))
    assert is_public(ipaddress.IPv6Address((0x64FF9B << 96) | number))
    assert is_public(ipaddress.IPv6Address((0xFFFF << 32) | number))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "::1", "017700000001"],
)
def test_however_this_machine_is_written_it_is_not_public(host: str) -> None:
    found = resolve(host, 80)
    assert found
    assert not any(map(is_public, found))


def test_addresses_of_this_machine_are_recognised() -> None:
    assert all(is_own(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::ffff:127.0.0.1"))
    assert not any(is_own(ipaddress.ip_address(address)) for address in PUBLIC)
