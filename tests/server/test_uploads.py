"""Uploads over a real socket: what arrives, what is refused and how, and that nothing is left of what failed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from server.upload_server import (
    BOUNDARY,
    PATIENCE_SECONDS,
    UploadServer,
    field_part,
    file_part,
    form,
    head,
    serving,
    until,
)
from server.virtual_time import Inline, run_at_once
from whisper_api.errors import StorageError, StorageFull
from whisper_api.server.connections import accepting
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.incoming import IncomingFile, IncomingForm, Limits
from whisper_api.server.uploads.pace import PaceRules
from whisper_api.server.uploads.receiving import receive as receive_form

MAX_FILE_SIZE = 1_000_000
MAX_GROWTH = 20 << 20  # bytes
AUDIO = random.Random(3).randbytes(700_000)
BODY = form(field_part("language", "en"), file_part(AUDIO), field_part("prompt", "Zürich"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadServer]:
    with serving(tmp_path_factory.mktemp("uploads"), max_file_size=MAX_FILE_SIZE) as server:
        yield server


def post(server: UploadServer, body: Any = BODY, path: str = "/upload", **headers: str) -> requests.Response:
    return requests.post(
        server.url + path,
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **headers},
        timeout=PATIENCE_SECONDS,
    )


def check(answer: dict[str, Any], audio: bytes = AUDIO) -> None:
    assert answer["size"] == len(audio)
    assert answer["sha256"] == hashlib.sha256(audio).hexdigest()


def check_problem(response: requests.Response | httpx.Response, status: int, code: str) -> str:
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    return str(body["detail"])


def read_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read one response with its whole body; anything but that fails."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    body = response.read()
    assert len(body) == int(response.headers["Content-Length"])
    return response.status, json.loads(body)


# --- what arrives ---


def test_an_upload_arrives(server: UploadServer) -> None:
    answer = post(server).json()
    check(answer)
    assert answer["file_name"] == "call.wav"
    assert answer["fields"] == [["language", "en"], ["prompt", "Zürich"]]
    path = Path(answer["path"])
    assert path.name == "audio"
    assert [entry.name for entry in path.parent.iterdir()] == ["audio"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_chunked_bodies_arrive(server: UploadServer) -> None:
    generator = random.Random(7)

    def pieces() -> Iterator[bytes]:
        at = 0
        while at < len(BODY):
            size = generator.choice([1, 2, 3, 1000, 70_000])
            yield BODY[at : at + size]
            at += size

    check(post(server, pieces()).json())


def test_a_body_arrives_byte_by_byte(server: UploadServer) -> None:
    body = form(file_part(AUDIO[:300]), field_part("sync", "yes"))
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at, byte in enumerate(head(len(body)) + body):
            connection.send(bytes([byte]))
            if at % 50 == 0:
                threading.Event().wait(0.001)
        status, answer = read_answer(connection)
    assert status == 200
    check(answer, AUDIO[:300])
    assert answer["fields"] == [["sync", "yes"]]


def test_uploads_of_several_clients_do_not_mix(server: UploadServer) -> None:
    audios = [random.Random(seed).randbytes(300_000) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda audio: post(server, form(file_part(audio))).json(), audios))
    for audio, answer in zip(audios, answers, strict=True):
        check(answer, audio)
    assert len({answer["path"] for answer in answers}) == 6


def test_a_client_that_expects_100_continue_gets_it(server: UploadServer) -> None:
    with server.connect() as connection:
        connection.sendall(head(len(BODY), "Expect: 100-continue"))
        told = b""
        while not told.endswith(b"\r\n\r\n"):
            told += connection.recv(1)
        assert told.startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        status, answer = read_answer(connection)
    assert status == 200
    check(answer)


def test_uploads_over_http_2(server: UploadServer) -> None:
    with httpx.Client(http1=False, http2=True, timeout=PATIENCE_SECONDS) as client:

        def send(path: str, size: int) -> httpx.Response:
            response = client.post(server.url + path, files={"file": ("é.wav", (AUDIO * 20)[:size])}, data={"a": "b"})
            assert response.http_version == "HTTP/2"
            return response

        for _ in range(2):
            answer = send("/upload", MAX_FILE_SIZE).json()
            check(answer, (AUDIO * 2)[:MAX_FILE_SIZE])
            assert answer["file_name"] == "é.wav"
            check_problem(send("/upload", MAX_FILE_SIZE + 1), 413, "file_too_large")
            check_problem(send("/upload", 3_000_000), 413, "file_too_large")
            check_problem(send("/refuse", 3_000_000), 401, "unauthorized")


def test_the_fingerprint_is_that_of_file_and_fields(server: UploadServer) -> None:
    def fingerprint(*parts: bytes) -> str:
        return str(post(server, form(*parts)).json()["fingerprint"])

    a, b, file = field_part("a", "1"), field_part("b", "2"), file_part(b"RIFF")
    same = fingerprint(a, file, b)
    assert fingerprint(file, b, a) == same
    assert fingerprint(a, file_part(b"RIFF", b'filename="other.wav"'), b) == same
    others = [(a, file), (a, file_part(b"RIFF1"), b), (field_part("a", "12"), file, field_part("b", ""))]
    others += [(field_part("a1", ""), file, b), (a, a, file, b), (a, field_part("a", "2"), file, b)]
    others += [(field_part("a", "2"), a, file, b)]
    fingerprints = [fingerprint(*parts) for parts in others]
    assert len({same, *fingerprints}) == len(others) + 1


# --- one connection for several ---


def test_a_connection_serves_on_after_a_success_and_after_errors(server: UploadServer) -> None:
    bodies = [
        (BODY, 200),
        (form(field_part("language", "en")), 400),
        (BODY, 200),
        (b"--" + BODY, 400),
        (form(file_part(bytes(MAX_FILE_SIZE + 1))), 413),
        (form(file_part(bytes(10 * MAX_FILE_SIZE))), 413),
        (form(*[field_part("a", "b")] * 5000, file_part(AUDIO)), 400),
        (BODY, 200),
    ]
    with server.connect() as connection:
        for body, expected in bodies:
            connection.sendall(head(len(body)) + body)
            status, answer = read_answer(connection)
            assert status == expected, answer
        connection.sendall(head(len(BODY), path="/refuse") + BODY)
        assert read_answer(connection)[0] == 401
        connection.sendall(head(len(BODY)) + BODY)
        check(read_answer(connection)[1])


# --- what is refused ---


def test_five_thousand_fields_are_refused(server: UploadServer) -> None:
    response = post(server, form(file_part(AUDIO), *[field_part(f"field{number}", "x") for number in range(5000)]))
    assert "100 fields" in check_problem(response, 400, "invalid_form")


def test_a_body_that_is_no_form_is_refused(server: UploadServer) -> None:
    for kind in ("application/json", "multipart/form-data", "text/plain"):
        check_problem(post(server, b"{}", **{"Content-Type": kind}), 400, "not_multipart")


@pytest.mark.parametrize("size", [MAX_FILE_SIZE + 1, 2 * MAX_FILE_SIZE, 30_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_all_of_a_too_large_file_gets_413(server: UploadServer, size: int, chunked: bool) -> None:
    body = form(file_part(bytes(size)))
    response = post(server, iter([body[:100_000], body[100_000:]]) if chunked else body)
    detail = check_problem(response, 413, "file_too_large")
    stated, _, rest = detail.removeprefix("File too large: ").partition(" bytes exceeds limit of ")
    assert MAX_FILE_SIZE < int(stated) <= len(body)
    assert rest == f"{MAX_FILE_SIZE} bytes"


def test_a_file_of_just_the_size_is_taken(server: UploadServer) -> None:
    check(post(server, form(file_part(bytes(MAX_FILE_SIZE)))).json(), bytes(MAX_FILE_SIZE))


def test_a_refusal_does_not_wait_for_the_rest_of_the_body(server: UploadServer) -> None:
    """The length alone, then the file's beginning: the answer is there, whole, before the rest was sent."""
    start = b"--%s\r\n%s" % (BOUNDARY.encode(), file_part(bytes(2 * MAX_FILE_SIZE)))
    for request in (
        head(1 << 40),
        head(1 << 40) + start,
        head(3 * MAX_FILE_SIZE) + start,
        head(None) + b"%x\r\n%s\r\n" % (len(start), start),
    ):
        with server.connect() as connection:
            connection.sendall(request)
            status, answer = read_answer(connection)
            assert (status, answer["code"]) == (413, "file_too_large")
    until(lambda: len(server.ended) == server.started)


