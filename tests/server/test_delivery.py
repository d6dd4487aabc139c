"""Answers on their way out: which count as delivered, and how refusals wait for who still sends."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator

import httpx
import pytest
import requests
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.upload_server import PATIENCE_SECONDS, UploadServer, serving, until
from server.virtual_time import run_at_once
from whisper_api.server.responses.delivery import BodyReceive, DeliveredResponse, LingeringClose

# More than any socket on the way can hold.
LARGE = 64 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadServer]:
    with serving(tmp_path_factory.mktemp("delivery")) as server:
        yield server


# --- delivered, over a real socket ---


@pytest.mark.parametrize("size", [0, 2, 1000, 65536, 65538, 131074, 5_000_000])
def test_a_response_that_was_read_to_the_end_counts_as_delivered(server: UploadServer, size: int) -> None:
    before = server.delivered
    response = requests.get(f"{server.url}/text/{size}", timeout=PATIENCE_SECONDS)
    assert response.content == "é".encode() * (size // 2)
    assert response.headers["Content-Length"] == str(size)
    until(lambda: server.delivered == before + 1)
    with httpx.Client(http1=False, http2=True, timeout=PATIENCE_SECONDS) as client:
        assert client.get(f"{server.url}/text/{size}").content == response.content
    until(lambda: server.delivered == before + 2)


def test_a_client_that_closes_after_the_last_byte_counts_as_delivered(server: UploadServer) -> None:
    before = server.delivered
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(b"GET /text/1000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert answer.endswith("é".encode() * 500)
    until(lambda: server.delivered == before + 20)


def test_headers_alone_are_no_delivery(server: UploadServer) -> None:
    before = server.delivered
    response = requests.head(f"{server.url}/text/1000", timeout=PATIENCE_SECONDS)
    assert (response.status_code, response.headers["Content-Length"]) == (200, "1000")
    assert requests.get(f"{server.url}/refuse", timeout=PATIENCE_SECONDS).status_code == 401
    assert server.delivered == before


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_breaks_off_does_not_count_as_delivered(
    tmp_path_factory: pytest.TempPathFactory, reset: bool
) -> None:
    with serving(tmp_path_factory.mktemp("broken"), keep_alive_seconds=0.5) as server:
        for size in (0, 1, 100_000):
            with server.connect() as connection:
                connection.sendall(b"GET /text/%d HTTP/1.1\r\nHost: x\r\n\r\n" % LARGE)
                left = size
                while left > 0:
                    left -= len(connection.recv(left))
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with (
            httpx.Client(http1=False, http2=True, timeout=PATIENCE_SECONDS) as client,
            client.stream("GET", f"{server.url}/text/{LARGE}") as response,
        ):
            assert next(response.iter_raw())
        until(lambda: not server.connections())
        assert server.delivered == 0


# --- delivered, message by message ---

GET: Scope = {"type": "http", "http_version": "1.1", "method": "GET", "headers": []}
POST: Scope = {**GET, "method": "POST", "headers": [(b"transfer-encoding", b"chunked")]}
END: Message = {"type": "http.request", "body": b"", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


class Client:
    """A server's side of a request: receives messages at given times, in seconds, and records the response."""

    def __init__(self, *script: tuple[float, Message]) -> None:
        self.sent: list[Message] = []
        self.received = 0
        self._script = list(script)

    async def receive(self) -> Message:
        if not self._script:
            await asyncio.Event().wait()
        await asyncio.sleep(self._script[0][0] - asyncio.get_running_loop().time())
        self.received += 1
        return self._script.pop(0)[1]

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def complete(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", self.sent[-1]["type"] != "http.response.body")

    def run(self, app: ASGIApp, scope: Scope) -> float:
        """Let the application answer.

        Returns:
            How many seconds it took.
        """

        async def work() -> float:
            await app(dict(scope), self.receive, self.send)
            return asyncio.get_running_loop().time()

        return run_at_once(work())


def deliver(client: Client, content: bytes, scope: Scope = GET) -> int:
    delivered = 0

    async def count() -> None:
        nonlocal delivered
        assert client.complete
        delivered += 1

    client.run(DeliveredResponse(content, on_delivered=count), scope)
    return delivered


def test_the_last_byte_is_held_back_until_the_client_was_looked_for() -> None:
    for content in (b"", b"a", b"ab", b"a" * 65536, b"a" * 65537, b"a" * 300_000):
        for script in ((), ((0.0, END),)):
            client = Client(*script)
            assert deliver(client, content) == 1
            assert client.body == content
            assert [len(message["body"]) for message in client.sent[1:]][-1] == min(1, len(content))
        gone = Client((0.0, END), (0.0, GONE))
        assert deliver(gone, content) == 0
        assert len(gone.body) < max(1, len(content))
        assert not gone.complete


def test_a_client_that_leaves_after_the_last_byte_counts_as_delivered() -> None:
    assert deliver(Client((0.0, END), (1.0, GONE)), b"text") == 1


def test_a_server_that_says_that_its_client_has_gone() -> None:
    class Gone(Client):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if len(self.sent) == 2:
                raise OSError("gone")

    assert deliver(Gone(), b"text") == 0


def test_a_server_that_waits_for_ever_for_a_client_that_has_gone() -> None:
    class Stuck(Client):
        def __init__(self, sends: int) -> None:
            super().__init__((0.0, END), (60.0, GONE))
            self.sends = sends

        async def send(self, message: Message) -> None:
            await super().send(message)
            if len(self.sent) > self.sends:
                await asyncio.Event().wait()

    for sends in (1, 2, 3):
        assert deliver(Stuck(sends), b"a" * 100_000) == 0


def test_an_error_while_it_is_noted_is_not_taken_for_a_client_that_has_gone() -> None:
    async def fail() -> None:
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        Client().run(DeliveredResponse(b"text", on_delivered=fail), GET)


# --- early answers ---


def body(data: bytes) -> Message:
    return {"type": "http.request", "body": data, "more_body": True}


def test_an_answer_goes_out_whole_and_ends_with_the_request() -> None:
    for last in (END, GONE):
        client = Client((0.0, body(b"a")), (3.0, body(b"b")), (6.0, last), (100.0, GONE))
        assert client.run(LingeringClose(Response("no", 413)), POST) == 6.0
        assert client.body == b"no"
        assert client.complete
        assert client.sent[1] == {"type": "http.response.body", "body": b"no", "more_body": True}
        assert client.received >= 3


def test_how_long_it_waits_is_bounded() -> None:
    def seconds(*script: tuple[float, Message], status: int = 413) -> float:
        client = Client(*script)
        app = LingeringClose(Response("no", status), seconds=30, idle_seconds=5, max_bytes=1000)
        taken = client.run(app, POST)
        assert client.body == b"no"
        assert client.complete
        return taken

    assert seconds() == 5.0
    assert seconds((4.0, body(b"a"))) == 9.0
    assert seconds(*[(4.0 * number, body(b"a")) for number in range(100)]) == 30.0
    assert seconds(*[(0.0, body(b"a" * 100))] * 100) == 0.0
    # It was waited for long enough.
    assert seconds(status=408) == 0.0


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"0")]])
def test_an_early_response_waits_for_no_body_when_there_is_none(headers: list[tuple[bytes, bytes]]) -> None:
    client = Client()
    assert client.run(LingeringClose(Response("no", 401)), {**POST, "headers": headers}) == 0.0
    assert client.body == b"no"
    assert len(client.sent) == 2


