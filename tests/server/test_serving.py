"""The server as a whole: sockets, protocols, TLS, its start and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from server.conftest import MakeConfig
from server.in_thread import PATIENCE_SECONDS, bare, connect, read_all, wait_until
from whisper_api import ConfigError, Server, StorageLocked
from whisper_api.server import run as serving
from whisper_api.server.run import Started, serve
from whisper_api.server.sockets import listen


@pytest.fixture
def running(make_config: MakeConfig) -> Iterator[Server]:
    server = Server(make_config())
    with server:
        yield server


@pytest.fixture
def client(running: Server) -> Iterator[httpx.Client]:
    with connect(running.url, running.api_key) as client:
        yield client


# --- start ---


def test_the_first_start_makes_a_key_and_the_next_does_not(make_config: MakeConfig) -> None:
    server = Server(make_config())
    with server as url:
        assert url == server.url
        key = server.api_key
        assert key
        with connect(url, key) as client:
            assert client.get("/status").status_code == 200
            assert client.get("/status", headers={"Authorization": "Bearer x"}).status_code == 401
    again = Server(make_config())
    with again as url:
        assert again.api_key is None
        with connect(url, key) as client:
            assert client.get("/status").status_code == 200


def test_no_key_is_made_when_authorization_is_off(make_config: MakeConfig) -> None:
    server = Server(make_config(enable_authorization=False))
    with server as url:
        assert server.api_key is None
        with connect(url) as client:
            assert client.get("/status").json()["security"] == {"authorization_enabled": False, "role": None}


def test_the_status_has_the_port_of_the_server(running: Server, client: httpx.Client) -> None:
    assert client.get("/status").json()["server"]["port"] == str(urlsplit(running.url).port) != "0"


def test_a_server_without_authorization_that_others_can_reach_needs_insecure(make_config: MakeConfig) -> None:
    config = make_config(enable_authorization=False, host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"ENABLE_AUTHORIZATION.*--insecure"):
        Server(config).start()
    assert not config.data_dir.exists()
    with Server(config, insecure=True) as url, connect(url) as client:
        assert client.get("/status", headers={"Host": "elsewhere.example"}).status_code == 200


def test_start_raises_configuration_errors(make_config: MakeConfig) -> None:
    with bare_listener() as taken:
        config = make_config(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="another program listens"):
            Server(config).start()
    with Server(config):
        pass


def bare_listener() -> socket.socket:
    (sock,) = listen("127.0.0.1", 0, timeout_seconds=60)
    return sock


def test_two_servers_do_not_share_a_database(running: Server, make_config: MakeConfig) -> None:
    with pytest.raises(StorageLocked):
        Server(make_config()).start()
    with connect(running.url) as client:
        assert client.get("/livez").status_code == 200


def test_a_server_has_a_url_only_while_it_runs(make_config: MakeConfig) -> None:
    server = Server(make_config())
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.url
    server.close()


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    certificate = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(cert, append=True)
    certificate.private_key_pem.write_to_path(key)
    return {"tls_cert_file": cert, "tls_key_file": key}


@pytest.mark.parametrize(("http2", "version"), [(True, "HTTP/2"), (False, "HTTP/1.1")])
def test_tls_speaks_both_versions(
    make_config: MakeConfig, tls: dict[str, Path], authority: trustme.CA, http2: bool, version: str
) -> None:
    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Server(make_config(**tls)) as url:
        assert url.startswith("https://127.0.0.1:")
        with connect(url, verify=context, http2=http2) as client:
            answer = client.get("/livez")
    assert (answer.status_code, answer.http_version) == (200, version)


def test_half_of_tls_is_refused_by_name(make_config: MakeConfig, tls: dict[str, Path]) -> None:
    for missing, said in (("tls_cert_file", "WHISPER_TLS_CERT_FILE is not"), ("tls_key_file", "_KEY_FILE is not")):
        with pytest.raises(ConfigError, match=said):
            Server(make_config(**{**tls, missing: None})).start()


def test_a_file_that_is_no_certificate_is_refused_by_name(
    make_config: MakeConfig, tls: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    for name, path in (
        ("tls_cert_file", text),
        ("tls_key_file", text),
        ("tls_key_file", tmp_path / "nowhere"),
        ("tls_key_file", other),
    ):
        with pytest.raises(ConfigError, match="WHISPER_TLS_CERT_FILE, WHISPER_TLS_KEY_FILE"):
            Server(make_config(**{**tls, name: path})).start()


# --- protocols ---


def test_http_2_without_tls_by_prior_knowledge(running: Server) -> None:
    with connect(running.url, running.api_key, http1=False, http2=True) as client:
        answers = [client.get(path) for path in ("/livez", "/status")]
    assert [(answer.status_code, answer.http_version) for answer in answers] == [(200, "HTTP/2")] * 2


def test_pipelined_requests_are_answered_in_order(running: Server) -> None:
    head = f"Host: x\r\nAuthorization: Bearer {running.api_key}\r\n"
    with bare(running.url) as connection:
        connection.sendall(
            f"GET /status HTTP/1.1\r\n{head}X-Request-ID: one\r\n\r\n"
            f"GET /nowhere HTTP/1.1\r\n{head}X-Request-ID: two\r\n\r\n"
            f"GET /livez HTTP/1.1\r\n{head}X-Request-ID: three\r\nConnection: close\r\n\r\n".encode()
        )
        received = read_all(connection).decode()
    ids = [line.partition(": ")[2] for line in received.splitlines() if line.startswith("x-request-id")]
    assert ids == ["one", "two", "three"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nbroken header\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ],
    ids=["bytes", "no version", "no host", "header", "long header", "length", "HTTP/2"],
)
def test_bytes_that_are_no_request_end_only_their_connection(
    running: Server, client: httpx.Client, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    with bare(running.url) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    if received.startswith(b"HTTP/"):
        head, _, body = received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert 400 <= status < 500
        assert b"\r\ncontent-type: application/problem+json\r\n" in head.lower()
        problem = json.loads(body)
        assert problem["status"] == status
        assert f"x-request-id: {problem['request_id']}" in head.decode().lower()
    else:
        assert b"PRI" in sent
    assert client.get("/status").status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_an_upload_that_is_refused_leaves_the_answer_readable(running: Server) -> None:
    """The whole body is sent before anything is read, as many clients do."""
    size = 20_000_000
    head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
    with bare(running.url) as connection:
        connection.sendall(head)
        for _ in range(size // 100_000):
            connection.sendall(bytes(100_000))
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert b'"code":"unauthorized"' in received


def test_a_connection_is_used_again_after_an_upload_was_refused(running: Server) -> None:
    with connect(running.url) as client:
        for _ in range(3):
            assert client.post("/transcribe", content=bytes(3_000_000)).status_code == 401
            assert client.get("/livez").status_code == 200


def test_http_2_survives_an_upload_that_is_refused(running: Server) -> None:
    with connect(running.url, http1=False, http2=True) as client:
        for _ in range(3):
            assert client.post("/transcribe", content=bytes(3_000_000)).status_code == 401
            assert client.get("/livez").status_code == 200


# The state of a listening socket in /proc/net/tcp.
LISTENS = "0A"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list what is open")
def test_connections_end_with_their_clients(running: Server) -> None:
    """Clients leave after a response, within a request, before a request, or while they read a response."""
    port = f":{urlsplit(running.url).port:04X}"

    def connections() -> int:
        """The server's ends of its connections. Other sockets of this process may come and go meanwhile."""
        rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
        ours = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] != LISTENS}
        return sum(target in ours for target in map(target_of, Path("/proc/self/fd").iterdir()))

    with bare(running.url):
        wait_until(lambda: connections() > 0)
    for sent in (
        b"",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHo",
        b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    ):
        for _ in range(5):
            with bare(running.url) as connection:
                connection.sendall(sent)
    wait_until(lambda: connections() == 0)


