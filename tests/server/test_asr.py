"""``POST /asr`` and ``/detect-language`` as the clients of whisper-asr-webservice use them."""

from __future__ import annotations

import base64
import functools
import io
import json
import re
import wave
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from server.harness import RunningServer, problem
from server.inside import AUDIO, Inside, RawRequest, inside, on_a_loop
from server.inside import problem as inside_problem
from server.openai_inside import all_canceled, headers, running, sent, states
from whisper_api.testing import FakeExecutor

CUE = re.compile(r"(\d+)\n(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})\n(.+?)\n\n", re.DOTALL)


def pcm_of(wav: bytes) -> bytes:
    """The samples of a WAV file of 16 bits, one channel and 16 kHz, as ffmpeg writes them with ``-f s16le``."""
    with wave.open(io.BytesIO(wav)) as source:
        assert (source.getnchannels(), source.getsampwidth(), source.getframerate()) == (1, 2, 16_000)
        samples: bytes = source.readframes(source.getnframes())
        return samples


class SubtitleProvider:
    """The requests of Bazarr for a film of unknown language: it detects the language, then asks for subtitles.

    Args:
        endpoint: as its user types it.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.session = requests.Session()
        self.session.headers["User-Agent"] = "Subliminal/2.1"

    def language(self, samples: bytes) -> tuple[str, str]:
        """Code and English name."""
        answer = self.session.post(
            f"{self.endpoint}/detect-language",
            params={"encode": "false", "video_file": "None"},
            files={"audio_file": samples},
            timeout=(60, 600),
        ).json()
        return answer["language_code"], answer["detected_language"]

    def subtitles(self, samples: bytes, language: str, task: str = "transcribe") -> requests.Response:
        """The response whose body Bazarr stores as a subtitle file."""
        return self.session.post(
            f"{self.endpoint}/asr",
            params={"task": task, "language": language, "output": "srt", "encode": "false", "video_file": "/tv/a.mkv"},
            files={"audio_file": samples},
            timeout=(60, 600),
        )


# --- with a model ---


@pytest.fixture
def provider(server: RunningServer) -> SubtitleProvider:
    """The URL contains the key, since this client has no other place for a key."""
    scheme, _, rest = server.url.partition("://")
    return SubtitleProvider(f"{scheme}://bazarr:{server.user_key}@{rest}/")


def test_headerless_samples_become_subtitles(provider: SubtitleProvider, conversation: bytes) -> None:
    samples = pcm_of(conversation)
    assert provider.language(samples) == ("en", "english")
    answer = provider.subtitles(samples, "en")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="audio_file.srt"'
    assert answer.headers["Asr-Engine"]
    cues = CUE.findall(answer.content.decode())
    assert "".join(f"{number}\n{start} --> {end}\n{text}\n\n" for number, start, end, text in cues) == answer.text
    assert [int(number) for number, *_ in cues] == list(range(1, len(cues) + 1))
    assert all(start < end for _, start, end, _ in cues)
    assert "New Jersey" in " ".join(text for *_, text in cues)


def test_headerless_samples_give_the_same_text_as_a_file(
    server: RunningServer, client: httpx.Client, speech: bytes
) -> None:
    whole, headerless, wav_all_the_same = (
        client.post("/asr", params={"encode": encode, "language": "en"}, files={"audio_file": ("a.wav", audio)})
        for encode, audio in (("true", speech), ("false", pcm_of(speech)), ("false", speech))
    )
    assert whole.status_code == 200, whole.text
    assert whole.text.strip()
    assert whole.text == headerless.text == wav_all_the_same.text


def test_translations_come_in_english(provider: SubtitleProvider, speech: bytes) -> None:
    answer = provider.subtitles(pcm_of(speech), "en", task="translate")
    assert answer.status_code == 200, answer.text
    assert CUE.search(answer.text)


def test_the_dictionary_of_whisper(client: httpx.Client, conversation: bytes) -> None:
    answers = {
        words: client.post(
            "/asr",
            params={"output": "json", "word_timestamps": words},
            files={"audio_file": ("Gespräch 1.wav", conversation)},
        )
        for words in ("true", "false")
    }
    for words, answer in answers.items():
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="Gespr%C3%A4ch%201.wav.json"'
        body = answer.json()
        assert list(body) == ["text", "segments", "language"]
        assert body["language"] == "en"
        assert body["text"] == "".join(segment["text"] for segment in body["segments"])
        for segment in body["segments"]:
            assert list(segment)[:10] == [
                *("id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob"),
                *("compression_ratio", "no_speech_prob"),
            ]
            assert segment["text"].startswith(" ")
            assert ("words" in segment) == (words == "true")
            if words == "true":
                assert "".join(word["word"] for word in segment["words"]) == segment["text"]
                assert all(list(word) == ["word", "start", "end", "probability"] for word in segment["words"])


def test_speakers_are_named(client: httpx.Client, conversation: bytes) -> None:
    params = {"output": "txt", "diarize": "true", "min_speakers": "2", "max_speakers": "2", "language": "en"}
    answer = client.post("/asr", params=params, files={"audio_file": ("a.wav", conversation)})
    assert answer.status_code == 200, answer.text
    assert {line[:12] for line in answer.text.splitlines()} == {"[SPEAKER_00]", "[SPEAKER_01]"}


def test_every_format_is_written(client: httpx.Client, speech: bytes) -> None:
    for output, beginning in (("vtt", "WEBVTT\n\n00:00."), ("tsv", "start\tend\ttext\n"), ("SRT", "1\n00:00:00,")):
        answer = client.post("/asr", params={"output": output}, files={"audio_file": ("a.wav", speech)})
        assert answer.status_code == 200, answer.text
        assert answer.text.startswith(beginning)


def test_errors_are_json_problems(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    def ask(params: dict[str, str], audio: bytes = hello, field: str = "audio_file") -> httpx.Response:
        return client.post("/asr", params=params, files={field: ("a.wav", audio)})

    problem(ask({"language": "tlh"}), 400, "invalid_field")
    problem(ask({"output": "docx"}), 400, "invalid_field")
    problem(ask({"task": "detect_language"}), 400, "invalid_field")
    problem(ask({"encode": "maybe"}), 400, "invalid_field")
    problem(ask({"min_speakers": "3", "max_speakers": "2"}), 400, "invalid_field")
    assert "initial_prompt" in ask({"initial_prompt": "x" * 10_001}).json()["detail"]
    problem(ask({}, b"Dear all,\n"), 415, "invalid_audio")
    problem(ask({}, field="file"), 400, "no_file")
    problem(client.post("/asr"), 400, "not_multipart")
    with server.client(key="") as nobody:
        problem(nobody.post("/asr", files={"audio_file": ("a.wav", hello)}), 401, "unauthorized")


# --- without one ---


def upload(query: str = "", *, path: str = "/asr", headers: dict[str, str] | None = None, **fields: str) -> RawRequest:
    request = httpx.Request("POST", "http://a", data=fields, files={"audio_file": ("a.wav", AUDIO)})
    body = request.read()
    given = {"content-type": request.headers["content-type"], "content-length": str(len(body)), **(headers or {})}
    return RawRequest("POST", f"{path}?{query}" if query else path, given, (body,))


def two_wait(app: Inside) -> bool:
    return app.state.waiters.requests.total() == 2


@on_a_loop
async def test_a_client_that_goes_away_cancels_its_job(tmp_path: Path) -> None:
    for path, query in (("/asr", ""), ("/detect-language", "encode=true")):
        async with inside(tmp_path / path[1:], FakeExecutor(held=True)) as app:
            app.state.waiters.grace_seconds = 0.01
            async with sent(app, upload(query, path=path)):
                await running(app)
                assert states(app) == ["Processing"]
            await app.until(functools.partial(all_canceled, app))


@on_a_loop
async def test_the_same_request_joins_the_job(tmp_path: Path) -> None:
    for path in ("/asr", "/detect-language"):
        async with inside(tmp_path / path[1:], FakeExecutor(held=True)) as app:
            app.state.waiters.grace_seconds = 3600.0
            async with sent(app, upload("encode=true", path=path)):
                await running(app)
            again, other = upload("encode=true", path=path), upload("encode=1&language=de", path="/asr")
            async with sent(app, again, other) as [answered, _]:
                await app.until(functools.partial(two_wait, app))
                app.executor.release()
                await answered
                assert again.status == 200
                assert len(states(app)) == 2


@on_a_loop
async def test_a_client_with_an_idempotency_key_comes_back(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app:
        app.state.waiters.grace_seconds = 0.0
        first, again = (upload(headers={"idempotency-key": "once"}) for _ in range(2))
        async with sent(app, first):
            await running(app)
        app.executor.release()
        await again.to(app.app)
        assert again.status == 200
        assert headers(again)["x-job-id"] == app.executor.started[0]


@on_a_loop
async def test_the_query_says_how(tmp_path: Path) -> None:
    async with inside(tmp_path, language="de", output_format="aud") as app, app.client() as client:

        async def options(**query: str) -> Any:
            answer = await client.post("/asr", params=query, files={"audio_file": ("a.wav", AUDIO)})
            assert answer.status_code == 200, answer.text
            job = app.service.store.get(answer.headers["X-Job-ID"])
            assert job is not None
            assert job.output_format == query.get("output", "txt")
            return job.options

        plain = await options()
        assert (plain.task, plain.language, plain.align, plain.diarize, plain.vad) == (
            *("transcribe", "auto", False, False, "silero"),
        )
        asked = await options(
            task="translate", language="German", initial_prompt="Ada", vad_filter="false", output="srt", unknown="x"
        )
        assert (asked.task, asked.language, asked.prompt, asked.vad, asked.align) == (
            *("translate", "de", "Ada", "none", True),
        )
        spoken = await options(diarize="True", min_speakers="2", max_speakers="3", vad_filter="true", language="")
        assert (spoken.diarize, spoken.min_speakers, spoken.max_speakers, spoken.vad) == (True, 2, 3, "silero")
        assert spoken.language == "auto"


@on_a_loop
async def test_the_error_of_a_failed_job_is_a_json_problem(tmp_path: Path) -> None:
    def fail(executor: FakeExecutor, job: Any) -> None:
        raise RuntimeError("no")

    async with inside(tmp_path, FakeExecutor(behave=fail)) as app, app.client() as client:
        for path in ("/asr", "/detect-language"):
            answer = await client.post(f"{path}?encode=true", files={"audio_file": ("a.wav", AUDIO)})
            inside_problem(answer, 409, "job_failed")


@on_a_loop
async def test_a_key_may_stand_in_the_address(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        token = app.token("ann")
        paths = ("/asr", "/detect-language", "/transcribe")

        async def status(path: str, credentials: str, **more: str) -> int:
            encoded = base64.b64encode(credentials.encode()).decode()
            async with app.client(Authorization=f"Basic {encoded}", **more) as client:
                field = "file" if path == "/transcribe" else "audio_file"
                return (await client.post(path, files={field: ("a.wav", AUDIO)})).status_code

        for credentials in (f"ann:{token}", f":{token}", f"{token}:", token):
            assert [await status(path, credentials) for path in paths] == [200, 200, 401]
        for credentials in ("", ":", "ann:no-such-key", f"{token}:other", "\0"):
            assert [await status(path, credentials) for path in paths] == [401, 401, 401]
        # A page of another origin may make a browser send a stored password.
        assert await status("/asr", f"ann:{token}", **{"Sec-Fetch-Site": "cross-site"}) == 401
        async with app.client(Authorization="Basic !!!") as client:
            inside_problem(await client.post("/asr"), 401, "unauthorized")
        # A key is never accepted in the query, since logs contain the query.
        async with app.client() as client:
            for name in ("key", "api_key", "api-key", "token", "access_token"):
                answer = await client.post("/asr", params={name: token}, files={"audio_file": ("a.wav", AUDIO)})
                inside_problem(answer, 401, "unauthorized")


@on_a_loop
async def test_language_detection_takes_the_file_from_either_field(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for field in ("file", "audio_file"):
            for query in ("", "?encode=true", "?encode=false"):
                answer = await client.post(f"/detect-language{query}", files={field: ("a.wav", AUDIO)})
                assert answer.status_code == 200, answer.text
                body = json.loads(answer.text)
                assert body["language_code"] == body["language"]
                assert isinstance(body["confidence"], float)
        answer = await client.post("/detect-language", files=[(f, ("a.wav", AUDIO)) for f in ("file", "audio_file")])
        inside_problem(answer, 400, "invalid_form")