def test_http_2_does_not_say_whether_there_is_a_body() -> None:
    client = Client((2.0, END))
    assert client.run(LingeringClose(Response("no", 401)), {**GET, "http_version": "2"}) == 2.0
    assert client.complete


def test_an_answer_to_the_whole_request_waits_for_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await Response("yes")(scope, receive, send)

    client = Client((0.0, body(b"a")), (1.0, END))
    assert client.run(LingeringClose(app), POST) == 1.0
    assert len(client.sent) == 2


def test_an_early_response_knows_how_much_of_the_body_was_read() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = BodyReceive(scope, receive)
        while not body.ended:
            await body()
        await LingeringClose(Response("no", 415))(scope, receive, send)

    for outer in (app, LingeringClose(app)):
        client = Client((0.0, body(b"a")), (1.0, END))
        assert client.run(outer, POST) == 1.0
        assert client.body == b"no"
        assert len(client.sent) == 2


def test_an_error_is_passed_on_when_the_request_has_ended() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("it crashed")

    client = Client((0.0, body(b"a")), (3.0, END))
    with pytest.raises(RuntimeError, match="it crashed"):
        client.run(LingeringClose(app), POST)
    assert client.received == 2


def test_other_scopes_than_http_are_passed_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": scope["type"]})

    client = Client()
    assert client.run(LingeringClose(app), {"type": "lifespan"}) == 0.0
    assert client.sent == [{"type": "lifespan"}]