def target_of(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


# --- end ---


def test_closing_ends_idle_connections_threads_and_the_port(make_config: MakeConfig) -> None:
    before = set(threading.enumerate())
    server = Server(make_config())
    with server as url, connect(url) as client:
        assert client.get("/livez").status_code == 200
        silent = bare(url)
        server.close()
        with silent:
            assert read_all(silent) == b""
        with pytest.raises(httpx.TransportError):
            client.get("/livez")
    server.close()
    wait_until(lambda: not {thread for thread in threading.enumerate() if not thread.daemon} - before)


def test_an_upload_under_way_is_answered_when_the_server_closes(make_config: MakeConfig) -> None:
    config = make_config()
    server = Server(config)
    with server as url:
        connection = bare(url)
        connection.sendall(
            f"POST /transcribe HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.api_key}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
            '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'.encode()
        )
        wait_until(lambda: any(config.tmp_dir.glob("*/*")))
        closing = threading.Thread(target=server.close)
        closing.start()
        with connection:
            received = b""
            while b"draining" not in received:
                piece = connection.recv(65536)
                assert piece, received
                received += piece
        closing.join(PATIENCE_SECONDS)
        assert not closing.is_alive()
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in received
    assert not list(config.tmp_dir.glob("*/*"))


def test_a_client_that_reads_nothing_cannot_keep_it_from_closing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LAST_ANSWERS_SECONDS", 0.5)
    server = Server(make_config())
    with server as url:
        connection = bare(url, receive_buffer=4096)
        connection.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            # The server reads no more, because its client reads no responses.
            while True:
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        closing = threading.Thread(target=server.close)
        closing.start()
        closing.join(PATIENCE_SECONDS)
        assert not closing.is_alive()
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_serve_in_the_main_thread_and_handlers_are_put_back(
    make_config: MakeConfig, number: signal.Signals
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    started: list[Started] = []

    def on_ready(info: Started) -> None:
        started.append(info)
        os.kill(os.getpid(), number)

    serve(make_config(), on_ready=on_ready)
    assert len(started) == 1
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_server_in_a_thread_leaves_signals_alone(make_config: MakeConfig) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with Server(make_config()):
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
