"""Response bodies that clients do not take: how much the server holds of them, in all and for each address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Any
from weakref import WeakSet

import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.conftest import MakeConfig
from server.in_thread import bare, connect, wait_until
from server.test_connections import Http2Client, status_of
from whisper_api import Server
from whisper_api.server.connections import Bounds, Connections, response_budget, settings_of
from whisper_api.server.connections.response_budget import SMALL_BYTES, BudgetedResponse, ResponseBudget
from whisper_api.server.middleware.access_log import ErrorAnswers
from whisper_api.server.responses.problems import Problem, handler, problem_response
from whisper_api.server.sockets import listen

GET: Scope = {"type": "http", "method": "GET"}


def start(size: int) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"%d" % size)]}


def body(size: int, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": bytes(size), "more_body": more}


class Taken:
    """A connection whose client reads everything."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.cuts = 0

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    def cut(self) -> None:
        self.cuts += 1

    def response(self, budget: ResponseBudget, network: str = "a", scope: Scope = GET) -> BudgetedResponse:
        return BudgetedResponse(budget, network, scope, self.send, self.cut)


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60 << 10), st.booleans()), max_size=40)


@given(STEPS, st.sampled_from([0.0, 3600.0]))
def test_the_bounds_hold_and_all_memory_is_given_back(steps: list[tuple[str, int, bool]], seconds: float) -> None:
    """This holds whether stalled responses are cut off or new ones refused."""
    total, share = 100 << 10, 50 << 10
    budget = ResponseBudget(total, share)
    held: list[tuple[str, int, Taken, BudgetedResponse]] = []

    async def run() -> None:
        for network, size, ends in steps:
            if ends and held:
                held.pop(0)[3].close()
            connection = Taken()
            response = connection.response(budget, network)
            with contextlib.suppress(Problem):
                await response.send(start(size))
                held.append((network, size, connection, response))
            assert connection.messages or size > SMALL_BYTES
            counted = Counter[str]()
            for network, size, connection, _ in held:
                if not connection.cuts and size > SMALL_BYTES:
                    counted[network] += size
            assert budget.held == sum(counted.values())
            largest = max((size for _, size, _, _ in held), default=0)
            assert budget.held <= max(total, largest)
            assert all(used <= max(share, largest) for used in counted.values())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(response_budget, "STALLED_SECONDS", seconds)
        asyncio.run(run())
        for *_, response in held:
            response.close()
    assert budget.held == 0


def test_the_response_that_stalled_first_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only clients of the address whose share is used up are refused."""
    monkeypatch.setattr(response_budget, "STALLED_SECONDS", 0.0)
    budget = ResponseBudget(100_000, 40_000)

    async def run() -> None:
        clients = [Taken() for _ in range(4)]
        stranger, fast, slow, new = (
            client.response(budget, network) for client, network in zip(clients, "baaa", strict=True)
        )
        for response in (stranger, fast, slow):
            await response.send(start(20_000))
        await fast.send(body(15_000, more=True))
        assert budget.held == 60_000
        await new.send(start(20_000))
        assert [client.cuts for client in clients] == [0, 0, 1, 0]
        with pytest.raises(ClientDisconnect):
            await slow.send(body(20_000))
        # The newest response is refused while no client stalls.
        monkeypatch.setattr(response_budget, "STALLED_SECONDS", 3600.0)
        with pytest.raises(Problem):
            await Taken().response(budget).send(start(20_000))
        assert [client.cuts for client in clients] == [0, 0, 1, 0]

    asyncio.run(run())


def test_a_body_is_counted_until_it_was_taken_and_sent_by_pieces() -> None:
    budget = ResponseBudget(1 << 20, 1 << 20)
    counted = []

    class Counting(Taken):
        async def send(self, message: Message) -> None:
            counted.append(budget.held)
            await super().send(message)

    async def run() -> None:
        client = Counting()
        response = client.response(budget)
        await response.send(start(100_000))
        await response.send(body(100_000))
        assert b"".join(message.get("body", b"") for message in client.messages) == bytes(100_000)
        assert [message["more_body"] for message in client.messages[1:]] == [True, True, True, False]
        assert max(len(message.get("body", b"")) for message in client.messages) <= response_budget.PIECE_BYTES
        response.close()
        assert budget.held == 0
        # Each piece of a body without a length counts when it is sent.
        response = client.response(budget)
        await response.send({"type": "http.response.start", "status": 200, "headers": []})
        await response.send(body(50_000, more=True))
        assert budget.held == 0
        # The response to HEAD holds no memory.
        await client.response(budget, scope={**GET, "method": "HEAD"}).send(start(100_000))
        assert budget.held == 0

    asyncio.run(run())
    assert counted == [100_000] * 5 + [0, 50_000, 50_000, 0]


def test_a_streamed_response_that_does_not_fit_is_cut() -> None:
    budget = ResponseBudget(40_000, 40_000)

    async def run() -> None:
        client = Taken()
        response = client.response(budget)
        await Taken().response(budget).send(start(30_000))
        await response.send({"type": "http.response.start", "status": 200, "headers": []})
        await response.send(body(SMALL_BYTES, more=True))
        with pytest.raises(ClientDisconnect):
            await response.send(body(20_000, more=True))
        assert client.cuts == 1

    asyncio.run(run())


# --- over real connections ---


@pytest.mark.parametrize("http2", [False, True])
def test_clients_that_take_nothing_hold_no_more_than_the_share(make_config: MakeConfig, http2: bool) -> None:
    """Small responses reach every client meanwhile, and large ones do after the slow clients have left."""
    size, share, clients = 4 << 20, 16 << 20, 30
    at_work = most = 0
    bodies: WeakSet[Any] = WeakSet()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal at_work, most
        if scope["path"] == "/small":
            await Response("small")(scope, receive, send)
            return
        # A stand-in for a body that the application has rendered.
        rendered = Taken()
        bodies.add(rendered)
        await send(start(size))
        at_work += 1
        most = max(most, at_work)
        try:
            await send(body(size))
        finally:
            at_work -= 1

    async def run() -> None:
        (listening,) = listen("127.0.0.1", 0, timeout_seconds=60)
        bounds = Bounds(
            connections=100, connections_per_address=100, response_bytes=2 * share, response_bytes_per_address=share
        )
        connections = Connections(ErrorAnswers(app, handler(problem_response)), settings_of(make_config()), bounds)
        await connections.accept([listening])
        url = "http://{}:{}".format(*listening.getsockname())
        await asyncio.to_thread(attack, url)
        await connections.close(0.1)

    def attack(url: str) -> None:
        with contextlib.ExitStack() as stack:
            if http2:
                # One connection, which goes on when its streams are refused.
                client = stack.enter_context(Http2Client(url, window=0))
                for _ in range(clients):
                    client.ask("/large")
                answers = [status_of(client.until(h2.events.ResponseReceived)) for _ in range(clients)]
                assert Counter(answers) == {"200": share // size, "503": clients - share // size}
                # A refused body is dropped before the client has read the refusal.
                wait_until(lambda: len(bodies) == share // size)
            else:
                for _ in range(clients):
                    connection = stack.enter_context(bare(url, receive_buffer=4096))
                    connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
            with connect(url) as client_of_small:
                assert client_of_small.get("/small").text == "small"
        wait_until(lambda: at_work == 0)
        with connect(url) as reader:
            assert len(reader.get("/large").content) == size

    asyncio.run(asyncio.wait_for(run(), 60))
    assert 1 <= most <= share // size


def test_a_new_client_is_refused_by_name_until_slow_clients_are_cut_off(make_config: MakeConfig) -> None:
    with contextlib.ExitStack() as stack:
        memory = 1_400_000
        url = stack.enter_context(Server(make_config(max_response_memory=memory)))
        with connect(url) as client:
            size = len(client.get("/openapi.json").content)
            assert memory / 4 < size < memory / 2, "one fits the share, and two do not"
        silent = stack.enter_context(Http2Client(url, window=0))
        silent.ask("/openapi.json")
        silent.until(h2.events.ResponseReceived)
        with connect(url) as client:
            refused = client.get("/openapi.json")
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_responses")
            assert int(refused.headers["Retry-After"]) > 0
            assert client.get("/livez").status_code == 200
            assert client.head("/openapi.json").status_code == 200
            wait_until(lambda: client.get("/openapi.json").status_code == 200)
        reset = silent.until(h2.events.StreamReset)
        assert isinstance(reset, h2.events.StreamReset)


@pytest.mark.parametrize("how", [socket.SHUT_RDWR, None])
def test_a_client_that_goes_gives_its_memory_back(make_config: MakeConfig, how: int | None) -> None:
    with Server(make_config(max_response_memory=1 << 19)) as url:
        for _ in range(5):
            connection = bare(url, receive_buffer=4096)
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            if how is not None:
                connection.shutdown(how)
            connection.close()
            with connect(url) as client:
                wait_until(lambda client=client: client.get("/openapi.json").status_code == 200)  # type: ignore[misc]
