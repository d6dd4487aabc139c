"""The sockets a server listens on."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from whisper_api import ConfigError
from whisper_api.server.sockets import is_loopback, listen, only_local, url_of

PATIENCE_SECONDS = 60.0


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", pytest.param("::1", marks=needs_ipv6), pytest.param("[::1]", marks=needs_ipv6)]
)
def test_any_free_port_of_a_host(host: str) -> None:
    sockets = listen(host, 0, timeout_seconds=60)
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        for sock in sockets:
            url = url_of("http", sock)
            parts = urlsplit(url)
            assert parts.port is not None
            socket.create_connection((parts.hostname, parts.port), PATIENCE_SECONDS).close()
    finally:
        for sock in sockets:
            sock.close()


@needs_ipv6
def test_the_ipv6_wildcard_means_ipv4_too() -> None:
    (sock,) = listen("::", 0, timeout_seconds=60)
    with sock:
        port = sock.getsockname()[1]
        assert url_of("https", sock) == f"https://[::1]:{port}"
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), PATIENCE_SECONDS).close()


def test_a_wildcard_is_reached_over_loopback() -> None:
    (sock,) = listen("0.0.0.0", 0, timeout_seconds=60)
    with sock:
        assert url_of("http", sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_port_is_taken_once() -> None:
    (first,) = listen("127.0.0.1", 0, timeout_seconds=60)
    with first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: another program listens there.*--port"):
            listen("127.0.0.1", port, timeout_seconds=60)
    (again,) = listen("127.0.0.1", port, timeout_seconds=60)
    again.close()


@pytest.mark.parametrize("host", ["host.invalid", "x" * 300, "192.0.2.1", "256.1.1.1"])
def test_a_host_that_is_not_this_machine(host: str) -> None:
    with pytest.raises(ConfigError, match=r"no such address|no address of this machine"):
        listen(host, 0, timeout_seconds=60)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost"])
def test_loopback_hosts_are_local(host: str) -> None:
    assert only_local(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_hosts_are_not_local(host: str) -> None:
    assert not only_local(host)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.255.255.254", "::1", "LocalHost"])
def test_names_of_this_machine(name: str) -> None:
    assert is_loopback(name)


@pytest.mark.parametrize("name", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.1", "example"])
def test_names_of_other_machines_are_not_local(name: str) -> None:
    assert not is_loopback(name)
