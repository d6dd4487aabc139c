"""Corrections: sent once, and in every result from then on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.conftest import Busy
from server.harness import RunningServer, finish, problem, submit, until
from whisper_api.formats import FORMATS


@pytest.fixture(scope="module")
def job(server: RunningServer, conversation: bytes) -> str:
    """A completed job with words and two speakers, whose result is kept."""
    with server.client() as client:
        job_id = submit(
            client,
            conversation,
            language="en",
            align="true",
            diarize="true",
            num_speakers="2",
            speaker_embeddings="true",
            keep_result="true",
        )
        assert finish(client, job_id)["status"] == "Completed"
    return job_id


@pytest.fixture
def original(client: httpx.Client, job: str) -> Iterator[dict[str, Any]]:
    """The result without corrections. The fixture removes the corrections of the test at its end."""
    response = client.get(f"/transcription/{job}/result")
    assert response.status_code == 200
    yield response.json()
    assert put(client, job, {}) == {"words": [], "speakers": {}}
    assert client.get(f"/transcription/{job}/result").json() == response.json()


def put(client: httpx.Client, job_id: str, corrections: Any) -> dict[str, Any]:
    response = client.put(f"/transcription/{job_id}/corrections", json=corrections)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_corrections_are_in_every_format(client: httpx.Client, job: str, original: dict[str, Any]) -> None:
    segment = next(each for each in original["segments"] if len(each["words"]) > 1)
    last = len(segment["words"]) - 1
    label = segment["speaker"]
    given = {
        "words": [{"segment": segment["id"], "word": last, "text": "Ξένος."}],
        "speakers": {label: "Zoë"},
    }
    assert put(client, job, given) == given
    assert client.get(f"/transcription/{job}/corrections").json() == given
    found = client.get(f"/transcription/{job}/result").json()
    shown = next(each for each in found["segments"] if each["id"] == segment["id"])
    assert shown["words"][last]["word"] == "Ξένος."
    assert shown["words"][last]["start"] == segment["words"][last]["start"]
    assert {word["speaker"] for word in shown["words"]} == {"Zoë"} == {shown["speaker"]}
    assert shown["text"].endswith(" Ξένος.")
    assert "Ξένος." in found["text"]
    assert "[Zoë]: " in found["text"]
    assert set(found["speaker_embeddings"]) == set(found["speakers"])
    assert "Zoë" in found["speakers"]
    assert label not in json.dumps(found)
    for format in FORMATS:
        text = client.get(f"/transcription/{job}/result", params={"format": format}).text
        # RTTM has speakers and no words.
        assert ("Zoë" if format == "rttm" else "Ξένος.") in text
        assert label not in text


def test_the_last_corrections_count(client: httpx.Client, job: str, original: dict[str, Any]) -> None:
    first = original["segments"][0]
    put(client, job, {"speakers": {first["speaker"]: "Ada"}})
    put(client, job, {"words": [{"segment": first["id"], "word": 0, "text": "Ahem,"}]})
    found = client.get(f"/transcription/{job}/result").json()
    assert found["speakers"] == original["speakers"]
    assert found["segments"][0]["words"][0]["word"] == "Ahem,"


def test_corrections_need_a_key_that_may_see_the_job(
    client: httpx.Client, stranger: httpx.Client, admin: httpx.Client, job: str, original: dict[str, Any]
) -> None:
    path = f"/transcription/{job}/corrections"
    problem(stranger.get(path), 404, "job_not_found")
    problem(stranger.put(path, json={}), 404, "job_not_found")
    label = original["speakers"][0]
    put(admin, job, {"speakers": {label: "Ada"}})
    assert client.get(path).json()["speakers"] == {label: "Ada"}


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"words": [{"segment": 999, "word": 0, "text": "x"}]}, "invalid_field", "no segment 999"),
        ({"words": [{"segment": 0, "word": 999, "text": "x"}]}, "invalid_field", "no word 999"),
        ({"words": [{"segment": 0, "text": "x"}]}, "invalid_field", "has words"),
        ({"speakers": {"SPEAKER_77": "x"}}, "invalid_field", "SPEAKER_77"),
        ({"speakers": {"SPEAKER_00": " "}}, "invalid_field", "empty"),
        ({"speakers": {"SPEAKER_00": ""}}, "invalid_input", "length"),
        ({"words": [{"segment": -1, "word": 0, "text": "x"}]}, "invalid_input", "$.words[0].segment"),
        ({"words": [{"word": 0, "text": "x"}]}, "invalid_input", "segment"),
        ({"words": [{"segment": 0, "word": 0, "start": 9.0, "end": 8.0}]}, "invalid_field", "end after it begins"),
        ({"words": [{"segment": 0, "word": 0, "start": -1.0}]}, "invalid_input", "$.words[0].start"),
        ({"words": {}}, "invalid_input", "array"),
        ([], "invalid_input", "object"),
        (b"", "invalid_input", "truncated"),
        (b"{", "invalid_input", "truncated"),
        (b'{"words": [{"segment": 0, "word": 0, "text": "\xff"}]}', "invalid_input", ""),
        (b'{"words": [{"segment": 0, "word": 0, "text": "\\ud800"}]}', "invalid_input", ""),
        (b'{"more": ' + b"[" * 100_000, "invalid_input", "more"),
    ],
)
def test_invalid_corrections_are_refused_and_change_nothing(
    client: httpx.Client, job: str, original: dict[str, Any], body: Any, code: str, says: str
) -> None:
    kept = put(client, job, {"speakers": {original["speakers"][0]: "Ada"}})
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = problem(client.put(f"/transcription/{job}/corrections", content=content), 400, code)
    assert says in answer["detail"]
    assert client.get(f"/transcription/{job}/corrections").json() == kept


@pytest.mark.parametrize("stated", [True, False])
def test_more_than_a_megabyte_is_refused(client: httpx.Client, job: str, stated: bool) -> None:
    body = json.dumps({"words": [{"segment": 0, "word": 0, "text": "x" * 1000}] * 1100}).encode()
    content = body if stated else iter([body[:1000], body[1000:]])
    problem(client.put(f"/transcription/{job}/corrections", content=content), 413, "body_too_large")


def test_corrections_need_a_result(client: httpx.Client, busy: Busy, hello: bytes, hours: bytes) -> None:
    with busy(client, hours) as running:
        for method in ("GET", "PUT"):
            path = f"/transcription/{running}/corrections"
            answer = client.request(method, path, json={})
            problem(answer, 409, "job_not_finished")
            assert answer.headers["Retry-After"]
    problem(client.put(f"/transcription/{running}/corrections", json={}), 409, "job_canceled")
    gone = submit(client, hello)
    finish(client, gone)
    client.delete(f"/transcription/{gone}")
    for method in ("GET", "PUT"):
        problem(client.request(method, f"/transcription/{gone}/corrections", json={}), 410, "result_gone")
    problem(client.get("/transcription/none/corrections"), 404, "job_not_found")
    response = client.post(f"/transcription/{gone}/corrections", json={})
    problem(response, 405, "method_not_allowed")
    assert "PUT" in response.headers["Allow"]


def test_the_log_has_no_text_of_corrections(
    server: RunningServer, client: httpx.Client, job: str, original: dict[str, Any]
) -> None:
    put(client, job, {"speakers": {original["speakers"][0]: "Ermintrude"}})
    problem(client.put(f"/transcription/{job}/corrections", json={"speakers": {"Ermintrude": "x"}}), 400)
    until(lambda: "result corrected" in server.log)
    assert "Ermintrude" not in server.log


def test_a_page_of_another_origin_may_send_them_with_its_key(client: httpx.Client, job: str) -> None:
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "PUT"}
    response = client.options(f"/transcription/{job}/corrections", headers=headers)
    assert response.headers["Allow"] == "GET, PUT, HEAD, OPTIONS"
    assert "PUT" in response.headers["Access-Control-Allow-Methods"]
