"""``POST /detect-language``: the language without a transcript."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import httpx

from server.harness import RunningServer, finish, problem
from server.inside import AUDIO, inside, on_a_loop
from server.inside import problem as inside_problem
from whisper_api.testing import FakeExecutor


def detect(client: httpx.Client, audio: bytes, *, key: str = "", **fields: str) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/detect-language", files={"file": ("clip.wav", audio)}, data=fields, headers=headers)


# --- with a model ---


def test_the_response_has_the_language_and_the_probabilities(client: httpx.Client, speech: bytes) -> None:
    answer = detect(client, speech)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {
        *("language", "language_probability", "language_probabilities", "duration", "model", "warnings"),
        *("detected_language", "language_code", "confidence"),
    }
    assert (body["language"], body["model"], body["warnings"]) == ("en", "base", [])
    theirs = {"detected_language": "english", "language_code": "en", "confidence": body["language_probability"]}
    assert body.items() >= theirs.items()
    assert abs(body["duration"] - 3.0) < 0.1
    probabilities = list(body["language_probabilities"].items())
    assert probabilities[0] == ("en", body["language_probability"])
    assert body["language_probability"] > 0.5
    values = [value for _, value in probabilities]
    assert values == sorted(values, reverse=True)
    assert 0.99 < sum(values) < 1.01
    assert len(values) > 50


def test_the_result_of_an_asynchronous_detection_can_be_read_later(client: httpx.Client, speech: bytes) -> None:
    answer = detect(client, speech, sync="false", metadata='{"a": 1}')
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["job_id"]
    assert answer.headers["Location"] == f"/transcription/{job_id}"
    assert finish(client, job_id)["status"] == "Completed"
    result = client.get(f"/transcription/{job_id}/result").json()
    assert (result["language"], result["segments"]) == ("en", [])
    assert result["text"].startswith("en ")
    assert next(iter(result["language_probabilities"])) == "en"
    assert result["metadata"] == {"a": 1}


def test_a_model_for_english_alone_says_so(client: httpx.Client, speech: bytes) -> None:
    body = detect(client, speech, model="tiny.en").json()
    assert (body["language"], body["language_probabilities"], body["model"]) == ("en", {"en": 1.0}, "tiny.en")
    assert body["warnings"]


def test_silence_has_no_language(client: httpx.Client, hello: bytes) -> None:
    silence = hello[:44] + bytes(len(hello) - 44)
    answer = detect(client, silence)
    assert answer.status_code == 200, answer.text
    assert answer.json()["language_probabilities"] == {}
    assert answer.json()["warnings"]


def test_invalid_requests_are_refused_by_name(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    assert detect(client, b"Dear all,\n").json()["code"] == "invalid_audio"
    problem(detect(client, hello, model="no-such-model"), 422, "unknown_model")
    problem(detect(client, hello, metadata="[1]"), 400, "invalid_field")
    problem(client.post("/detect-language", files={"model": (None, "base")}), 400, "no_file")
    problem(client.post("/detect-language"), 400, "not_multipart")
    with server.client(key="") as nobody:
        problem(detect(nobody, hello), 401, "unauthorized")


def test_the_same_key_gives_the_same_answer(client: httpx.Client, hello: bytes, speech: bytes) -> None:
    key = uuid.uuid4().hex
    first, second = (detect(client, hello, key=key) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    problem(detect(client, speech, key=key), 422, "idempotency_conflict")


# --- without one ---


@on_a_loop
async def test_a_detection_that_outlasts_the_wait_stays_a_job(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), sync_timeout_seconds=0.05) as app, app.client() as client:
        answer = await client.post("/detect-language", files={"file": ("a.wav", AUDIO)})
        assert answer.status_code == 202
        kept = app.service.store.get(answer.json()["job_id"])
        assert kept is not None
        assert (kept.options.task, kept.options.align, kept.options.diarize) == ("detect_language", False, False)


@on_a_loop
async def test_metadata_is_given_back(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for fields, expected in (({"metadata": '{"case": 7}'}, {"case": 7}), ({"metadata": "{}"}, {}), ({}, None)):
            answer = await client.post("/detect-language", files={"file": ("a.wav", AUDIO)}, data=fields)
            assert answer.status_code == 200, answer.text
            assert answer.json().get("metadata") == expected


@on_a_loop
async def test_language_detection_ignores_known_speakers(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        fields: dict[str, Any] = {"known_speaker_names[]": "Ada", "unknown": "x"}
        answer = await client.post("/detect-language", files={"file": ("a.wav", AUDIO)}, data=fields)
        assert answer.status_code == 200
        (warning,) = answer.json()["warnings"]
        assert "known_speaker_names[]" in warning
        assert "unknown" in warning


@on_a_loop
async def test_a_result_that_was_delivered_is_noted(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        headers = {"Idempotency-Key": "once"}
        for _ in range(2):
            answer = await client.post("/detect-language", files={"file": ("a.wav", AUDIO)}, headers=headers)
            assert answer.status_code == 200
        job = app.service.store.by_idempotency_keys("", ["once"]).get("once")
        assert job is not None
        await app.until(lambda: app.service.store.get(job.job_id).delivered_at)  # type: ignore[union-attr]
        app.service.cancel(job.job_id, None)
        answer = await client.post("/detect-language", files={"file": ("a.wav", AUDIO)}, headers=headers)
        inside_problem(answer, 410, "result_gone")
