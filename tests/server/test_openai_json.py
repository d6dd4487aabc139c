"""JSON bodies with base64 or a URL."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.file_server import file_server
from server.harness import RunningServer
from server.inside import AUDIO, Inside, RawRequest, inside, on_a_loop
from server.openai_inside import PATH, error
from whisper_api.errors import InvalidInput, InvalidOption
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.incoming import IncomingForm, Limits
from whisper_api.server.uploads.json_reader import MAX_HEAD_BYTES, MAX_OTHER_BYTES, MAX_TOKENS, JsonReader
from whisper_api.server.uploads.pace import PaceRules

BASE64 = base64.b64encode(AUDIO).decode()
LIMITS = Limits(max_file_size=1 << 24, pace=PaceRules(60), max_field_bytes=1 << 24)


def read(body: bytes, sizes: Iterator[int] | None = None) -> tuple[bytes, list[tuple[str, str]]]:
    """Read the file and the fields of a body that comes in pieces of these sizes."""
    with tempfile.TemporaryDirectory() as directory:
        form = IncomingForm(LIMITS, lambda: Path(directory))
        reader = JsonReader(form)
        try:
            start = 0
            while start < len(body):
                size = next(sizes) if sizes is not None else len(body)
                reader.feed(body[start : start + size])
                start += size
            reader.finish()
            form.finish()
            return b"".join(path.read_bytes() for path in Path(directory).iterdir()), form.fields
        finally:
            form.discard()


def shape(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


ESCAPED = json.dumps({"file": BASE64}).replace("/", r"\/").replace("+", r"\u002B").encode()
IN_LINES = "\n".join(BASE64[start : start + 60] for start in range(0, len(BASE64), 60))


@pytest.mark.parametrize(
    "body",
    [
        shape(model="whisper-1", input_audio={"data": BASE64, "format": "wav"}),
        shape(input_audio={"format": "wav", "data": f"data:audio/wav;base64,{BASE64}"}, model="whisper-1"),
        shape(input_audio=BASE64),
        shape(file=BASE64),
        shape(file=f"data:audio/wav;codecs=1;base64,{BASE64}"),
        shape(url=f"data:;base64,{BASE64}"),
        shape(file=BASE64.rstrip("=")),
        shape(file=base64.urlsafe_b64encode(AUDIO).decode()),
        shape(file=IN_LINES),
        ESCAPED,
        b'\n {\t"file"\r\n:\t"' + BASE64.encode() + b'" , "model" : "x" } ',
        shape(provider={"data": "zzz!", "file": "!"}, file=BASE64, messages=[{"data": "?"}]),
    ],
    ids=lambda body: body[:40].decode(),
)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_audio_in_base64_is_the_file(body: bytes, seed: int | None) -> None:
    chance = random.Random(seed)
    sizes = None if seed is None else iter(lambda: chance.choice((1, 2, 3, 7, 50)), 0)
    file, _ = read(body, sizes)
    assert file == AUDIO


@pytest.mark.parametrize("size", [1, 5, MAX_HEAD_BYTES, 1 << 20])
def test_large_audio_comes_out_as_it_went_in(size: int) -> None:
    audio = random.Random(size).randbytes(3_000_000 if size > 5 else 30_000)
    body = shape(file=base64.b64encode(audio).decode(), language="en")
    assert read(body, iter(lambda: size, 0)) == (audio, [("language", "en")])


def test_values_become_fields() -> None:
    body = shape(
        model="base",
        temperature=0.5,
        stream=True,
        prompt='Ann says "no",\nBob: é 你好 \\ /',
        language=None,
        timestamp_granularities=["word", "segment"],
        chunking_strategy={"type": "server_vad", "threshold": 0.4},
        known_speaker_names=[],
        file=BASE64,
        **{'odd"name\r\n': 1},
    )
    for sizes in (None, iter(lambda: 3, 0)):
        _, fields = read(body, sizes)
        assert fields == [
            ("model", "base"),
            ("temperature", "0.5"),
            ("stream", "true"),
            ("prompt", 'Ann says "no",\nBob: é 你好 \\ /'),
            ("timestamp_granularities[]", "word"),
            ("timestamp_granularities[]", "segment"),
            ("chunking_strategy", '{"type":"server_vad","threshold":0.4}'),
            ('odd"name\r\n', "1"),
        ]


@pytest.mark.parametrize("name", ["url", "file_url", "file", "input_audio"])
def test_an_address_is_the_field_of_addresses(name: str) -> None:
    body = b'{"%b": "https:\\/\\/example.org\\/a.wav?x=1", "model": "base"}' % name.encode()
    file, fields = read(body, iter(lambda: 4, 0))
    assert (file, dict(fields)) == (b"", {"url": "https://example.org/a.wav?x=1", "model": "base"})


@pytest.mark.parametrize(
    ("body", "raised", "told"),
    [
        (b"", InvalidInput, "truncated"),
        (b"[]", InvalidInput, "object"),
        (b"{", InvalidInput, "truncated"),
        (b'{"file": "' + BASE64.encode(), InvalidInput, "truncated"),
        (b'{"file": "%b"]' % BASE64.encode(), InvalidInput, "malformed"),
        (b'{"file": "AAAA", "prompt": "\xff"}', InvalidInput, "UTF-8|utf-8"),
        (b"[" * 100, InvalidInput, "nested"),
        (b"{" + b"," * (MAX_TOKENS + 1), InvalidInput, str(MAX_TOKENS)),
        (b'{"prompt": "%b"}' % (b"x" * MAX_OTHER_BYTES), InvalidInput, str(MAX_OTHER_BYTES)),
        (b"{}", Problem, "No audio"),
        (shape(model="base", file=None), Problem, "No audio"),
        (shape(file=""), Problem, "No audio"),
        (shape(file=BASE64, input_audio={"data": BASE64}), Problem, "more than one file"),
        (shape(file="not base64!"), InvalidOption, "file: expected base64"),
        (shape(input_audio={"data": "AAAAA"}), InvalidOption, "input_audio: expected base64"),
        (shape(file="AA=A"), InvalidOption, "expected base64"),
        (shape(file="AAA=" + "AAAA" * MAX_HEAD_BYTES), InvalidOption, "expected base64"),
        (rb'{"file": "\q"}', InvalidOption, "expected base64"),
        (rb'{"file": "\u00"}', InvalidOption, "expected base64"),
        (shape(file="data:audio/wav,%00"), InvalidOption, "a data URL with base64"),
        (shape(file="data:audio/wav;base64"), InvalidOption, "a data URL with base64"),
        (shape(url="https://example.org/" + "a" * MAX_HEAD_BYTES), InvalidOption, "a URL of at most"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("size", [1 << 30, 5000])
def test_invalid_json_bodies_are_refused(body: bytes, raised: type[Exception], told: str, size: int) -> None:
    with pytest.raises(raised, match=told):
        read(body, iter(lambda: size, 0))


@on_a_loop
async def test_a_json_body_is_answered_as_the_form_is(tmp_path: Path) -> None:
    async with inside(tmp_path, model="base") as app, app.client() as client:
        as_form = await client.post(PATH, files={"file": ("audio", AUDIO)}, data={"model": "whisper-1"})
        for body in (
            {"model": "whisper-1", "input_audio": {"data": BASE64, "format": "wav"}},
            {"input_audio": {"format": "wav", "data": BASE64}, "model": "openai/whisper-1", "language": None},
        ):
            as_json = await client.post(PATH, json=body)
            assert (as_json.status_code, as_json.content) == (200, as_form.content)
        translated = await client.post("/v1/audio/translations", json={"file": BASE64, "language": "de"})
        assert translated.json().keys() == {"text"}
        assert "language was ignored" in translated.headers["Warning"]
        streamed = await client.post(PATH, json={"file": BASE64, "stream": True})
        assert b"transcript.text.done" in streamed.content
        # Only the routes of OpenAI accept JSON.
        assert (await client.post("/transcribe", json={"file": BASE64})).status_code == 400


@on_a_loop
async def test_the_same_upload_again_joins_the_job_however_it_is_written(tmp_path: Path) -> None:
    from whisper_api.testing import FakeExecutor

    body = json.dumps({"file": BASE64, "model": "base"}).encode()
    async with inside(tmp_path, FakeExecutor(held=True), model="base") as app:
        requests = [_sent(path, body) for path in (PATH, "/openai/v1/audio/transcriptions")]
        tasks = [asyncio.create_task(request.to(app.app)) for request in requests]
        await app.until(lambda: app.state.waiters.requests.total() == 2)
        app.executor.release()
        await asyncio.gather(*tasks)
        assert [request.status for request in requests] == [200, 200]
        assert len(app.service.list_jobs(None)[0]) == 1


@on_a_loop
async def test_the_bounds_of_uploads_hold(tmp_path: Path) -> None:
    """A too large file is refused while it arrives, and leaves no files."""
    limit = 100_000
    async with inside(tmp_path, max_file_size=limit) as app:
        half = b'{"file": "' + base64.b64encode(bytes(limit // 2 // 3 * 3))
        request = RawRequest("POST", PATH, {"content-type": "application/json"}, (half, half[10:], half[10:]), False)
        task = asyncio.create_task(request.to(app.app))
        await app.until(lambda: request.sent)
        assert (request.status, error(request)["code"]) == (413, "file_too_large")
        request.gone.set()
        await task
        await _nothing_left(app, tmp_path)


@on_a_loop
async def test_a_body_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for content, status, code in (
            (b'{"file": "' + BASE64.encode() * 100 + b'!"}', 400, "invalid_field"),
            (b'{"file": "' + BASE64.encode() + b'"', 400, "invalid_input"),
            (b'{"model": "base"}', 400, "no_file"),
            (json.dumps({"file": base64.b64encode(b"not audio").decode()}).encode(), 400, "invalid_audio"),
            (json.dumps({"url": "https://example.org/a.wav"}).encode(), 400, "url_not_enabled"),
        ):
            answer = await client.post(PATH, content=content, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
            assert answer.headers["x-should-retry"] == "false"
        await _nothing_left(app, tmp_path)


def test_a_real_recording_in_json_and_by_address(start_server: Any, hello: bytes) -> None:
    with file_server() as files:
        files.answers["/a.wav"] = hello
        address = f"http://127.0.0.1:{files.port}/a.wav"
        server: RunningServer = start_server(
            {"ENABLE_URL_UPLOADS": True, "URL_PRIVATE_HOSTS": "127.0.0.1", "WHISPER_MODEL": "base"}
        )
        with server.client() as client:
            data = base64.b64encode(hello).decode()
            texts = [
                client.post(PATH, json={"model": "whisper-1", **source}).json()["text"]
                for source in ({"input_audio": {"data": data, "format": "wav"}}, {"file_url": address})
            ]
            assert "ello" in texts[0]
            assert texts[0] == texts[1]


def _sent(path: str, body: bytes) -> RawRequest:
    headers = {"content-type": "application/json", "content-length": str(len(body)), "x-request-id": uuid.uuid4().hex}
    return RawRequest("POST", path, headers, (body[:100], body[100:]))


async def _nothing_left(app: Inside, directory: Path) -> None:
    await app.until(lambda: not list((directory / "uploads").glob("*/*")))
    assert not app.service.list_jobs(None)[0]
