"""Fetching a file from another server: what is refused, what is bounded, and what is not told."""

from __future__ import annotations

import http.client
import ipaddress
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trustme

from server.file_server import FileServer, Handler, file_server
from whisper_api.outbound import connecting
from whisper_api.outbound.addresses import Address, resolve
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads import fetching
from whisper_api.server.uploads.fetching import MAX_REDIRECTS, Fetch, FetchRules
from whisper_api.server.uploads.part_headers import file_name_of
from whisper_api.server.uploads.storing import StoredFile

LIMIT = 100_000
CONTENT = bytes(range(256)) * 300
# Tests must not depend on a public host. No host answers at these addresses.
PUBLIC = ipaddress.ip_address("93.184.215.14")


@pytest.fixture(scope="module")
def files() -> Iterator[FileServer]:
    with file_server() as server:
        server.answers["/call.wav"] = CONTENT
        yield server


@pytest.fixture
def fetch(files: FileServer, tmp_path: Path) -> Callable[..., bytes]:
    """Fetch a path of the server, or a URL. Returns the content of the stored file."""
    numbers = itertools.count()

    def run(where: str, *, allowed: bool = True, seconds: float = 60.0, **rules: object) -> bytes:
        url = where if "://" in where else files.url(where)
        hosts = frozenset([files.host]) if allowed else frozenset()
        file = StoredFile(tmp_path / str(next(numbers)))
        given = {"max_bytes": LIMIT, "seconds": seconds, "private_hosts": hosts, "lookup_seconds": 60.0, **rules}
        try:
            Fetch(url, file, FetchRules(**given)).run()  # type: ignore[arg-type]
        except Problem:
            assert not file.path.exists()
            raise
        return file.path.read_bytes()

    return run


def refused(fetch: Callable[..., bytes], status: int, code: str, where: str, **arguments: object) -> str:
    if code == "url_unreachable":
        # A slow lookup has the same result.
        arguments.setdefault("lookup_seconds", 0.2)
    with pytest.raises(Problem) as raised:
        fetch(where, **arguments)
    assert (raised.value.status, raised.value.code) == (status, code)
    return raised.value.detail


# --- what works ---


def test_a_file_is_fetched_unchanged(files: FileServer, fetch: Callable[..., bytes]) -> None:
    assert fetch("/call.wav?token=a%20b&x#there") == CONTENT
    path, headers = files.asked[-1]
    assert path == "/call.wav?token=a%20b&x"
    assert headers["host"] == files.host
    assert headers["accept-encoding"] == "identity"
    assert not {"authorization", "cookie", "referer"} & headers.keys()


