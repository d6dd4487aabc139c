"""Results: what one holds, and the formats it can be had in."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import docx
import httpx
import pytest

from server.harness import RunningServer, finish, post, problem, submit, transcribed
from whisper_api.formats import DOCUMENTS, FORMATS

MEDIA_TYPES = {
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "txt": "text/plain",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
    "aud": "text/plain",
    "ass": "text/x-ssa",
    "md": "text/markdown",
    "cues": "application/json",
    "rttm": "text/plain",
}


@pytest.fixture(scope="module")
def finished(server: RunningServer, conversation: bytes) -> Iterator[tuple[httpx.Client, str]]:
    """A client and a completed job of all stages."""
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
        "turns",
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


def test_words_and_segments_have_a_length_and_do_not_overlap(result: dict[str, Any]) -> None:
    words = [word for segment in result["segments"] for word in segment["words"]]
    for items in (result["segments"], words):
        assert all(round(1000 * item["start"]) < round(1000 * item["end"]) for item in items)
        assert all(before["end"] <= after["start"] for before, after in pairwise(items))


def lines_of(text: str) -> list[list[str]]:
    """The lines of each subtitle of an srt."""
    return [block.split("\n")[2:] for block in text.split("\n\n") if block]


def test_subtitles_are_laid_out_as_the_query_says(finished: tuple[httpx.Client, str]) -> None:
    client, job_id = finished
    address = f"/transcription/{job_id}/result?format=srt"
    plain = lines_of(client.get(address).text)
    assert all(len(lines) == 1 for lines in plain)
    narrow = lines_of(client.get(f"{address}&max_line_width=20&max_line_count=2").text)
    assert len(narrow) > 1
    assert all(len(lines) <= 2 and all(len(line) <= 20 for line in lines) for lines in narrow)
    assert any("SPEAKER_00" in line for lines in narrow for line in lines)
    highlighted = client.get(f"{address}&highlight_words=true").text
    assert highlighted.count("<u>") > len(plain)
    assert client.get(f"{address}&max_line_width=").text == client.get(address).text
    for wrong in ("max_line_width=0", "max_line_count=x", "highlight_words=2"):
        refused = problem(client.get(f"{address}&{wrong}"), 400, "invalid_field")
        assert wrong.partition("=")[0] in refused["detail"]


def test_a_job_keeps_the_layout_that_it_was_submitted_with(client: httpx.Client, conversation: bytes) -> None:
    job_id = submit(client, conversation, output_format="srt", align="true", max_line_width="24", keep_result="true")
    assert finish(client, job_id)["status"] == "Completed"
    address = f"/transcription/{job_id}/result"
    body = client.get(address).json()
    lines = [line for lines in lines_of(body["text"]) for line in lines]
    assert max(map(len, lines)) <= 24
    assert body["text"] == client.get(f"{address}?format=srt").text
    # The query wins over the stored options.
    assert (
        max(
            len(line)
            for lines in lines_of(client.get(f"{address}?format=srt&max_line_width=60").text)
            for line in lines
        )
        > 24
    )


def test_layout_options_without_effect_are_warnings(client: httpx.Client, hello: bytes) -> None:
    body = transcribed(client, hello, output_format="srt", max_line_count="2")
    assert "max_line_count has no effect without max_line_width" in body["warnings"]
    body = transcribed(client, hello, output_format="txt", max_line_width="20")
    assert "max_line_width: only subtitles have a layout; txt is without it" in body["warnings"]


def test_a_preset_lays_out_subtitles_and_names_the_rules_that_cannot_hold(client: httpx.Client, speech: bytes) -> None:
    layout = {"subtitle_preset": "netflix", "speakers": "none", "min_duration": "6", "keep_result": "true"}
    body = transcribed(client, speech, output_format="srt", align="true", **layout)
    (warning,) = [warning for warning in body["warnings"] if warning.startswith("min_duration: ")]
    address = f"/transcription/{client.get('/transcriptions').json()['jobs'][0]['job_id']}/result?format=vtt"
    answer = client.get(address)
    assert warning in answer.headers["Warning"]
    assert answer.text.split("\n")[3] == body["text"].split("\n")[2]
    assert "Warning" not in client.get(f"{address}&min_duration=1&subtitle_preset=default").headers
    refused = problem(client.get(f"{address}&max_duration=1"), 400, "invalid_field")
    assert "min_duration" in refused["detail"]
    assert "bbc, default, netflix" in problem(client.get(f"{address}&subtitle_preset=tf1"), 400)["detail"]


def test_the_text_is_that_of_the_segments(result: dict[str, Any]) -> None:
    assert result["text"] == "".join(
        f"[{segment['speaker']}]: {segment['text'].strip()}\n" for segment in result["segments"]
    )
    assert "Chicago" in result["text"]


def test_a_document_can_be_had_of_any_job(finished: tuple[httpx.Client, str], result: dict[str, Any]) -> None:
    client, job_id = finished
    response = client.get(f"/transcription/{job_id}/result", params={"format": "docx"})
    assert response.headers["Content-Type"] == DOCUMENTS["docx"].media_type
    read = docx.Document(io.BytesIO(response.content))
    written = "".join(paragraph.text for paragraph in read.paragraphs if paragraph.style.name == "Normal")
    spoken = "".join(segment["text"] for segment in result["segments"])
    assert "".join(written.split()) == "".join(spoken.split())
    assert read.paragraphs[0].text.startswith(f"{result['segments'][0]['speaker']} (0:0")
    laid_out = client.get(f"/transcription/{job_id}/result", params={"format": "docx", "karaoke": "true"})
    assert "only subtitles have a layout; docx is without it" in laid_out.headers["Warning"]
    assert laid_out.content == response.content


@pytest.mark.parametrize("name", MEDIA_TYPES)
def test_any_format_can_be_had_of_any_job(
    finished: tuple[httpx.Client, str], result: dict[str, Any], name: str
) -> None:
    client, job_id = finished
    response = client.get(f"/transcription/{job_id}/result", params={"format": name})
    assert response.status_code == 200
    media_type, _, parameters = response.headers["Content-Type"].partition(";")
    assert media_type == MEDIA_TYPES[name]
    assert media_type == "application/json" or parameters.strip().lower() == "charset=utf-8"
    assert int(response.headers["Content-Length"]) == len(response.content)
    text = response.content.decode("utf-8")
    assert "Chicago" in text or name == "rttm"
    assert "SPEAKER_01" in text.replace("\\", "") or name == "tsv"
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


def test_a_synchronous_response_is_the_same_as_the_result(client: httpx.Client, speech: bytes) -> None:
    answer = post(client, speech, sync="true", output_format="vtt")
    assert answer.headers["Content-Type"] == "application/json"
    job_id = client.get("/transcriptions", params={"limit": 1}).json()["jobs"][0]["job_id"]
    assert answer.json() == client.get(f"/transcription/{job_id}/result").json()
