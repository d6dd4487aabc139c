"""Results: what one holds, and the formats it can be had in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.harness import RunningServer, finish, post, problem, submit
from whisper_api.formats import FORMATS

MEDIA_TYPES = {
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "txt": "text/plain",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
    "aud": "text/plain",
}


@pytest.fixture(scope="module")
def finished(server: RunningServer, conversation: bytes) -> Iterator[tuple[httpx.Client, str]]:
    """A client, and a job of its that has ended, with all stages."""
    with server.client() as client:
        job_id = submit(client, conversation, align=None, diarize=None)
        assert finish(client, job_id)["status"] == "Completed"
        yield client, job_id


@pytest.fixture(scope="module")
def result(finished: tuple[httpx.Client, str]) -> dict[str, Any]:
    client, job_id = finished
    response = client.get(f"/transcription/{job_id}/result")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    body: dict[str, Any] = response.json()
    return body


def test_all_keys_are_there(result: dict[str, Any]) -> None:
    assert set(result) == {
        "text",
        "language",
        "segments",
        "language_probability",
        "duration",
        "model",
        "warnings",
        "speakers",
    }
    assert result["language"] == "en"
    assert result["language_probability"] is None
    assert result["duration"] == pytest.approx(8.0, abs=0.01)
    assert result["model"] == "base"
    assert all(isinstance(warning, str) for warning in result["warnings"])


def test_segments_have_times_words_and_speakers(result: dict[str, Any]) -> None:
    segments = result["segments"]
    assert [segment["id"] for segment in segments] == list(range(len(segments)))
    assert len(segments) >= 2
    at = 0.0
    for segment in segments:
        assert set(segment) == {"id", "start", "end", "text", "speaker", "words"}
        assert at <= segment["start"] <= segment["end"] <= result["duration"]
        at = segment["start"]
        assert segment["speaker"] in result["speakers"]
        assert " ".join(word["word"] for word in segment["words"]) == segment["text"].strip()
        for word in segment["words"]:
            assert set(word) == {"word", "start", "end", "score", "speaker"}
            assert 0.0 <= word["start"] <= word["end"] <= result["duration"]
            assert 0.0 <= word["score"] <= 1.0
    assert result["speakers"] == ["SPEAKER_00", "SPEAKER_01"]


def test_the_text_is_that_of_the_segments(result: dict[str, Any]) -> None:
    assert result["text"] == "".join(
        f"[{segment['speaker']}]: {segment['text'].strip()}\n" for segment in result["segments"]
    )
    assert "Chicago" in result["text"]


@pytest.mark.parametrize("name", MEDIA_TYPES)
def test_any_format_can_be_had_of_any_job(
    finished: tuple[httpx.Client, str], result: dict[str, Any], name: str
) -> None:
    client, job_id = finished
    response = client.get(f"/transcription/{job_id}/result", params={"format": name})
    assert response.status_code == 200
    media_type, _, parameters = response.headers["Content-Type"].partition(";")
    assert media_type == MEDIA_TYPES[name]
    assert name == "json" or parameters.strip().lower() == "charset=utf-8"
    assert int(response.headers["Content-Length"]) == len(response.content)
    text = response.content.decode("utf-8")
    assert "Chicago" in text
    assert "SPEAKER_01" in text or name == "tsv"
    if name == "txt":
        assert text == result["text"]
    if name == "json":
        segments = json.loads(text)["segments"]
        assert [segment["text"] for segment in segments] == [segment["text"] for segment in result["segments"]]


def test_these_are_all_the_formats() -> None:
    assert set(MEDIA_TYPES) == set(FORMATS)


def test_a_format_that_is_not_known_is_answered_with_those_that_are(finished: tuple[httpx.Client, str]) -> None:
    client, job_id = finished
    detail = problem(client.get(f"/transcription/{job_id}/result", params={"format": "pdf"}), 400)["detail"]
    assert all(name in detail for name in FORMATS)


def test_silence_gives_a_result_without_segments(client: httpx.Client, hello: bytes) -> None:
    silence = hello[:44] + bytes(len(hello) - 44)
    response = post(client, silence, sync="true", diarize="true", align="true")
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["text"], body["segments"], body["speakers"]) == ("", [], [])


def test_a_synchronous_answer_is_what_the_result_is(client: httpx.Client, speech: bytes) -> None:
    answer = post(client, speech, sync="true", output_format="vtt")
    assert answer.headers["Content-Type"] == "application/json"
    job_id = client.get("/transcriptions", params={"limit": 1}).json()["jobs"][0]["job_id"]
    assert answer.json() == client.get(f"/transcription/{job_id}/result").json()
