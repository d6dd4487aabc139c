"""Connections within bounds: silent and stalled ones are closed, and probes of the server get a response."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
import trustme
from fakes import eventually
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from hyperframe.frame import PingFrame, WindowUpdateFrame
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.conftest import MakeConfig
from server.in_thread import bare, connect, read_all, wait_until
from whisper_api import Server
from whisper_api.server.connections import Bounds, Connections, accepting, settings, settings_of
from whisper_api.server.responses.problems import REFUSED
from whisper_api.server.sockets import listen, url_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
# A request that stays open, since its body does not come.
UNFINISHED = b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx"
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Http2Client:
    """An HTTP/2 client whose frames the test controls.

    Args:
        url: of the server.
        window: of each stream, in bytes.
    """

    def __init__(self, url: str, window: int = 65_535) -> None:
        self.socket = bare(url)
        self.state = h2.connection.H2Connection(H2Configuration(client_side=True))
        codes = h2.settings.SettingCodes
        self.state.local_settings = h2.settings.Settings(
            client=True, initial_values={codes.INITIAL_WINDOW_SIZE: window, codes.ENABLE_PUSH: 0}
        )
        self.state.initiate_connection()
        self.flush()
        self.events = self._events()

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.socket.close()

    def ask(self, path: str, *more: tuple[str, str], method: str = "GET") -> int:
        stream_id = self.state.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x"), *more]
        self.state.send_headers(stream_id, head, end_stream=True)
        self.flush()
        return stream_id

    def flush(self) -> None:
        self.socket.sendall(self.state.data_to_send())

    def until(self, kind: type[h2.events.Event]) -> h2.events.Event:
        """Read until the next event of a kind."""
        return next(event for event in self.events if isinstance(event, kind))

    def _events(self) -> Iterator[h2.events.Event]:
        while data := self.socket.recv(65536):
            yield from self.state.receive_data(data)
            with contextlib.suppress(OSError):
                self.flush()


def status_of(event: h2.events.Event) -> str:
    assert isinstance(event, h2.events.ResponseReceived)
    return dict(event.headers or ())[b":status"].decode()


# --- clients that say nothing ---


@pytest.fixture
def impatient(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(settings, "LEAST_HEAD_SECONDS", 0.2)
    monkeypatch.setattr(accepting, "CHECK_SECONDS", 0.02)
    with (server := Server(make_config(keepalive_seconds=0.2))):
        yield server


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        LIVEZ,
        LIVEZ + b"GET /live",
        PREFACE[:10],
        PREFACE,
        PREFACE + bytes.fromhex("000040010400000001") + b"\x82",
        # HEADERS without END_HEADERS, whole.
        PREFACE + bytes.fromhex("000001010000000001") + b"\x82",
    ],
    ids=["nothing", "half a head", "one request", "and a half", "half a preface", "preface", "half a frame", "no end"],
)
def test_a_silent_connection_is_closed(impatient: Server, sent: bytes) -> None:
    with bare(impatient.url) as connection:
        connection.sendall(sent)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 OK") == sent.count(LIVEZ)


def test_an_http_2_connection_without_requests_is_closed_whatever_it_pings(impatient: Server) -> None:
    with Http2Client(impatient.url) as client:
        client.ask("/livez")
        client.until(h2.events.StreamEnded)
        ended = threading.Event()

        def ping() -> None:
            frame = PingFrame(0)
            frame.opaque_data = b"12345678"
            with contextlib.suppress(OSError):
                while not ended.wait(0.02):
                    client.socket.sendall(frame.serialize())

        pinging = threading.Thread(target=ping)
        pinging.start()
        try:
            closed = client.until(h2.events.ConnectionTerminated)
        finally:
            ended.set()
            pinging.join()
    assert isinstance(closed, h2.events.ConnectionTerminated)
    assert closed.error_code == ErrorCodes.NO_ERROR


def test_a_connection_without_a_tls_handshake_is_closed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "LEAST_HEAD_SECONDS", 0.2)
    certificate = trustme.CA().issue_cert("127.0.0.1")
    pem = tmp_path / "all.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    config = make_config(tls_cert_file=pem, tls_key_file=pem, keepalive_seconds=0.2)
    with Server(config) as url, bare(url) as connection, contextlib.suppress(ConnectionError):
        assert read_all(connection) == b""


def test_a_request_that_takes_long_is_not_silent(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadlines of uploads apply to an upload, not those of connections."""
    monkeypatch.setattr(settings, "LEAST_HEAD_SECONDS", 0.2)
    with Server(make_config(keepalive_seconds=0.2)) as url, bare(url) as connection, bare(url) as other:
        connection.sendall(UNFINISHED)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert read_all(other) == b"", "by now, a silent one is closed"


# --- clients that take nothing ---


@pytest.fixture
def hasty(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that cuts off clients that read nothing for half a second."""
    monkeypatch.setattr(accepting, "CHECK_SECONDS", 0.02)
    with (server := Server(make_config(timeout_seconds=0.5))):
        yield server


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/", "/livez"])
def test_a_stream_whose_client_takes_nothing_is_reset(hasty: Server, path: str) -> None:
    """This holds for small responses too, and the connection goes on."""
    with Http2Client(hasty.url, window=0) as client:
        asked = {client.ask(path) for _ in range(20)}
        reset: set[int | None] = set()
        while reset != asked:
            event = client.until(h2.events.StreamReset)
            assert isinstance(event, h2.events.StreamReset)
            assert event.error_code == ErrorCodes.CANCEL
            reset.add(event.stream_id)
        last = client.ask("/livez")
        client.state.increment_flow_control_window(1000, last)
        client.flush()
        client.until(h2.events.StreamEnded)


def test_a_connection_whose_window_stays_closed_is_ended(hasty: Server) -> None:
    with Http2Client(hasty.url, window=1 << 20) as client:
        client.ask("/openapi.json")
        # The body is larger than the 65,535 bytes of the connection's window, which is not opened again.
        ended = client.until(h2.events.ConnectionTerminated)
        assert isinstance(ended, h2.events.ConnectionTerminated)
        assert ended.error_code == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("http2", [False, True])
def test_a_socket_that_is_not_read_is_cut_off(hasty: Server, http2: bool) -> None:
    with bare(hasty.url, receive_buffer=4096) as connection:
        connection.settimeout(0.2)
        if http2:
            ping = PingFrame(0)
            ping.opaque_data = b"12345678"
            connection.sendall(PREFACE + WindowUpdateFrame(0, 1 << 30).serialize())
            asked = ping.serialize() * 100
        else:
            asked = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 10

        def cut_off() -> bool:
            try:
                connection.sendall(asked)
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        wait_until(cut_off)


def test_bodies_that_wait_for_a_client_are_not_copied(hasty: Server, make_config: MakeConfig) -> None:
    """The server holds much less than the body for each stream."""
    psutil = Path("/proc/self/statm")
    if not psutil.exists():
        pytest.skip("this system does not tell the memory of a process")
    with connect(hasty.url) as plain:
        size = len(plain.get("/openapi.json").content)
        assert size > 100_000

    def megabytes() -> float:
        return int(psutil.read_text().split()[1]) * 4096 / 1e6

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Http2Client(hasty.url, window=0)) for _ in range(4)]
        before = megabytes()
        for client, _ in itertools.product(clients, range(100)):
            client.ask("/openapi.json")
        for client in clients:
            client.until(h2.events.StreamReset)
        assert megabytes() - before < 0.7 * 400 * size / 1e6


# --- floods ---


def rapid_resets(client: Http2Client) -> None:
    stream_id = client.ask("/openapi.json")
    client.state.reset_stream(stream_id)
    client.flush()


def pings(client: Http2Client) -> None:
    client.state.ping(b"12345678")
    client.flush()


def tiny_windows(client: Http2Client) -> None:
    if not client.state.streams:
        client.ask("/openapi.json")
    client.socket.sendall(WindowUpdateFrame(1, 1).serialize())


def read_to_the_end(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        read_all(connection)


@pytest.mark.parametrize("flood", [rapid_resets, pings, tiny_windows])
def test_a_flood_of_frames_ends_only_its_connection(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, flood: Callable[[Http2Client], None]
) -> None:
    with Server(make_config()) as url, Http2Client(url, window=0) as client, connect(url) as other:
        reading = threading.Thread(target=read_to_the_end, args=(client.socket,))
        reading.start()
        for number in range(1_000_000):
            with contextlib.suppress(OSError):
                flood(client)
            if number % 500 == 0:
                assert other.get("/livez").status_code == 200
                if not reading.is_alive():
                    break
        assert not reading.is_alive(), "the connection was not ended"
        assert other.get("/livez").status_code == 200
    assert not [record for record in caplog.records if record.exc_info]
    assert len(caplog.records) < 300


def test_requests_beyond_the_share_are_refused_without_the_application(make_config: MakeConfig) -> None:
    """Each connection may still have its first request."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(Server(make_config()))
        clients = [stack.enter_context(Http2Client(url, window=0)) for _ in range(12)]
        answers: list[str] = []
        for client in clients:
            for _ in range(90):
                client.ask("/livez")
            answers += [status_of(client.until(h2.events.ResponseReceived)) for _ in range(90)]
        taken, refused = answers.count("200"), answers.count("503")
        assert (taken, refused) == (Bounds.shared_streams_per_address + 12, 12 * 90 - taken)
        with connect(url) as plain:
            assert plain.get("/livez").status_code == 200


# --- many connections ---


@pytest.fixture
def small(make_config: MakeConfig) -> Iterator[Server]:
    """A server that allows four connections for each address."""
    with (server := Server(make_config(max_connections=8))):
        yield server


@pytest.mark.parametrize("sent", [b"", PREFACE, LIVEZ, b"GET /"], ids=["nothing", "preface", "answered", "half"])
def test_silent_connections_make_room(small: Server, sent: bytes) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(bare(small.url))
            with contextlib.suppress(OSError):
                connection.sendall(sent)

        def served(path: str) -> bool:
            # While the server still answers what was sent, no connection is idle.
            with contextlib.suppress(httpx.TransportError), connect(small.url) as client:
                return client.get(path).status_code == 200
            return False

        wait_until(lambda: served("/livez"))
        wait_until(lambda: served("/openapi.json"))


def test_health_checks_are_answered_when_all_connections_are_busy(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting.log, "filters", [])
    with (server := Server(make_config(max_connections=8))), contextlib.ExitStack() as stack:
        body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
        busy = [stack.enter_context(bare(server.url)) for _ in range(4)]
        for connection in busy:
            connection.sendall(
                f"POST /transcribe HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.api_key}\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n".encode()
                + body
            )

        def full() -> bool:
            with connect(server.url, server.api_key) as client:
                return client.get("/status").status_code == 503

        wait_until(full)
        for http2 in (False, True):
            with connect(server.url, server.api_key, http2=http2, http1=not http2) as client:
                assert client.get("/readyz").status_code in (200, 503)
            with connect(server.url, http2=http2, http1=not http2) as client:
                assert client.get("/livez").status_code == 200
            with connect(server.url, server.api_key, http2=http2, http1=not http2) as client:
                refused = client.get("/status")
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_connections")
            assert refused.headers["Retry-After"]
        with connect(server.url, server.api_key) as client:
            upload = client.post("/v1/audio/transcriptions", content=bytes(1_000_000))
            assert upload.status_code == 503
            assert upload.json()["error"]["code"] == "too_many_connections", "as OpenAI's clients read it"
        # Connections above the bound are closed soon, and silent ones keep out no other.
        for _ in range(3 * Bounds.reserved):
            stack.enter_context(bare(server.url))
        with connect(server.url) as client:
            assert client.get("/livez").status_code == 200
        for connection in busy:
            connection.close()
        wait_until(lambda: not full())
    assert any("too many connections" in record.message for record in caplog.records)


def test_accepting_continues_after_the_system_had_no_free_files(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        (listening,) = listen("127.0.0.1", 0, timeout_seconds=60)
        loop = asyncio.get_running_loop()
        accept, failures = loop.sock_accept, iter([errno.EMFILE, errno.ENFILE, errno.ECONNABORTED])

        async def sometimes(sock: socket.socket) -> tuple[socket.socket, object]:
            if (number := next(failures, None)) is not None:
                raise OSError(number, "no room")
            return await accept(sock)

        loop.sock_accept = sometimes  # type: ignore[method-assign]
        bounds = Bounds(connections=4, connections_per_address=2)
        connections = Connections(Response("hello"), settings_of(make_config()), bounds)
        await connections.accept([listening])
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            assert (await client.get(url_of("http", listening))).text == "hello"
        await connections.close(1.0)

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == ["no connection can be accepted: no room"] * 2


@pytest.mark.parametrize("proxies", [(), ("127.0.0.1",)])
def test_a_proxy_connects_for_many_clients(make_config: MakeConfig, proxies: tuple[str, ...]) -> None:
    """A trusted proxy may have more connections than one address may, but not more than the server has."""
    begun = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun
        if REFUSED not in scope:
            begun += 1
            await asyncio.Event().wait()

    async def run() -> int:
        (listening,) = listen("127.0.0.1", 0, timeout_seconds=60)
        bounds = Bounds(connections=8, connections_per_address=4, reserved=1)
        connections = Connections(app, settings_of(make_config()), bounds, proxies=proxies)
        await connections.accept([listening])
        host, port = listening.getsockname()
        writers, ended = [], []
        for _ in range(10):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            writers.append(writer)
            ended.append(asyncio.create_task(reader.read(1)))
        # The application gets each request, or the server refuses it or closes its connection.
        await eventually(lambda: begun + sum(task.done() for task in ended) == 10)
        for writer in writers:
            writer.close()
        await connections.close(0.1)
        await asyncio.wait(ended)
        return begun

    assert asyncio.run(asyncio.wait_for(run(), 60)) == (8 if proxies else 4)


# --- HTTP/1.1 as all clients read it ---


@pytest.mark.parametrize(
    ("target", "line"),
    [("/livez", b"200 OK"), ("/status", b"401 Unauthorized"), ("/livez HTTP/1.1\r\nbad header", b"400 Bad Request")],
)
def test_answers_have_a_reason_phrase(impatient: Server, target: str, line: bytes) -> None:
    with bare(impatient.url) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert read_all(connection).startswith(b"HTTP/1.1 " + line + b"\r\n")


def test_a_request_to_upgrade_to_http_2_is_answered_over_http_1(impatient: Server) -> None:
    with bare(impatient.url) as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: not base64!\r\n\r\n" + LIVEZ
        )
        assert read_all(connection).count(b"HTTP/1.1 200 OK\r\n") == 2


# --- WebSockets ---


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nowhere", 404, "not_found"),
        ("/v1/realtime", 404, "not_found"),
        ("/", 400, "websocket_unsupported"),
        ("/status", 400, "websocket_unsupported"),
        ("/transcription/1/events", 400, "websocket_unsupported"),
        ("/transcribe", 400, "websocket_unsupported"),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "without the key of the handshake"])
def test_a_websocket_is_refused_by_name(impatient: Server, path: str, status: int, code: str, whole: bool) -> None:
    headers = {name: value for name, value in UPGRADE.items() if whole or name != "Sec-WebSocket-Key"}
    with connect(impatient.url) as client:
        answer = client.get(path, headers=headers)
        assert answer.status_code == status
        body = answer.json()
        assert (body["error"]["code"] if path.startswith("/v1/") else body["code"]) == code
        assert answer.headers["X-Request-ID"]
        assert client.get("/livez").status_code == 200, "on the same connection"


@pytest.mark.parametrize(("path", "status"), [("/nowhere", "404"), ("/status", "400")])
def test_a_websocket_over_http_2_is_refused(impatient: Server, path: str, status: str) -> None:
    with Http2Client(impatient.url) as client:
        client.ask(path, (":protocol", "websocket"), ("sec-websocket-version", "13"), method="CONNECT")
        assert status_of(client.until(h2.events.ResponseReceived)) == status
        client.ask("/livez")
        assert status_of(client.until(h2.events.ResponseReceived)) == "200"


def test_connect_without_a_path_is_answered(impatient: Server) -> None:
    with Http2Client(impatient.url) as client:
        client.state.config.validate_outbound_headers = False
        client.state.send_headers(1, [(":method", "CONNECT"), (":authority", "elsewhere:443")], end_stream=True)
        client.flush()
        assert status_of(client.until(h2.events.ResponseReceived)) == "401"
