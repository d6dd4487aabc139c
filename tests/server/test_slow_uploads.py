"""Slow uploads over real sockets do not hold places that another key needs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import select
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import uploads

from server.conftest import Start
from server.harness import RunningServer, submit, until
from server.inside import AUDIO, RawRequest, inside, on_a_loop, problem
from server.raw_http import BOUNDARY, answer, file_head, form, head, tail
from whisper_api.server.uploads import receiving
from whisper_api.testing import FakeExecutor

DRIPPING = 8
AT_ONCE = 6
# As many jobs fit into the queue, and the window of the least rate is short.
SETTINGS = {
    "MAX_QUEUED_JOBS": DRIPPING,
    "MAX_UPLOADS_PER_KEY": AT_ONCE,
    "WHISPER_API_TIMEOUT": 3,
    "WHISPER_LANGUAGE": "en",
}


@contextlib.contextmanager
def dripping(server: RunningServer, starts: Iterable[bytes]) -> Iterator[list[socket.socket]]:
    """Open connections that send the beginnings of requests, then three bytes a second."""
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        connections = []
        for start in starts:
            connections.append(connection := stack.enter_context(server.connect()))
            connection.sendall(start)

        def drip() -> None:
            while not over.wait(1.0):
                for connection in connections:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"abc")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield connections
        finally:
            over.set()
            thread.join()


def test_another_key_is_accepted_while_uploads_drip(start_server: Start, hello: bytes) -> None:
    """Files in forms; and a form without parts, a JSON body, and a chunk of which not even the length comes."""
    server = start_server(SETTINGS)
    targets = ("/transcribe", "/transcriptions", "/detect-language", "/v1/audio/transcriptions")
    files = [
        head(server.user_key, "Content-Length: 1000000", target=target) + file_head() + b"RIFF" for target in targets
    ]
    with server.client(server.key("another")) as another:
        corrections = f"PUT /transcription/{submit(another, hello)}/corrections"
        # These requests use another key, since the files take all uploads of the first one.
        key = server.key("a third")
        others = [
            request(key, "POST /transcribe", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 9999"),
            request(server.key("another"), corrections, "Content-Type: application/json", "Content-Length: 9999"),
            head(key, "Transfer-Encoding: chunked") + b"5;",
        ]
        starts = [*others * 2, *itertools.islice(itertools.cycle(files), DRIPPING)]
        with dripping(server, starts) as connections:
            # The server receives as many uploads as one key may have.
            until(lambda: len(list(server.uploads_dir.glob("*/audio.part"))) == AT_ONCE)
            for _ in range(3):
                submit(another, hello)
            for number, connection in enumerate(connections):
                status, headers, body = answer(connection)
                assert (status, headers["connection"]) == (408, "close"), body
                if number >= len(others) * 2:
                    assert b"1000 bytes a second" in body
                    assert connection.recv(1) == b""
    until(lambda: not list(server.uploads_dir.glob("*/audio.part")))


def request(key: str, line: str, *headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def test_a_steady_slow_sender_is_accepted(start_server: Start) -> None:
    """The upload is longer than the window, and faster than the least rate by more than a machine may stand still."""
    server = start_server(SETTINGS)
    content = form(AUDIO + bytes(28_000))
    with server.connect() as connection:
        connection.sendall(head(server.user_key, f"Content-Length: {len(content)}"))
        pause = threading.Event()
        for at in range(0, len(content), 4_000):
            connection.sendall(content[at : at + 4_000])
            pause.wait(0.5)
        status, _, body = answer(connection)
    assert status == 202, body
    assert json.loads(body)["job_id"]


def test_rate_and_deadline_are_as_configured(start_server: Start) -> None:
    """When no least rate is set, a sender without long silences may send until the deadline of the whole body."""
    settings = {"WHISPER_API_TIMEOUT": 4, "MIN_UPLOAD_BYTES_PER_SECOND": 0, "UPLOAD_TIMEOUT_SECONDS": 5}
    server = start_server({**SETTINGS, **settings})
    content = form(AUDIO)
    request = head(server.user_key, f"Content-Length: {len(content)}") + content

    def send(pieces: int) -> tuple[int, bytes]:
        with server.connect() as connection:
            connection.sendall(request[:-pieces])
            for at in range(len(request) - pieces, len(request)):
                threading.Event().wait(0.25)
                with contextlib.suppress(OSError):
                    connection.sendall(request[at : at + 1])
                if select.select([connection], [], [], 0)[0]:
                    break
            status, _, body = answer(connection)
            return status, body

    with ThreadPoolExecutor() as pool:
        # The first has time to spare. The second passes the window of a least rate before it meets the deadline.
        sends = pool.submit(send, 4), pool.submit(send, 100)
        whole, late = (sending.result() for sending in sends)
    assert whole[0] == 202, whole
    assert late[0] == 408
    assert b"within 5 seconds" in late[1]


# --- shares ---


@on_a_loop
async def test_a_key_with_all_its_uploads_under_way_is_told_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "TURN_SECONDS", 0.05)
    async with inside(tmp_path, enable_authorization=True, max_uploads_per_key=2) as app:
        one, two = app.token("one"), app.token("two")
        key = app.state.keys.verify(one)
        assert key is not None
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(app.state.key_uploads.taken(key.key_id, 1.0))
            async with app.client(one) as client, app.client(two) as other:
                refused = await app.post(client)
                problem(refused, 429, "caller_limit")
                assert int(refused.headers["Retry-After"]) > 0
                assert (await app.post(other)).status_code == 202
        async with app.client(one) as client:
            assert (await app.post(client)).status_code == 202
        # Frames of the refusal may hold a turn until the garbage is collected.
        gc.collect()
        assert len(app.state.key_uploads) == len(app.state.address_uploads) == 0


@pytest.mark.parametrize("path", ["/transcribe", "/transcriptions", "/detect-language", "/v1/audio/transcriptions"])
@on_a_loop
async def test_each_address_has_its_share_when_there_are_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(receiving, "TURN_SECONDS", 0.05)
    async with inside(tmp_path, max_uploads_per_address=1) as app:

        def client(address: str) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(app.app, client=(address, 1))
            return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8181")

        async with app.state.address_uploads.taken("192.0.2.1", 1.0), client("192.0.2.1") as one:
            refused = await one.post(path, files={"file": ("a.wav", AUDIO)})
            assert refused.status_code == 429, refused.text
            async with client("192.0.2.2") as two:
                accepted = await two.post(path, files={"file": ("a.wav", AUDIO)})
                assert accepted.status_code in (200, 202), accepted.text


@on_a_loop
async def test_unfinished_forms_of_a_key_take_a_bounded_part_of_the_disk(tmp_path: Path) -> None:
    """Each file is small enough, but all files of two simultaneous requests together are too large."""
    settings: dict[str, Any] = {"enable_authorization": True, "max_uploads_per_key": 3, "max_file_size": 1000}
    async with inside(tmp_path, FakeExecutor(held=True), **settings) as app:
        key, other = app.token("one"), app.token("two")
        parts = [file_head() + AUDIO.ljust(900, b"\x7f") + b"\r\n"] * 2
        # The piece has the boundary that ends the second file.
        begun = raw_form(key, b"".join(parts) + f"--{BOUNDARY}\r\n".encode(), whole=False)
        sending = asyncio.create_task(begun.to(app.app))
        await app.until(lambda: len(list(tmp_path.glob("uploads/*/audio"))) == 2)
        for token, accepted in ((key, 1), (other, 3)):
            request = raw_form(token, b"".join([*parts, parts[0]]) + tail().lstrip(b"\r\n"))
            await request.to(app.app)
            jobs = json.loads(request.answer)["jobs"]
            assert [("job_id" in job, job.get("error", {}).get("code")) for job in jobs] == [
                *[(True, None)] * accepted,
                *[(False, "caller_limit")] * (3 - accepted),
            ]
        begun.gone.set()
        await sending
        await app.until(lambda: len(list(tmp_path.glob("uploads/*"))) == 4)
        again = raw_form(key, b"".join(parts) + tail().lstrip(b"\r\n"))
        await again.to(app.app)
        assert ["job_id" in job for job in json.loads(again.answer)["jobs"]] == [True, True]


def raw_form(key: str, body: bytes, *, whole: bool = True) -> RawRequest:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    headers["Content-Length"] = str(len(body) + (not whole))
    return RawRequest("POST", "/transcriptions", headers, (body,), whole)


@pytest.mark.parametrize("path", ["/transcribe", "/transcriptions", "/detect-language", "/v1/audio/transcriptions"])
@on_a_loop
async def test_a_key_that_is_revoked_while_its_upload_comes_makes_no_job(tmp_path: Path, path: str) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        request = raw_form(app.token("one"), form(AUDIO, {}))
        request.path = path
        revoked = asyncio.Event()

        async def receive_after_revoking(scope: Any, receive: Any, send: Any) -> None:
            async def receive_late() -> Any:
                message = await receive()
                if not revoked.is_set():
                    revoked.set()
                    await asyncio.to_thread(app.state.keys.revoke, "one")
                return message

            await app.app(scope, receive_late, send)

        await request.to(receive_after_revoking)
        assert request.status == 401, request.answer
        assert app.service.counts() == (0, 0)
        assert uploads(tmp_path) == []