def test_proxies_of_the_environment_are_not_used(fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch("/call.wav") == CONTENT


def test_a_file_may_come_in_pieces_or_until_the_end_of_the_connection(
    files: FileServer, fetch: Callable[..., bytes]
) -> None:
    def in_pieces(handler: Handler) -> None:
        handler.send(200, b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", Transfer_Encoding="chunked")

    def until_closed(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world")
        handler.close_connection = True

    files.answers |= {"/pieces": in_pieces, "/closed": until_closed}
    assert fetch("/pieces") == fetch("/closed") == b"hello world"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(files: FileServer, fetch: Callable[..., bytes], status: int) -> None:
    files.answers["/moved"] = lambda handler: handler.send(status, b"", Location="/call.wav")
    assert fetch("/moved") == CONTENT


def test_tls_is_checked_against_the_name_that_was_asked_for(fetch: Callable[..., bytes]) -> None:
    authority = trustme.CA()
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("files.example").configure_cert(served)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with file_server(served) as files:
        files.answers["/call.wav"] = CONTENT

        def get(host: str, context: ssl.SSLContext | None) -> bytes:
            hosts = frozenset([f"{host}:{files.port}"])
            url = files.url("/call.wav", host)
            return fetch(url, private_hosts=hosts, context=context, resolve=lambda *_: [LOOPBACK])

        assert get("files.example", trusting) == CONTENT
        assert files.asked[-1][1]["host"] == f"files.example:{files.port}"
        for host, context in (("other.example", trusting), ("files.example", None)):
            with pytest.raises(Problem) as raised:
                get(host, context)
            assert raised.value.code == "url_unreachable"
        assert len(files.asked) == 1


LOOPBACK = ipaddress.ip_address("127.0.0.1")


# --- where it does not go ---


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"),
        *("2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "10.0.0.1", "192.168.0.1"),
        *("169.254.169.254", "[fe80::1]", "100.64.0.1", "224.0.0.1", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    ],
)
def test_private_networks_are_refused(files: FileServer, fetch: Callable[..., bytes], host: str) -> None:
    count = len(files.asked)
    refused(fetch, 422, "url_unreachable", f"http://{host}:{files.port}/call.wav", allowed=False)
    assert len(files.asked) == count


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::1"], ["8.8.8.8", "fe80::1"], ["10.1.2.3"]]
)
def test_a_name_is_refused_when_any_of_its_addresses_is(
    files: FileServer, fetch: Callable[..., bytes], addresses: list[str]
) -> None:
    found = [ipaddress.ip_address(address) for address in addresses]
    url = f"http://files.example:{files.port}/call.wav"
    refused(fetch, 422, "url_unreachable", url, allowed=False, resolve=lambda *_: found)


def test_a_name_is_looked_up_once_and_the_connection_goes_there(files: FileServer, fetch: Callable[..., bytes]) -> None:
    """A name that resolves to another address the second time does not help an attacker."""
    asked: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> list[Address]:
        asked.append((host, port))
        return [LOOPBACK] if len(asked) == 1 else [PUBLIC]

    hosts = frozenset([f"files.example:{files.port}"])
    assert fetch(files.url("/call.wav", "files.example"), private_hosts=hosts, resolve=resolve) == CONTENT
    assert asked == [("files.example", files.port)]
    assert files.asked[-1][1]["host"] == f"files.example:{files.port}"


def test_the_next_address_is_tried_when_one_does_not_answer(files: FileServer, fetch: Callable[..., bytes]) -> None:
    nobody = ipaddress.ip_address("127.0.0.2")
    hosts = frozenset(["files.example"])
    url = files.url("/call.wav", "files.example")
    assert fetch(url, private_hosts=hosts, resolve=lambda *_: [nobody, LOOPBACK]) == CONTENT


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:{port}/call.wav"),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}/call.wav"),
        ("localhost", "http://LocalHost:{port}/call.wav"),
    ],
)
def test_hosts_that_are_named_may_be_private(
    files: FileServer, fetch: Callable[..., bytes], allowed: str, url: str
) -> None:
    port = str(files.port)
    hosts = frozenset([allowed.replace("{port}", port)])
    assert fetch(url.replace("{port}", port), private_hosts=hosts) == CONTENT


def test_a_host_that_is_named_may_be_an_ipv6_address(files: FileServer, fetch: Callable[..., bytes]) -> None:
    url = files.url("/call.wav", "[fd00::5]")
    private = [ipaddress.ip_address("fd00::5")]
    for name in ("[fd00::5]", f"[fd00::5]:{files.port}", "fd00::5"):
        # The fetch connects to the allowed address, where the test answers.
        found = iter([[LOOPBACK]])
        assert fetch(url, private_hosts=frozenset([name]), resolve=lambda *_, found=found: next(found)) == CONTENT
    for name in ("[fd00::5]:1", "[fd00::6]", "fd00"):
        refused(fetch, 422, "url_unreachable", url, private_hosts=frozenset([name]), resolve=lambda *_: private)


def test_this_machine_is_refused_by_a_public_address_too(
    files: FileServer, fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "is_public", lambda address: True)
    count = len(files.asked)
    refused(fetch, 422, "url_unreachable", "/call.wav", allowed=False)
    assert len(files.asked) == count
    assert fetch("/call.wav") == CONTENT


