"""A recording as the body itself, and bodies that are compressed."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from fakes import uploads

from server.harness import RunningServer, finish
from server.inside import AUDIO, inside, on_a_loop, problem
from server.upload_server import PATIENCE_SECONDS
from whisper_api.server.app import ROUTES

RAW_PATHS = ("/transcribe", "/transcription", "/detect-language")
KINDS = (
    "audio/wav",
    "audio/mpeg; rate=16000",
    "AUDIO/x-wav",
    "video/mp4",
    "application/octet-stream",
    "application/ogg",
)


def kind(content_type: str) -> dict[str, str]:
    return {"Content-Type": content_type}


# --- a recording as the body ---


@pytest.mark.parametrize("content_type", KINDS)
@pytest.mark.parametrize("path", RAW_PATHS)
@on_a_loop
async def test_a_body_that_is_a_recording_becomes_a_job(tmp_path: Path, path: str, content_type: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        query = {"language": "en", "sync": "false", "metadata": '{"a":1}', "no_such_field": "x"}
        answer = await client.post(path, params=query, content=AUDIO, headers=kind(content_type))
        assert answer.status_code == 202, answer.text
        status = await app.finish(client, answer.json()["job_id"])
        assert status["status"] == "Completed", status
        result = (await client.get(f"/transcription/{status['job_id']}/result")).json()
        assert result["metadata"] == {"a": 1}
        assert any("no_such_field" in warning for warning in result["warnings"])
        job = app.service.store.get(status["job_id"])
        assert job is not None
        assert job.options.language == "en"


@pytest.mark.parametrize(
    ("query", "disposition", "name"),
    [
        ({}, None, None),
        ({"filename": "a.wav"}, None, "a.wav"),
        ({}, 'attachment; filename="b.wav"', "b.wav"),
        ({}, "attachment; filename*=UTF-8''Z%C3%BCrich.wav", "Zürich.wav"),
        ({"filename": "a.wav"}, 'attachment; filename="b.wav"', "a.wav"),
        ({"filename": "../../etc/pass\nwd"}, None, "passwd"),
        ({}, "inline", None),
    ],
)
@on_a_loop
async def test_the_name_of_the_file(
    tmp_path: Path, query: dict[str, str], disposition: str | None, name: str | None
) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        headers = kind("audio/wav") | ({} if disposition is None else {"Content-Disposition": disposition})
        answer = await client.post("/transcribe", params=query, content=AUDIO, headers=headers)
        assert answer.status_code == 202, answer.text
        job = app.service.store.get(answer.json()["job_id"])
        assert job is not None
        assert job.file_name == name


@on_a_loop
async def test_errors_of_raw_bodies_are_named(tmp_path: Path) -> None:
    async with inside(tmp_path, max_file_size=1000) as app, app.client() as client:

        async def post(content: Any, **query: str) -> httpx.Response:
            return await client.post("/transcribe", params=query, content=content, headers=kind("audio/wav"))

        async def pieces() -> Any:
            for _ in range(11):
                yield bytes(100)

        problem(await post(b""), 400, "no_file")
        problem(await post(bytes(1001)), 413, "file_too_large")
        problem(await post(pieces()), 413, "file_too_large")
        problem(await post(b"Dear all,\n"), 415, "invalid_audio")
        problem(await post(AUDIO, beam_size="0"), 400, "invalid_field")
        problem(await post(AUDIO, url="http://files.example/a.wav"), 400, "invalid_field")
        problem(await post(AUDIO, **{f"f{number}": "x" for number in range(101)}), 400, "invalid_query")
        assert app.service.counts() == (0, 0)
        assert uploads(tmp_path) == []


@on_a_loop
async def test_the_error_of_a_recording_without_a_media_type_says_what_to_send(tmp_path: Path) -> None:
    """``curl --data-binary`` sends this media type."""
    async with inside(tmp_path) as app, app.client() as client:
        form = kind("application/x-www-form-urlencoded")
        for content, status, code in (
            (AUDIO, 400, "not_multipart"),
            (AUDIO + b"\xff&" * 200, 400, "invalid_form"),
            (AUDIO + b"\xff", 400, "invalid_form"),
            (bytes(17 << 20), 413, "form_too_large"),
        ):
            body = problem(await client.post("/transcribe", content=content, headers=form), status, code)
            assert "Content-Type: audio/wav" in body["detail"]
        # The route for several files takes no raw body.
        answer = await client.post("/transcriptions", content=AUDIO, headers=kind("audio/wav"))
        assert "--data-binary" not in problem(answer, 400, "not_multipart")["detail"]
        assert app.service.counts() == (0, 0)


@on_a_loop
async def test_the_same_recording_in_a_form_and_as_the_body_is_the_same_request(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        once = {"Idempotency-Key": "once"}
        first = await app.post(client, once, language="en")
        again = await client.post("/transcribe?language=en", content=AUDIO, headers={**once, **kind("audio/wav")})
        assert first.status_code == again.status_code == 202
        assert first.json() == again.json()
        other = await client.post("/transcribe?language=de", content=AUDIO, headers={**once, **kind("audio/wav")})
        problem(other, 422, "idempotency_conflict")


def test_real_clients_send_a_recording_as_the_body(server: RunningServer, hello: bytes, tmp_path: Path) -> None:
    key = {"Authorization": f"Bearer {server.user_key}"}
    url = f"{server.url}/transcribe?language=en&filename=hello.wav&align=false&diarize=false"
    path = tmp_path / "hello.wav"
    path.write_bytes(hello)
    answers = [
        requests.post(url, data=hello, headers={**key, **kind("audio/wav")}, timeout=PATIENCE_SECONDS).json(),
        httpx.post(url, content=iter([hello[:999], hello[999:]]), headers={**key, **kind("audio/wav")}).json(),
    ]
    for http2 in (False, True):
        with httpx.Client(http1=not http2, http2=http2) as client:
            answers.append(client.post(url, content=hello, headers={**key, **kind("application/octet-stream")}).json())
    if shutil.which("curl"):
        command = ["curl", "-sS", "--noproxy", "*", "--data-binary", f"@{path}", "-H", "Content-Type: audio/wav"]
        command += ["-H", f"Authorization: Bearer {server.user_key}", url]
        answers.append(json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout))
    with server.client() as client:
        texts = set()
        for answer in answers:
            assert finish(client, answer["job_id"])["status"] == "Completed"
            result = client.get(f"/transcription/{answer['job_id']}/result").json()
            texts.add(result["text"])
    assert len(texts) == 1
    assert texts.pop().strip()


# --- bodies that are compressed ---


def with_bodies() -> list[tuple[str, str]]:
    return [
        (method, path.replace("{job_id}", "6f1c0c0e-6c0e-4a43-8f3c-1b3c9b7c8a11"))
        for path, resource in ROUTES.items()
        for method, operation in resource.operations.items()
        if operation.body is not None
    ]


@pytest.mark.parametrize(("method", "path"), with_bodies())
@on_a_loop
async def test_every_address_names_a_body_that_is_compressed(tmp_path: Path, method: str, path: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for coding in ("gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip"):
            headers = {"Content-Encoding": coding, "Content-Type": "audio/wav"}
            answer = await client.request(method, path, content=gzip.compress(AUDIO), headers=headers)
            assert answer.status_code == 415, answer.text
            assert answer.headers["Accept-Encoding"] == "identity"
            assert coding in answer.text
            assert "content_encoding" in answer.text
        answer = await client.request(method, path, content=b"", headers={"Content-Encoding": "identity"})
        assert answer.status_code not in (200, 415)
    assert uploads(tmp_path) == []
