"""A transcript in several languages at every door: which segment has which language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.inside import AUDIO, inside, on_a_loop
from whisper_api.schema import Segment, Transcript, Word
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor, fake_transcript


class TwoLanguages(FakeExecutor):
    """Every transcript is in English, then in Chinese."""

    def transcript(self, job: Job, audio: Path) -> Transcript:
        from msgspec.structs import replace

        words = tuple(Word(word=text, start=5.0 + n, end=6.0 + n) for n, text in enumerate("你好"))
        segments = (
            Segment(id=0, start=0.0, end=4.0, text="Good morning.", language="en"),
            Segment(id=1, start=5.0, end=7.0, text="你好", words=words, language="zh"),
        )
        languages = ("en", "zh") if job.options.language == "multi" else ()
        whole = fake_transcript("", job.options)
        return replace(whole, segments=segments, languages=languages)


@pytest.mark.parametrize("asked", ["multi", "mul", "MULTI"])
@on_a_loop
async def test_a_result_says_which_segment_has_which_language(tmp_path: Path, asked: str) -> None:
    async with inside(tmp_path, TwoLanguages()) as server, server.client() as client:
        result = (await server.post(client, None, language=asked, sync="true", output_format="json")).json()
        assert (result["language"], result["languages"]) == ("en", ["en", "zh"])
        assert [segment["language"] for segment in result["segments"]] == ["en", "zh"]
        assert [segment["language"] for segment in json.loads(result["text"])["segments"]] == ["en", "zh"]


@on_a_loop
async def test_the_doors_of_other_services_say_it_too(tmp_path: Path) -> None:
    async with inside(tmp_path, TwoLanguages()) as server, server.client() as client:

        async def asked(format: str) -> Any:
            data = {"model": "whisper-1", "language": "multi", "response_format": format}
            answer = await client.post("/v1/audio/transcriptions", data=data, files={"file": ("a.wav", AUDIO)})
            assert answer.status_code == 200, answer.text
            return answer.json()

        verbose = await asked("verbose_json")
        assert verbose["language"] == "english"
        assert [segment["language"] for segment in verbose["segments"]] == ["english", "chinese"]
        assert (await asked("json"))["languages"] == [{"code": "en"}, {"code": "zh"}]
        params = {"language": "multi", "output": "json", "word_timestamps": "true"}
        answer = await client.post("/asr", params=params, files={"audio_file": ("a.wav", AUDIO)})
        assert [segment["language"] for segment in answer.json()["segments"]] == ["en", "zh"]


@on_a_loop
async def test_a_correction_has_the_spaces_of_its_segments_language(tmp_path: Path) -> None:
    async with inside(tmp_path, TwoLanguages()) as server, server.client() as client:
        job_id = await server.submit(client, language="multi", keep_result="true")
        await server.finish(client, job_id)
        words = [{"segment": 1, "word": 1, "text": "们好"}]
        answer = await client.put(f"/transcription/{job_id}/corrections", json={"words": words})
        assert answer.status_code == 200, answer.text
        result = (await client.get(f"/transcription/{job_id}/result")).json()
        assert result["segments"][1]["text"] == "你们好"


@on_a_loop
async def test_nothing_is_said_of_languages_otherwise(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor("Hello")) as server, server.client() as client:
        result = (await server.post(client, None, language="en", sync="true", output_format="json")).json()
        assert "languages" not in result
        assert "language" not in result["segments"][0]
        assert "language" not in json.loads(result["text"])["segments"][0]
        data = {"model": "whisper-1", "response_format": "verbose_json"}
        answer = await client.post("/v1/audio/transcriptions", data=data, files={"file": ("a.wav", AUDIO)})
        assert "language" not in answer.json()["segments"][0]