def test_another_port_of_a_named_host_may_not_be_private(files: FileServer, fetch: Callable[..., bytes]) -> None:
    refused(fetch, 422, "url_unreachable", files.url("/call.wav"), private_hosts=frozenset(["127.0.0.1:1"]))


def test_a_redirect_may_lead_to_a_name_that_is_not_encoded(files: FileServer, fetch: Callable[..., bytes]) -> None:
    where = "/Zürich 1.wav?x=é%20y".encode().decode("latin-1")
    files.answers |= {
        "/named": lambda handler: handler.send(302, Location=where),
        "/Z%C3%BCrich%201.wav": CONTENT,
    }
    assert fetch("/named") == CONTENT
    assert files.asked[-1][0] == "/Z%C3%BCrich%201.wav?x=%C3%A9%20y"


@pytest.mark.parametrize("host", ["localhost", "[::1]", "169.254.169.254", "2130706433", "10.0.0.1"])
def test_redirects_go_by_the_same_rule(files: FileServer, fetch: Callable[..., bytes], host: str) -> None:
    files.answers["/inside"] = lambda handler: handler.send(302, Location=f"http://{host}:{files.port}/call.wav")
    count = len(files.asked)
    refused(fetch, 422, "url_unreachable", "/inside", lookup_seconds=0.2)
    assert len(files.asked) == count + 1


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "//[", "http://", "//\xfc.example/", "//a b/", "\\\\127.0.0.1/"],
)
def test_redirects_elsewhere_are_refused(files: FileServer, fetch: Callable[..., bytes], target: str) -> None:
    files.answers["/elsewhere"] = lambda handler: handler.send(302, Location=target)
    refused(fetch, 400, "url_refused", "/elsewhere")


def test_a_circle_ends(files: FileServer, fetch: Callable[..., bytes]) -> None:
    files.answers["/circle"] = lambda handler: handler.send(302, Location="/circle")
    count = len(files.asked)
    assert str(MAX_REDIRECTS) in refused(fetch, 400, "url_refused", "/circle")
    assert len(files.asked) == count + MAX_REDIRECTS + 1


def test_https_does_not_lead_to_http(files: FileServer, fetch: Callable[..., bytes]) -> None:
    authority = trustme.CA()
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with file_server(served) as secure:
        secure.answers["/down"] = lambda handler: handler.send(302, Location=files.url("/call.wav"))
        hosts = frozenset(["127.0.0.1"])
        detail = refused(fetch, 400, "url_refused", secure.url("/down"), private_hosts=hosts, context=trusting)
    assert "https to http" in detail


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.com/a", "data:audio/wav;base64,AAAA", "javascript:1", "/call.wav", "x"),
        *("http://", "http:///path", "http://:80/", "http://user@example.com/", "http://user:word@example.com/"),
        *("http://example.com:0/", "http://example.com:99999/", "http://example.com:x/", "http://[::1/", "http://[x]/"),
        *("http://exa mple.com/", "http://example.com/a b", "http://example.com/\r\nX: y", "http://example.com/\0"),
        *("http://exämple.com/", "http://example.com\\@127.0.0.1/", "http://[fe80::1%25eth0]/", "http://127.0.0.1%2f/"),
        "http://example.com/" + "a" * 9000,
    ],
)
def test_a_url_that_is_no_plain_address_is_refused(url: str) -> None:
    def never(host: str, port: int) -> list[Address]:
        raise AssertionError("it was looked up")

    with pytest.raises(Problem) as raised:
        Fetch(url, StoredFile(Path("nowhere")), FetchRules(LIMIT, 60.0, resolve=never)).run()
    assert (raised.value.status, raised.value.code) == (400, "url_refused")


# --- what is bounded ---


def test_a_file_that_says_that_it_is_too_large_is_not_read(files: FileServer, fetch: Callable[..., bytes]) -> None:
    files.answers["/large"] = lambda handler: handler.send(200, b"", Content_Length=str(LIMIT + 1))
    assert str(LIMIT) in refused(fetch, 413, "url_too_large", "/large")