def send_for_ever(connection: socket.socket, piece: bytes) -> None:
    while True:
        connection.sendall(piece)


def test_a_client_that_sends_without_end_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused requests leave neither tasks nor files."""
    monkeypatch.setattr(accepting, "CHECK_SECONDS", 0.02)
    with serving(tmp_path / "x", linger={"max_bytes": 1 << 20}, keep_alive_seconds=0.2, linger_seconds=0.2) as server:
        for path in ("/upload", "/refuse", "/crash"):
            for length in (1 << 40, None):
                with server.connect() as connection:
                    connection.sendall(head(length, path=path))
                    piece = b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16)) if length is None else bytes(1 << 16)
                    with pytest.raises((ConnectionResetError, BrokenPipeError)):
                        send_for_ever(connection, piece)
        until(lambda: not server.connections())
        assert server.files == []


def test_a_crash_before_the_body_was_read_is_an_answer_too(server: UploadServer) -> None:
    assert post(server, form(file_part(bytes(20_000_000))), "/crash").status_code == 500


# --- slow senders ---


def test_a_sender_that_falls_silent_is_408(tmp_path: Path) -> None:
    with serving(tmp_path / "x", timeout_seconds=0.5) as server:
        for sent in (0, 20, 300, 400_000):
            with server.connect() as connection:
                connection.sendall(head(len(BODY)) + BODY[:sent])
                status, answer = read_answer(connection)
                assert (status, answer["code"]) == (408, "slow_sender")
                assert "0.5 seconds" in answer["detail"]
                assert connection.recv(1) == b""
            assert server.files == []


Script = list[tuple[float, Message]]


def piece(data: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


def play(directory: Path, script: Script, pool: Executor | None = None) -> IncomingFile:
    """Receive what comes after so many seconds each, all at once."""
    content_type = f"multipart/form-data; boundary={BOUNDARY}".encode()
    messages = iter(script)

    async def receive() -> Message:
        after, message = next(messages)
        await asyncio.sleep(after)
        return message

    async def run() -> IncomingFile:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]}
        bounds = Limits(max_file_size=MAX_FILE_SIZE, pace=PaceRules(480))
        form = IncomingForm(bounds, lambda: directory)
        await receive_form(Request(scope, receive), form, pool or Inline())
        return form.files[0]

    return run_at_once(run())


def test_a_sender_may_take_its_time_as_long_as_it_sends(tmp_path: Path) -> None:
    body = form(file_part(AUDIO[:50]))
    script = [(479.0, piece(body[at : at + 1])) for at in range(len(body))]
    assert play(tmp_path / "x", [*script, (479.0, piece(b"", more=False))]).size == 50
    silent = tmp_path / "silent"
    with pytest.raises(Problem, match="480 seconds") as raised:
        play(silent, [*script[:150], (481.0, piece(body[150:], more=False))])
    assert raised.value.status == 408
    assert not silent.exists()


class Slow(Executor):
    """Works for a second on everything, on a clock that runs at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        asyncio.get_running_loop().call_later(1.0, work)
        return future


@pytest.mark.parametrize("cut", [100, len(BODY) // 2, len(BODY) - 1])
def test_the_end_may_come_while_the_disk_is_slow(tmp_path: Path, cut: int) -> None:
    """The end of the body is not mistaken for the end of the piece that is being parsed."""
    for end in ([(0.1, piece(BODY[cut:], more=False))], [(0.1, piece(BODY[cut:])), (0.1, piece(b"", more=False))]):
        upload = play(tmp_path / str(len(end)), [(0.0, piece(BODY[:cut])), *end], Slow())
        assert upload.size == len(AUDIO)
    with pytest.raises(ClientDisconnect):
        play(tmp_path / "gone", [(0.0, piece(BODY[:cut])), (0.1, {"type": "http.disconnect"})], Slow())


# --- what breaks off ---


def test_dropped_connections_leave_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "x", keep_alive_seconds=0.5) as server:
        start = head(len(BODY))
        cuts = sorted({1, 30, 100, 200, 300, len(BODY) - 1, *random.Random(5).sample(range(len(BODY)), 30)})
        for number, cut in enumerate(cuts):
            connection = server.connect()
            connection.sendall(start + BODY[:cut])
            if number % 2:
                # Closed with a reset, which may overtake what was sent.
                server.until_started(number + 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        until(lambda: server.started == len(server.ended) == len(cuts))
        assert set(server.ended) == {"ClientDisconnect"}
        assert server.files == []
        check(post(server).json())


def test_a_request_that_is_canceled_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    scope = {
        "type": "http",
        "method": "POST",
        "headers": [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())],
    }

    async def run(pool: ThreadPoolExecutor) -> None:
        waiting = asyncio.Event()
        messages = iter([BODY[:300_000], BODY[300_000:600_000]])

        async def receive() -> Message:
            try:
                return piece(next(messages))
            except StopIteration:
                waiting.set()
                await asyncio.Event().wait()
                raise

        limits = Limits(max_file_size=MAX_FILE_SIZE, pace=PaceRules(PATIENCE_SECONDS))
        form = IncomingForm(limits, lambda: directory)
        task = asyncio.create_task(receive_form(Request(scope, receive), form, pool))
        await waiting.wait()
        await asyncio.to_thread(until, lambda: (directory / "audio.part").exists())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(run(pool))
    assert not directory.exists()


def test_a_client_that_goes_at_the_last_byte_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ClientDisconnect):
        play(tmp_path / "x", [(0.0, piece(BODY)), (0.0, {"type": "http.disconnect"})])
    assert list(tmp_path.iterdir()) == []


