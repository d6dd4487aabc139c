"""Random requests: no response is a 500, every refusal is a JSON problem, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.harness import RunningServer, problem, transcribed

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
# There are fewer examples of uploads, since an upload takes longer than a refused request.
UPLOADS = settings(max_examples=50, suppress_health_check=CHECKS)
REQUESTS = settings(max_examples=150, suppress_health_check=CHECKS)
BOUNDARY = "fuzzy"

FIELDS = (
    *("language", "model", "task", "diarize", "num_speakers", "min_speakers", "max_speakers", "prompt", "hotwords"),
    *("align", "temperature", "beam_size", "vad_onset", "vad_offset", "output_format", "response_format", "sync"),
    *("max_line_width", "max_line_count", "highlight_words", "karaoke", "subtitle_preset", "speakers"),
    *("min_duration", "max_duration", "min_gap", "max_characters_per_second"),
    *("keep_result", "hf_token", "device", "device_index", "metadata", "url", "file"),
    *("known_speaker_names[]", "known_speaker_references[]", "known_speaker_references"),
)
# Values near the bounds of some field.
EDGES = (
    *("", " ", "0", "1", "-1", "true", "off", "null", "None", "nan", "-inf", "1e400", "0x10", "1_000", "٣", "９"),
    *("en", "auto", "fr-FR", "base", "tiny.en", "large-v1", "../../base", "translate", "srt", "json", "cpu", "cuda:1"),
    *("0.5", "1.0000001", "32", "33", "100", "101", "9" * 5000, "a" * 20_000, "\0", "\x7f", "\r\n\r\n", "%00", "{}"),
    *("'; DROP TABLE jobs; --", "<script>", "\u202e", "\ufeff", "😀" * 50, "--fuzzy--", "\r\n--fuzzy--\r\n", "${HOME}"),
)
values = st.sampled_from(EDGES) | st.text(max_size=40)
names = st.sampled_from(FIELDS) | st.text(max_size=20)
uploads = st.sampled_from(["/transcribe", "/transcriptions", "/detect-language"])
forms = st.lists(st.tuples(names, values.map(str.encode) | st.binary(max_size=40)), max_size=8)
paths = st.sampled_from(
    [
        *(
            "/",
            "/transcribe",
            "/transcription",
            "/transcriptions",
            "/detect-language",
            "/status",
            "/livez",
            "/readyz",
            "/health",
            "/nothing",
        ),
        f"/transcription/{uuid.uuid4()}",
        f"/transcription/{uuid.uuid4()}/result",
        *(
            "/transcription/x",
            "/transcription/x/result",
            "/transcription//result",
            "/transcribe/",
            "//status",
            "/%2e%2e/",
        ),
    ]
) | st.text(max_size=30).map(lambda text: f"/{text}")
queries = st.dictionaries(
    st.sampled_from(["wait", "format", "force", "status", "limit", "after"]) | st.text(max_size=8), values, max_size=4
)
methods = st.sampled_from(
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get", "X" * 50]
)
header_names = st.sampled_from(
    [
        *("Authorization", "Idempotency-Key", "X-Request-ID", "Content-Type", "Accept", "Accept-Encoding", "Origin"),
        *("Access-Control-Request-Method", "Range", "If-None-Match", "Cookie", "Referer", "X-Forwarded-For", "Upgrade"),
        *("Forwarded", "X-Forwarded-Proto", "Content-Encoding", "Host", "Expect", "Connection", "Via", "X-HTTP-Method"),
    ]
) | st.from_regex(r"[A-Za-z0-9-]{1,20}", fullmatch=True)
header_values = (st.sampled_from(EDGES) | st.text(max_size=60)).map(
    lambda text: text.encode().translate(None, b"\0\r\n")[:4000]
)
headers = st.dictionaries(header_names, header_values, max_size=4)


@pytest.fixture(scope="module", autouse=True)
def _the_server_goes_on(server: RunningServer, hello: bytes) -> Iterator[None]:
    with server.client() as client:
        yield
        assert server.running
        assert client.get("/readyz").status_code == 200
        assert transcribed(client, hello)["text"].strip() == "Hello"
    assert "Traceback" not in server.log


def check(response: httpx.Response) -> None:
    """Check the properties of every response, and cancel the job if the request made one."""
    assert response.status_code != 500, response.text
    if response.status_code < 400:
        assert response.status_code < 300 or response.status_code in (301, 304, 307, 308)
    elif response.request.method != "HEAD":
        problem(response, response.status_code)
    else:
        assert response.content == b""


@given(path=uploads, fields=forms, file=st.booleans(), file_first=st.booleans())
@UPLOADS
def test_any_form(
    server: RunningServer, hello: bytes, path: str, fields: list[tuple[str, bytes]], file: bool, file_first: bool
) -> None:
    parts = [
        b"--fuzzy\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n" % (json.dumps(name).encode(), value)
        for name, value in fields
    ]
    sound = b'--fuzzy\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + hello + b"\r\n"
    if file:
        parts.insert(0 if file_first else len(parts), sound)
    with server.client(server.key("tests-fuzz")) as client:
        response = client.post(
            path,
            content=b"".join(parts) + b"--fuzzy--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=fuzzy"},
        )
        check(response)
        if response.status_code == 202:
            for made in response.json().get("jobs", [response.json()]):
                if "status_url" in made:
                    check(client.delete(made["status_url"], params={"force": "true"}))


@given(name=st.sampled_from(FIELDS), value=values)
@UPLOADS
def test_any_value_of_any_field(server: RunningServer, hello: bytes, name: str, value: str) -> None:
    fields = {"language": "en", "diarize": "no", "align": "no", name: value}
    with server.client(server.key("tests-fuzz")) as client:
        response = client.post("/transcribe", data=fields, files={"file": ("a.wav", hello)})
        check(response)
        if response.status_code == 202:
            check(client.delete(response.headers["Location"], params={"force": "true"}))


@given(method=methods, path=paths, query=queries, given_headers=headers, content=st.binary(max_size=60))
@REQUESTS
def test_any_request(
    server: RunningServer,
    method: str,
    path: str,
    query: dict[str, str],
    given_headers: dict[str, bytes],
    content: bytes,
) -> None:
    query.pop("wait", None) if query.get("wait", "").strip() in ("1", "32") else None
    with server.client(server.key("tests-fuzz")) as client:
        lines = {name.encode(): value for name, value in given_headers.items()}
        try:
            request = client.build_request(method, httpx.URL(path=path), params=query, headers=lines, content=content)
        except (httpx.InvalidURL, ValueError):
            return
        # The server is not at fault when the client refuses to send a request or does not expect a response.
        with contextlib.suppress(httpx.LocalProtocolError, httpx.RemoteProtocolError):
            response = client.send(request)
            if response.status_code != 400 or response.content:
                check(response)


garbage = st.binary(max_size=300) | st.builds(
    lambda start, lines, rest: start + b"\r\n".join(lines) + rest,
    st.sampled_from(
        [
            *(
                b"GET / HTTP/1.1\r\n",
                b"POST /transcribe HTTP/1.1\r\n",
                b"GET /status HTTP/1.0\r\n",
                b"GET  / HTTP/1.1\r\n",
            ),
            *(
                b"GET / HTTP/9.9\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01",
                b"\r\n\r\nGET /\r\n",
            ),
            b"CONNECT example.org:443 HTTP/1.1\r\n",
            b"GET http://example.org/ HTTP/1.1\r\n",
        ]
    ),
    st.lists(
        st.sampled_from(
            [
                *(
                    b"Host: x",
                    b"Host: y",
                    b"Content-Length: 5",
                    b"Content-Length: -1",
                    b"Content-Length: 99999999999999999",
                ),
                *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Upgrade: h2c", b"Upgrade: websocket"),
                *(b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAAA", b"Expect: 100-continue", b" folded"),
                *(b"Sec-WebSocket-Key: eA==", b"Sec-WebSocket-Version: 13", b"no colon", b"X: " + b"y" * 70_000),
            ]
        )
        | st.binary(max_size=30),
        max_size=6,
    ),
    st.sampled_from([b"\r\n\r\n", b"", b"\r\n\r\nffffffff\r\n", b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", b"\r\n\r\nzz\r\n"]),
)


@given(sent=garbage)
@REQUESTS
def test_any_bytes(server: RunningServer, sent: bytes) -> None:
    received = b""
    with server.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        # The server may have closed the connection already.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            received += piece
    if received.startswith(b"HTTP/1."):
        head, _, body = received.partition(b"\r\n\r\n")
        assert b" 500 " not in head.partition(b"\r\n")[0]
        assert b"Traceback" not in body
        if int(head.split()[1]) >= 400 and body:
            assert b"json" in head.lower()
