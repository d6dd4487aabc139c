"""Which addresses of the network a server may speak to for strangers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Address", "Resolver", "is_own", "is_public", "resolve"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[Address]]

# Beside what the library knows, which depends on its version: private NAT64, 6to4, Teredo, relays for 6to4, and the
# translation, discard and documentation prefixes.
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
    """The addresses of a host, asked for once.

    Args:
        host: a name, or an address in any form that the system knows.
        port: that is to be spoken to.

    Raises:
        OSError: there are none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # Of IPv6, without the number of an interface.
    texts = [str(where[0]).partition("%")[0] for *_, where in found]
    return [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet: not of this machine, this network or any reserved range.

    An IPv4 address that is written as IPv6 is judged as what it stands for; tunnels to one are never public.
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
    """Whether an address, even a public one, is this machine's own, where a firewall lets in whoever is on it.

    Nothing is sent: only the system is asked where it would send from.
    """
    family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((str(address), _ANY_PORT))
            source = str(asking.getsockname()[0]).partition("%")[0]
    except OSError:
        return False  # there is no way to it
    return ipaddress.ip_address(source) == address


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one is translated to."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped
