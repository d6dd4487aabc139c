"""``100 Continue`` is sent when the server reads the body, and what is refused before that is not asked for."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from server.harness import RunningServer, finish
from server.raw_http import answer
from server.upload_server import PATIENCE_SECONDS


def first_answer(
    server: RunningServer, line: str, *headers: str, key: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """The first response to a request with ``Expect: 100-continue``: 100, or the final one."""
    lines = [f"{line} HTTP/1.1", "Host: x", f"Authorization: Bearer {key or server.user_key}", *headers]
    with server.connect() as connection:
        connection.sendall("\r\n".join([*lines, "Expect: 100-continue", "", ""]).encode())
        if connection.recv(12, socket.MSG_PEEK).endswith(b"100"):
            return 100, {}, b""
        return answer(connection)


LARGE = "Content-Length: 10000000"
AS_AUDIO = "Content-Type: audio/wav"


@pytest.mark.parametrize(
    ("line", "headers", "key", "status"),
    [
        ("POST /transcribe", [LARGE, AS_AUDIO], "wrong", 401),
        ("POST /v1/audio/transcriptions", [LARGE, AS_AUDIO], "wrong", 401),
        ("POST /nowhere", [LARGE, AS_AUDIO], None, 404),
        ("DELETE /transcribe", [LARGE, AS_AUDIO], None, 405),
        ("POST /transcribe", ["Content-Length: 99999999999", AS_AUDIO], None, 413),
        ("POST /transcribe", [LARGE, AS_AUDIO, "Content-Encoding: gzip"], None, 415),
        ("POST /transcribe", [LARGE, "Content-Type: application/json"], None, 400),
        ("POST /transcribe", ["Transfer-Encoding: chunked", AS_AUDIO, "Idempotency-Key: é"], None, 400),
        ("PUT /transcription/none/corrections", [LARGE, "Content-Type: application/json"], None, 404),
    ],
)
def test_a_refused_request_gets_no_100_continue(
    server: RunningServer, line: str, headers: list[str], key: str | None, status: int
) -> None:
    told, answered, body = first_answer(server, line, *headers, key=key)
    assert (told, answered["connection"]) == (status, "close"), body
    assert json.loads(body)


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("POST /transcribe", [LARGE, AS_AUDIO]),
        ("POST /transcribe", ["Transfer-Encoding: chunked", AS_AUDIO]),
        ("POST /transcriptions", [LARGE, "Content-Type: multipart/form-data; boundary=x"]),
    ],
)
def test_an_accepted_request_gets_100_continue(server: RunningServer, line: str, headers: list[str]) -> None:
    assert first_answer(server, line, *headers)[0] == 100


def test_a_client_that_does_not_wait_for_100_continue_is_served(server: RunningServer, hello: bytes) -> None:
    """The client sends ``Expect: 100-continue`` and the body without a wait, twice on one connection."""
    lines = [f"POST /transcribe?language=en HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.user_key}"]
    lines += [AS_AUDIO, f"Content-Length: {len(hello)}", "Expect: 100-continue", "", ""]
    with server.connect() as connection, server.client() as client:
        for _ in range(2):
            connection.sendall("\r\n".join(lines).encode() + hello)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 202
            assert finish(client, json.loads(response.read())["job_id"])["status"] == "Completed"


def test_curl_sends_nothing_to_a_server_that_refuses(server: RunningServer, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    path = tmp_path / "large.wav"
    path.write_bytes(bytes(3 << 20))
    command = ["curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}"]
    command += ["-F", f"file=@{path}", "-H", "Authorization: Bearer wrong", "-H", "Expect: 100-continue"]
    # Seconds that curl waits for 100 Continue before it sends the body.
    command += ["--expect100-timeout", "60", f"{server.url}/transcribe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.stdout == "401 0", done.stderr
