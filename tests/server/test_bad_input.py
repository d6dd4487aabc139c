"""Bad input by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.harness import RunningServer, finish, job_of, post, problem, submit, transcribed
from server.raw_http import BOUNDARY, answer, file_head, form, head, part_head, streamed, tail

pytestmark = pytest.mark.usefixtures("unharmed")

MEGABYTE = 1 << 20


# --- files ---


def test_an_empty_file(client: httpx.Client) -> None:
    body = problem(post(client, b""), 415, "invalid_audio")
    assert "empty" in body["detail"]


def test_text_that_calls_itself_wav(client: httpx.Client) -> None:
    body = problem(post(client, b"Once upon a time there was a file.\n" * 100, file_name="speech.wav"), 415)
    assert "text" in body["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\xff\xff\xff\xffWAVE",
        b"RIFF" + bytes(5000),
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
        b"OggS" + bytes(300),
        b"\x1a\x45\xdf\xa3" * 50,
        b"fLaC",
        b"\x00\x00\x00\x18ftypM4A " + bytes(1000),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(2000),
        b"#!/bin/sh\nrm -rf /\n",
        b"#EXTM3U\n/etc/passwd\n",
        b"\0",
        bytes(100_000),
    ],
)
def test_a_file_that_only_begins_like_audio_is_refused(client: httpx.Client, content: bytes) -> None:
    problem(post(client, content, file_name="a.wav"), 415, "invalid_audio")


def test_an_mp3_that_is_cut_short(client: httpx.Client, hello_mp3: bytes) -> None:
    """The part that exists is transcribed."""
    result = transcribed(client, hello_mp3[: len(hello_mp3) // 2 + 77], file_name="cut.mp3")
    assert "hello" in result["text"].lower()
    assert 1.0 < result["duration"] < 2.0


def test_a_file_of_600_megabytes_with_its_length(server: RunningServer, client: httpx.Client) -> None:
    """The stated length suffices: the response comes before the file, also to clients that send the file anyway."""

    def pieces() -> Iterator[bytes]:
        yield file_head()
        for _ in range(600):
            yield bytes(MEGABYTE)
        yield tail()

    length = len(file_head()) + 600 * MEGABYTE + len(tail())
    with server.connect() as connection:
        connection.sendall(head(server.user_key, f"Content-Length: {length}"))
        status, _, content = answer(connection)
    assert status == 413
    response = streamed(client, pieces(), **{"Content-Length": str(length)})
    body = problem(response, 413, "file_too_large")
    assert {**body, "request_id": ""} == {**json.loads(content), "request_id": ""}
    assert body["error"].startswith("File too large: ")
    assert body["error"].endswith(" bytes exceeds limit of 536870912 bytes")
    assert not list(server.uploads_dir.glob("*/*"))


def test_a_file_of_600_megabytes_without_its_length(server: RunningServer, client: httpx.Client) -> None:
    server.wait_ready(settled=True)  # models that are loaded meanwhile take memory as well
    before, most = resident_bytes(server), 0

    def pieces() -> Iterator[bytes]:
        nonlocal most
        yield file_head()
        for number in range(600):
            if number % 20 == 0:
                most = max(most, resident_bytes(server))
            yield bytes(MEGABYTE)
        yield tail()

    body = problem(streamed(client, pieces()), 413, "file_too_large")
    assert "exceeds limit of 536870912 bytes" in body["error"]
    # Far less than the file. The exact amount depends on the allocator.
    assert most - before < 100 * MEGABYTE
    assert not list(server.uploads_dir.glob("*/*"))


def resident_bytes(server: RunningServer) -> int:
    status = Path(f"/proc/{server.pid}/status")
    if not status.exists():
        return 0
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def test_a_header_of_ten_hours_on_a_second_of_sound(client: httpx.Client, hello: bytes) -> None:
    rate = struct.unpack_from("<I", hello, 28)[0]
    at = hello.index(b"data") + 4
    long = bytearray(hello)
    struct.pack_into("<I", long, at, 36000 * rate)
    struct.pack_into("<I", long, 4, 36000 * rate + at - 4)
    result = transcribed(client, bytes(long))
    assert result["text"].strip() == "Hello"
    assert result["duration"] == pytest.approx(1.0, abs=0.01)
    assert any("36000" in warning for warning in result["warnings"])


# --- forms ---


def test_5000_fields(client: httpx.Client, hello: bytes) -> None:
    fields = {f"field{number}": "x" for number in range(5000)}
    body = problem(client.post("/transcribe", data=fields, files={"file": ("a.wav", hello)}), 400, "invalid_form")
    assert "fields" in body["detail"]


def test_a_field_of_20_megabytes(client: httpx.Client, hello: bytes) -> None:
    problem(post(client, hello, prompt="x" * (20 * MEGABYTE)), 400)


def test_a_part_with_endless_headers(client: httpx.Client, hello: bytes) -> None:
    body = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=a\r\n".encode()
    body += b"".join(b"X-Header-%d: %s\r\n" % (number, b"y" * 1000) for number in range(200)) + b"\r\n" + hello + tail()
    problem(streamed(client, iter([body])), 400, "invalid_form")


def test_a_file_name_of_10_kilobytes_that_climbs(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    name = "../" * 3000 + "tmp/" + "n" * 1000 + ".wav"
    job_id = submit(client, hello, file_name=name)
    assert finish(client, job_id)["status"] == "Completed"
    assert not list(server.directory.rglob("*nnnn*"))
    assert "nnnn" not in server.log


@pytest.mark.parametrize(
    "name",
    ["../../../etc/cron.d/x", "/etc/passwd", "C:\\windows\\x.wav", "a\0b.wav", "x\r\ny: z", "..", "", "🎙.wav", "%s%n"],
)
def test_file_names_are_no_paths(server: RunningServer, client: httpx.Client, hello: bytes, name: str) -> None:
    before = sorted(path.name for path in server.directory.iterdir())
    response = post(client, hello, file_name=name)
    assert response.status_code in (202, 400), response.text
    if response.status_code == 202:
        assert finish(client, job_of(response))["status"] == "Completed"
    assert sorted(path.name for path in server.directory.iterdir()) == before


@pytest.mark.parametrize("field", ["prompt", "hotwords", "language", "hf_token", "unknown"])
def test_a_field_that_is_not_utf8(client: httpx.Client, hello: bytes, field: str) -> None:
    body = part_head(field) + b"caf\xe9 \xff\xfe" + b"\r\n" + file_head() + hello + tail()
    detail = problem(streamed(client, iter([body])), 400, "invalid_field")["detail"]
    assert field in detail
    assert "utf-8" in detail.lower()


def test_a_field_name_that_is_not_utf8(client: httpx.Client, hello: bytes) -> None:
    body = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=".encode() + b'"caf\xe9"\r\n\r\nx\r\n'
    response = streamed(client, iter([body + form(hello)]))
    assert response.status_code in (202, 400), response.text
    if response.status_code == 202:
        finish(client, job_of(response))
    else:
        problem(response, 400)


def test_a_negative_number_of_speakers(client: httpx.Client, hello: bytes) -> None:
    detail = problem(post(client, hello, num_speakers="-1"), 400, "invalid_field")["detail"]
    assert "num_speakers" in detail
    assert "from 1 to 100" in detail