# --- the disk ---


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="no space is left"):
        play(tmp_path / "x", [(0.0, piece(BODY, more=False))])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="Not a directory") as raised:
        play(tmp_path / "file" / "x", [(0.0, piece(BODY, more=False))])
    assert str(tmp_path) not in str(raised.value)


# --- memory ---


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_for_any_size(tmp_path: Path) -> None:
    program = Path(__file__).with_name("upload_server.py")
    command = [sys.executable, str(program), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    size = 300 << 20
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())

            def resident() -> int:
                status = Path(f"/proc/{process.pid}/status").read_text()
                return int(status.partition("VmRSS:")[2].split()[0]) << 10

            def upload(size: int) -> tuple[int, int]:
                """Bytes that arrived, and the most memory that the server had meanwhile."""
                most = 0

                def body() -> Iterator[bytes]:
                    nonlocal most
                    yield form(file_part(b""))[: -len(form()) - 2]
                    for number in range(size >> 20):
                        yield number.to_bytes(4, "big") * (1 << 18)
                        most = max(most, resident())
                    yield b"\r\n" + form()

                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
                with contextlib.closing(connection):
                    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
                    connection.request("POST", "/upload", body(), headers, encode_chunked=True)
                    return json.loads(connection.getresponse().read())["size"], max(most, resident())

            upload(1 << 20)
            idle = resident()
            arrived, most = upload(size)
            assert arrived == size
            assert most - idle <= MAX_GROWTH
        finally:
            process.kill()
