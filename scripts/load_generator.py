"""The process that generates the load of ``load_server.py``, and shared code: audio, forms, figures."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import time
import uuid
import wave
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

POLL_SECONDS = 1.0
UPLOAD_PAUSE = 0.5
KEY_VARIABLE = "WHISPER_API_KEY"
FIELDS = {"model": "base", "language": "en", "align": "false", "diarize": "false"}
BLOCK = random.Random(0).randbytes(1 << 20)


def authorization() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def form() -> tuple[bytes, bytes, str]:
    """The bytes before and after the audio in a form, and the form's content type."""
    boundary = uuid.uuid4().hex
    fields = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in FIELDS.items()
    )
    head = f'{fields}--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="load.wav"\r\n\r\n'
    return head.encode(), f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def speech(seconds: float) -> bytes:
    """Real speech as a WAV file, repeated up to the length."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    sample = Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"
    file = io.BytesIO()
    with wave.open(str(sample)) as whole, wave.open(file, "wb") as out:
        out.setparams(whole.getparams())
        whole.setpos(6 * whole.getframerate())
        frames = whole.readframes(20 * whole.getframerate())
        wanted = int(seconds * whole.getframerate()) * whole.getsampwidth()
        out.writeframes((frames * (wanted // len(frames) + 1))[:wanted])
    return file.getvalue()


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * value for value in seconds) or [0.0]
    return {
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "max": ordered[-1],
        "count": len(seconds),
    }


def generator(url: str, **work: Any) -> dict[str, Any]:
    """Run :func:`generate` in a child process."""
    command = [sys.executable, __file__, json.dumps({"url": url, **work})]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


async def generate(
    url: str,
    *,
    seconds: float = 0.0,
    pollers: int = 0,
    uploaders: int = 0,
    known: list[str] | None = None,
    large: int = 0,
    audible: bool = True,
) -> dict[str, Any]:
    """Poll and upload for some seconds, or send one large file, and return the number of each response."""
    if hasattr(os, "nice"):
        os.nice(10)
    codes: Counter[str] = Counter()
    latency: list[float] = []
    jobs = list(known or [])
    made: list[str] = []
    begun = time.perf_counter()
    clip = speech(3.0)

    async def poll() -> None:
        async with Connection(url) as connection:
            await asyncio.sleep(random.uniform(0, POLL_SECONDS))
            while time.perf_counter() - begun < seconds:
                asked = time.perf_counter()
                code, _ = await connection.request("GET", f"/transcription/{random.choice(jobs + made)}")
                latency.append(time.perf_counter() - asked)
                codes[code] += 1
                await asyncio.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))

    async def submit(connection: Connection, size: int, pieces: list[bytes]) -> None:
        code, answer = await connection.upload(size, pieces)
        codes[code] += 1
        if code == "202":
            made.append(json.loads(answer)["job_id"])

    async def upload() -> None:
        async with Connection(url) as connection:
            await asyncio.sleep(random.uniform(0, UPLOAD_PAUSE))
            while time.perf_counter() - begun < seconds:
                await submit(connection, len(clip), [clip])
                await asyncio.sleep(UPLOAD_PAUSE * random.uniform(0.5, 1.5))

    async def upload_large() -> None:
        async with Connection(url) as connection:
            size = large * 1_000_000
            header = wave_header(size) if audible else b""
            blocks, rest = divmod(size, len(BLOCK))
            await submit(connection, len(header) + size, [header, *[BLOCK] * blocks, BLOCK[:rest]])

    work = [poll() for _ in range(pollers)] + [upload() for _ in range(uploaders)]
    await asyncio.gather(*work, *([upload_large()] if large else []))
    return {"codes": dict(codes), "latency": summary(latency), "jobs": made, "seconds": time.perf_counter() - begun}


def wave_header(size: int) -> bytes:
    """The WAV header of a number of bytes of sound."""
    rate, width = 16_000, 2
    described = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * width, width, 8 * width)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + described + struct.pack("<4sI", b"data", size)


class Connection:
    """The least part of HTTP/1.1, so that the load generator is not the slow part."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *ignored: object) -> None:
        self._close()

    async def request(self, method: str, path: str) -> tuple[str, bytes]:
        """Send a request, and return the response's code in words and its body."""
        return await self._exchange(self._head(method, path, {}), [])

    async def upload(self, size: int, pieces: list[bytes]) -> tuple[str, bytes]:
        """Send audio as a client that can try again."""
        before, after, content_type = form()
        headers = {
            "Content-Type": content_type,
            "Content-Length": str(len(before) + size + len(after)),
            "Idempotency-Key": str(uuid.uuid4()),
        }
        return await self._exchange(self._head("POST", "/transcribe", headers), [before, *pieces, after])

    def _head(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        every = {"Host": self._parts.netloc, **authorization(), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in every.items())
        return f"{method} {self._parts.path}{path} HTTP/1.1\r\n{lines}\r\n".encode()

    async def _exchange(self, head: bytes, pieces: list[bytes]) -> tuple[str, bytes]:
        try:
            if self._streams is None:
                secure = self._parts.scheme == "https"
                port = self._parts.port or (443 if secure else 80)
                self._streams = await asyncio.open_connection(self._parts.hostname, port, ssl=secure or None)
            reader, writer = self._streams
            writer.write(head)
            # A server that refuses may stop reading, but its response can still be read.
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        except (OSError, asyncio.IncompleteReadError):
            self._close()
            return "broken", b""
        if headers.get("connection", "").lower() == "close":
            self._close()
        code = lines[0].split()[1]
        return f"{code} Retry-After" if code == "503" and "retry-after" in headers else code, body

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


if __name__ == "__main__":
    print(json.dumps(asyncio.run(generate(**json.loads(sys.argv[1])))))
