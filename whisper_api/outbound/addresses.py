"""Checks of network addresses: the server connects only to public ones for its callers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[Address]]

# Networks that not every version of the library knows: private NAT64, 6to4, Teredo, relays for 6to4, and the prefixes
# for translation, discarding and documentation.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "::/8",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ANY_PORT = 9


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host.

    Args:
        host: a name, or an address in any form that the system knows.
        port: the port of the connection.

    Raises:
        OSError: the host has no address.
    """
    address = literal(host)
    if address is not None:
        return [address]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # An IPv6 address may end with the number of an interface.
    texts = [str(where[0]).partition("%")[0] for *_, where in found]
    return [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]


def literal(host: str) -> Address | None:
    """The address that a host is, in the usual form; None for a name and for unusual forms."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, and not to this machine, this network or a reserved range.

    An IPv4 address in the form of IPv6 is checked as IPv4; a tunnel to an IPv4 address is never public.
    """
    inner = _inner(address)
    if inner is not None:
        return is_public(inner)
    known: Any = address
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not getattr(known, "is_site_local", False)
        and not any(address.version == network.version and address in network for network in _NOT_PUBLIC)
    )


def is_own(address: Address) -> bool:
    """Whether an address is this machine's own, because a firewall may allow connections from the machine to itself.

    Nothing is sent: the system only reports the source address of a connection.
    """
    family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _ANY_PORT))
            source = str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return False  # The system has no route to the address.
    return ipaddress.ip_address(source) == address


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside an IPv6 address; None when there is none."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped
