"""Requests put together by hand, for what no client library would send."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import httpx

__all__ = ["BOUNDARY", "answer", "file_head", "form", "head", "part_head", "streamed", "tail"]

BOUNDARY = "b0undary"


def form(audio: bytes, fields: dict[str, str] | None = None) -> bytes:
    """A form with a file; by default the fields of a job without extras."""
    given = {"language": "en", "align": "false", "diarize": "false"} if fields is None else fields
    parts = [part_head(name) + value.encode() + b"\r\n" for name, value in given.items()]
    return b"".join(parts) + file_head() + audio + tail()


def part_head(name: str, extra: str = "") -> bytes:
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode()


def file_head() -> bytes:
    return part_head("file", '; filename="clip.wav"')


def tail() -> bytes:
    return f"\r\n--{BOUNDARY}--\r\n".encode()


def head(key: str, *lines: str, target: str = "/transcribe") -> bytes:
    """The head of an upload."""
    all_lines = [
        f"POST {target} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {key}",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        *lines,
    ]
    return "\r\n".join([*all_lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one response."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, response.read()


def streamed(client: httpx.Client, pieces: Iterator[bytes], **headers: str) -> httpx.Response:
    return client.post(
        "/transcribe",
        content=pieces,
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **headers},
    )
