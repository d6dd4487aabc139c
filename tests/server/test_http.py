"""Rare uses of HTTP: connections that are reused or broken off, HTTP/2, TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h2.connection
import httpx
import pytest
import trustme

from server.conftest import Start
from server.harness import RunningServer, finish, free_port, job_of, post, problem, submit, until
from server.raw_http import answer, form, head, streamed

pytestmark = pytest.mark.usefixtures("unharmed")


# --- HTTP/1.1 ---


def test_a_second_upload_on_the_same_connection(server: RunningServer, hello: bytes) -> None:
    content = form(hello)
    request = head(server.user_key, f"Content-Length: {len(content)}") + content
    with server.connect() as connection, server.client() as client:
        for _ in range(3):
            connection.sendall(request)
            status, _, body = answer(connection)
            assert status == 202, body
            finish(client, json.loads(body)["job_id"])


def test_an_upload_after_one_that_was_refused(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    """The next request uses the same connection, unless the server said that it closes it."""
    for content in (form(b"no audio at all " * 1000), form(hello, {"beam_size": "0"}), form(hello, {"model": "none"})):
        with server.connect() as connection:
            connection.sendall(head(server.user_key, f"Content-Length: {len(content)}") + content)
            status, headers, body = answer(connection)
            assert status in (400, 415, 422), body
            if headers.get("connection", "").lower() == "close":
                assert connection.recv(1) == b""
                continue
            again = form(hello)
            connection.sendall(head(server.user_key, f"Content-Length: {len(again)}") + again)
            status, _, body = answer(connection)
            assert status == 202, body
            finish(client, json.loads(body)["job_id"])


def test_two_requests_in_one_breath(server: RunningServer) -> None:
    request = f"GET /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.user_key}\r\n\r\n".encode()
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with server.connect() as connection:
        connection.sendall(request + last)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "lines", [("Transfer-Encoding: chunked", "Content-Length: 5"), ("content-length: 5", "TRANSFER-ENCODING: chunked")]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_body_with_two_lengths_is_malformed_and_ends_the_connection(
    server: RunningServer, method: str, lines: tuple[str, ...]
) -> None:
    """Behind a proxy that believes the other length, the second request would be another client's (RFC 9112, 6.1)."""
    target = "/livez" if method == "GET" else "/transcribe"
    first = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()
    with server.connect() as connection:
        connection.sendall(first + b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"malformed_request" in received
    assert received.count(b"\r\n\r\n") == 1, "nothing behind the body is answered"


def test_expect_100_continue(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    content = form(hello)
    with server.connect() as connection:
        connection.sendall(head(server.user_key, f"Content-Length: {len(content)}", "Expect: 100-continue"))
        interim = b""
        while not interim.endswith(b"\r\n\r\n"):
            interim += connection.recv(1)
        assert interim.startswith(b"HTTP/1.1 100")
        connection.sendall(content)
        status, _, body = answer(connection)
    assert status == 202, body
    finish(client, json.loads(body)["job_id"])


def test_expect_100_continue_from_one_without_a_key(server: RunningServer, hello: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(head("wrong", "Content-Length: 100000000", "Expect: 100-continue"))
        status, headers, body = answer(connection)
    assert status == 401, "the file need not be sent to learn that it is not wanted"
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 401


def test_chunks_without_a_length(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    """The body comes in pieces of odd sizes, some of which break the boundary."""
    content = form(hello)
    cuts = [0, 1, 2, 17, 60, 61, 300, 5000, len(content) - 31, len(content) - 5, len(content)]
    job_id = job_of(streamed(client, (content[a:b] for a, b in pairwise(cuts))))
    assert finish(client, job_id)["status"] == "Completed"


def test_an_upload_that_comes_byte_by_byte(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    content = form(hello[:6000], {"language": "en", "align": "no", "diarize": "no"})
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head(server.user_key, f"Content-Length: {len(content)}"))
        for at in range(len(content)):
            connection.sendall(content[at : at + 1])
        status, _, body = answer(connection)
    assert status == 202, body
    assert finish(client, json.loads(body)["job_id"])["status"] == "Completed"


def test_a_connection_that_breaks_leaves_nothing(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    jobs = client.get("/transcriptions", params={"limit": 1}).json()["jobs"]
    for sent in (0, 50, 3000, len(hello)):
        content = form(hello * 3)
        with server.connect() as connection:
            connection.sendall(head(server.user_key, f"Content-Length: {len(content)}") + content[:sent])
    finish(client, submit(client, hello))
    assert client.get("/transcriptions", params={"limit": 2}).json()["jobs"][1:] == jobs
    until(lambda: not list(server.uploads_dir.glob("*/*")))


# --- HTTP/2 ---


def test_http2_by_prior_knowledge(server: RunningServer, hello: bytes) -> None:
    with server.client(http1=False, http2=True) as client:
        answer = post(client, hello * 40)
        assert answer.http_version == "HTTP/2"
        assert finish(client, job_of(answer))["status"] == "Completed"
        problem(client.get("/transcription/none"), 404)
        problem(post(client, b"no audio"), 415)


def test_http2_connections_that_break_leave_nothing(server: RunningServer) -> None:
    """Clients that send a request and do not read the response."""
    before = open_sockets(server)
    for _ in range(20):
        client = h2.connection.H2Connection()
        client.initiate_connection()
        wanted = {":method": "GET", ":path": "/status", ":scheme": "http", ":authority": "x"}
        client.send_headers(1, [*wanted.items(), ("authorization", f"Bearer {server.user_key}")], end_stream=True)
        with server.connect() as connection:
            connection.sendall(client.data_to_send())
            connection.shutdown(socket.SHUT_WR)
            # The loop also ends when the server closes the connection.
            while connection.recv(65536):
                pass
    until(lambda: open_sockets(server) <= before + 5)


def open_sockets(server: RunningServer) -> int:
    """How many sockets the server has. It may open other files meanwhile, as each thread does for the database."""
    count = 0
    for file in Path(f"/proc/{server.pid}").glob("fd/*"):
        with contextlib.suppress(OSError):
            count += str(file.readlink()).startswith("socket:")
    return count


@pytest.fixture
def tls(start_server: Start, tmp_path: Path) -> RunningServer:
    """A server with a certificate, and without keys."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    settings = {"WHISPER_TLS_CERT_FILE": chain, "WHISPER_TLS_KEY_FILE": key, "ENABLE_AUTHORIZATION": False}
    return start_server(settings, authority=context)


def test_tls_with_both_versions_of_http_and_a_server_without_keys(tls: RunningServer, hello: bytes) -> None:
    for http2 in (False, True):
        with tls.client(http2=http2) as client:
            answer = post(client, hello)
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert finish(client, job_of(answer))["status"] == "Completed"
            assert client.get("/status").json()["security"] == {"authorization_enabled": False, "role": None}
    with tls.client() as client:
        assert len(client.get("/transcriptions").json()["jobs"]) == 2
        # A web page that the user opens must not reach the server.
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            problem(post(client, hello, headers=headers), 403, "forbidden_origin")
            problem(client.get("/transcriptions", headers=headers), 403, "forbidden_origin")
        assert "Access-Control-Allow-Origin" not in client.get("/status").headers
        assert client.get("/status", headers={"Origin": tls.url}).status_code == 200
    with tls.client(verify=True) as client, pytest.raises(httpx.ConnectError):
        client.get("/livez")
    # A request without TLS gets no response or a refusal.
    with contextlib.suppress(httpx.TransportError), httpx.Client(trust_env=False) as client:
        assert client.get(f"http://127.0.0.1:{tls.port}/livez").status_code >= 400


def test_the_server_listens_only_to_this_machine_when_there_are_no_keys(server: RunningServer, tmp_path: Path) -> None:
    config = tmp_path / "open.conf"
    config.write_text(f'WHISPER_API_HOST = "0.0.0.0"\nWHISPER_API_PORT = {free_port()}\nENABLE_AUTHORIZATION = false\n')
    done = subprocess.run(
        [sys.executable, "-m", "whisper_api", "serve", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "--insecure" in done.stderr