def test_a_file_that_becomes_too_large_is_not_read_further(files: FileServer, fetch: Callable[..., bytes]) -> None:
    def endless(handler: Handler) -> None:
        handler.send(200, b"", Transfer_Encoding="chunked")
        while not files.over.is_set():
            handler.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")

    files.answers["/endless"] = endless
    refused(fetch, 413, "url_too_large", "/endless")
    files.answers["/just"] = bytes(LIMIT)
    assert len(fetch("/just")) == LIMIT


def drip(files: FileServer, head: bytes) -> Callable[[Handler], None]:
    """Send a head, then single bytes without end."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(head)
        while not files.over.wait(0.02):
            handler.wfile.write(b"x")

    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["nothing", "headers", "body", "body without a length"],
)
def test_a_slow_transfer_ends_at_the_deadline(files: FileServer, fetch: Callable[..., bytes], head: bytes) -> None:
    """Each byte comes in time, but the whole file does not."""
    files.answers["/drip"] = drip(files, head)
    assert "0.3 seconds" in refused(fetch, 422, "url_unreachable", "/drip", seconds=0.3)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;",
        b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n",
    ],
    ids=["status", "headers", "chunk", "body"],
)
def test_a_slow_transfer_ends_by_the_least_rate_before_the_deadline(
    files: FileServer, fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(fetching, "SILENCE_SECONDS", 0.5)
    files.answers["/drip"] = drip(files, head)
    refused(fetch, 422, "url_unreachable", "/drip", seconds=600.0, min_bytes_per_second=1000.0)
    assert fetch("/call.wav", min_bytes_per_second=1000.0) == CONTENT


def test_another_thread_can_abort_a_fetch(files: FileServer, tmp_path: Path) -> None:
    files.answers["/slow"] = drip(files, b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n")
    fetch = Fetch(files.url("/slow"), StoredFile(tmp_path), FetchRules(LIMIT, 600.0, frozenset([files.host])))
    ended: list[str] = []

    def run() -> None:
        with pytest.raises(Problem) as raised:
            fetch.run()
        ended.append(raised.value.code)

    thread = threading.Thread(target=run)
    thread.start()
    while not any(path == "/slow" for path, _ in files.asked):
        assert thread.is_alive()
    fetch.abort()
    thread.join(60)
    assert ended == ["url_unreachable"]
    assert not (tmp_path / "audio").exists()


def test_a_fetch_that_was_aborted_before_it_began_sends_no_request(files: FileServer, tmp_path: Path) -> None:
    fetch = Fetch(files.url("/call.wav?never"), StoredFile(tmp_path), FetchRules(LIMIT, 60.0, frozenset([files.host])))
    fetch.abort()
    with pytest.raises(Problem):
        fetch.run()
    assert not any("never" in path for path, _ in files.asked)
    assert not list(tmp_path.iterdir())


# --- what is not told ---


def cut_short(handler: Handler) -> None:
    handler.send(200, b"half", Content_Length="8")
    handler.close_connection = True


def packed(handler: Handler) -> None:
    handler.send(200, b"x", Content_Encoding="gzip")


def hung_up(handler: Handler) -> None:
    handler.close_connection = True


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def test_every_failed_fetch_has_the_same_error(files: FileServer, fetch: Callable[..., bytes]) -> None:
    files.answers |= {
        "/500": lambda handler: handler.send(500, b"private"),
        "/204": lambda handler: handler.send(204),
        "/206": lambda handler: handler.send(206, b"private"),
        "/401": lambda handler: handler.send(401, b"private", WWW_Authenticate="Basic"),
        "/302": lambda handler: handler.send(302),
        "/short": cut_short,
        "/packed": packed,
        "/ssh": no_http,
        "/silent": hung_up,
    }
    paths = ("/500", "/204", "/206", "/401", "/302", "/short", "/packed", "/ssh", "/silent", "/404")
    told = {refused(fetch, 422, "url_unreachable", path) for path in paths}

    def nowhere(host: str, port: int) -> list[Address]:
        raise OSError("no such name")

    told.add(refused(fetch, 422, "url_unreachable", "http://files.example/", resolve=nowhere))
    told.add(refused(fetch, 422, "url_unreachable", "http://" + "a" * 64 + ".example/"))
    told.add(refused(fetch, 422, "url_unreachable", "http://127.0.0.1:1/", private_hosts=frozenset(["127.0.0.1"])))
    assert len(told) == 1
    assert "private" not in told.pop()


def no_such_name(host: str, port: int) -> list[Address]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def no_possible_name(host: str, port: int) -> list[Address]:
    return list(resolve("a" * 64 + ".example", port))


def for_ever(host: str, port: int) -> list[Address]:
    threading.Event().wait(5)
    return []


@pytest.mark.parametrize("way", ["named", "led to"])
def test_a_forbidden_host_has_the_same_error_as_an_unknown_host(
    files: FileServer, fetch: Callable[..., bytes], way: str
) -> None:
    """The words of the error are the same, and it comes after the time of a slow lookup: neither reveals a name."""
    lookup_seconds = 0.05
    files.answers["/leads"] = lambda handler: handler.send(302, Location="http://inner.example/")
    told = set()

    def attempt(url: str, resolver: Callable[[str, int], Sequence[Address]]) -> None:
        def resolve_inner(host: str, port: int) -> Sequence[Address]:
            return [LOOPBACK] if host == "outer.example" else resolver(host, port)

        begun = time.monotonic()
        named = {"private_hosts": frozenset(["outer.example"]), "lookup_seconds": lookup_seconds}
        where = url if way == "named" else files.url("/leads", "outer.example")
        told.add(refused(fetch, 422, "url_unreachable", where, resolve=resolve_inner, **named))
        assert time.monotonic() - begun >= lookup_seconds

    for addresses in (["127.0.0.1"], ["10.1.2.3"], ["169.254.169.254"], ["fd00::1"], ["8.8.8.8", "::1"]):
        found = [ipaddress.ip_address(address) for address in addresses]
        attempt("http://inner.example/", lambda *_, found=found: found)
        attempt("https://inner.example:8443/x", lambda *_, found=found: found)
    for resolver in (no_such_name, no_possible_name, for_ever):
        attempt("http://inner.example/", resolver)
    attempt("http://192.168.0.1/", resolve)
    attempt("http://[::1]/", resolve)
    assert len(told) == 1


def test_a_wait_for_a_name_can_be_ended(files: FileServer, tmp_path: Path) -> None:
    fetch = Fetch("http://127.0.0.1/", StoredFile(tmp_path), FetchRules(LIMIT, 600.0, lookup_seconds=600.0))
    ended: list[str] = []

    def run() -> None:
        with pytest.raises(Problem) as raised:
            fetch.run()
        ended.append(raised.value.code)

    thread = threading.Thread(target=run)
    thread.start()
    fetch.abort()
    thread.join(60)
    assert ended == ["url_unreachable"]


def test_no_reason_of_the_library_gets_out(files: FileServer, fetch: Callable[..., bytes]) -> None:
    files.answers["/odd"] = no_http
    with pytest.raises(Problem) as raised:
        fetch("/odd")
    assert isinstance(raised.value.__cause__, http.client.HTTPException)


# --- names ---


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.com/a/call.wav?x=/y.mp3", "call.wav"),
        ("https://example.com/b%C3%BCro%20%C3%A9.wav", "büro é.wav"),
        ("https://example.com/..%2f..%2fetc%2fpasswd", "passwd"),
        ("https://example.com/a%00%0ab.wav", "ab.wav"),
        ("https://example.com/", None),
        ("https://example.com", None),
        ("https://example.com/..", None),
        ("http://[", None),
        ("https://example.com/" + "a" * 9000, None),
    ],
)
def test_the_name_of_a_file_is_the_end_of_its_path(url: str, name: str | None) -> None:
    assert file_name_of(url) == name
