"""Redaction over REST and OpenAI's routes: no name that was said is in any answer, nor in the server's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from server.conftest import Start
from server.harness import PLAIN_FIELDS, RunningServer, finish, post, problem, submit
from whisper_api import Client, TranscriptionOptions
from whisper_api.formats import FORMATS

NAMES = ("Diane", "Sheila")
FIELDS = {"model": "base", "language": "en", "redact": "names", "align": "true"}


@pytest.fixture(scope="module")
def named(cut: Callable[[float, float], bytes]) -> bytes:
    """Five seconds: This is Diane in New Jersey. And I'm Sheila and Texas originally from Chicago."""
    return cut(12.4, 5.3)


def hidden(text: str) -> bool:
    return not any(name.lower() in text.lower() for name in NAMES)


def test_no_answer_and_no_file_has_a_name(start_server: Start, named: bytes) -> None:
    server = start_server()
    with server.client() as client:
        job_id = submit(client, named, **FIELDS, logprobs="true", keep_result="true", prompt="Hello.")
        with client.stream("GET", f"/transcription/{job_id}/events") as response:
            events = response.read().decode()
        assert hidden(events)
        assert "[NAME]" in events
        finish(client, job_id)
        result = client.get(f"/transcription/{job_id}/result")
        assert hidden(result.text)
        found = result.json()
        assert "[NAME]" in found["text"]
        assert "Jersey" in found["text"]
        words = [word for segment in found["segments"] for word in segment["words"]]
        marked = [(word["start"], word["end"]) for word in words if "[NAME]" in word["word"]]
        assert [(each["start"], each["end"]) for each in found["redactions"]] == marked
        assert {each["kind"] for each in found["redactions"]} == {"names"}
        for format in FORMATS:
            assert hidden(client.get(f"/transcription/{job_id}/result", params={"format": format}).text)
        assert hidden(client.get(f"/transcription/{job_id}").text)
        assert hidden(client.get("/transcriptions").text)
    assert hidden(server.log)
    for file in server.data_dir.rglob("*"):
        if file.is_file():
            assert hidden(file.read_bytes().decode("utf-8", "replace")), file


def test_openais_routes(client: httpx.Client, named: bytes) -> None:
    def ask(**fields: str) -> str:
        data = {"model": "base", "language": "en", "redact": "names", **fields}
        response = client.post("/v1/audio/transcriptions", data=data, files={"file": ("a.wav", named)})
        assert response.status_code == 200, response.text
        assert hidden(response.text)
        assert "NAME" in response.text
        return response.text

    assert json.loads(ask(**{"include[]": "logprobs"}))["logprobs"] == []
    for format in ("text", "srt", "vtt", "verbose_json"):
        ask(response_format=format)
    events = [json.loads(line[6:]) for line in ask(stream="true").splitlines() if line.startswith("data: ")]
    deltas = "".join(event["delta"] for event in events if event["type"] == "transcript.text.delta")
    assert deltas == events[-1]["text"]


def test_an_unknown_kind_is_refused(client: httpx.Client, named: bytes) -> None:
    body = problem(post(client, named, redact="names,shoes"), 400, "invalid_field")
    assert "unknown kind 'shoes'; there are names, emails" in body["detail"]
    refused = client.post("/v1/audio/transcriptions", data={"redact": "shoes"}, files={"file": ("a.wav", named)})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "redact")


def test_without_redact_the_result_has_no_redactions(client: httpx.Client, hello: bytes) -> None:
    response = post(client, hello, sync="true")
    assert "redactions" not in response.json()
    assert "redact" not in PLAIN_FIELDS


def test_the_client_asks_for_redaction(server: RunningServer, named: bytes, tmp_path: Path) -> None:
    with Client(server.url, server.user_key) as client:
        options = TranscriptionOptions(model="base", language="en", align=False, diarize=False, redact="names")
        (tmp_path / "named.wav").write_bytes(named)
        result = client.transcribe(tmp_path / "named.wav", options)
    assert hidden(result.to_json())
    assert result.redactions
    assert [each.kind for each in result.redactions] == ["names"] * result.text.count("[NAME]")
