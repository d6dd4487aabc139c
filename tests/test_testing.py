"""The fake executor that the package ships for programs that embed the server."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fakes import config_in
from server.inside import AUDIO
from starlette.testclient import TestClient

from whisper_api import create_app
from whisper_api.errors import Canceled, EngineClosed
from whisper_api.jobs.executor import Executor
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Transcript
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor


def transcribe(client: TestClient) -> str:
    answer = client.post("/transcribe", data={"sync": "true"}, files={"file": ("a.wav", AUDIO)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["text"])


def test_an_embedded_server_answers_with_the_text_of_its_fake(tmp_path: Path) -> None:
    executor = FakeExecutor("Hello.")
    app = create_app(config_in(tmp_path, enable_authorization=False), executor=executor)
    with TestClient(app, base_url="http://127.0.0.1:8181") as client:
        assert transcribe(client).strip() == "Hello."
    assert len(executor.started) == 1
    assert executor.closed


def test_a_transcript_without_a_text_shows_its_upload(tmp_path: Path) -> None:
    app = create_app(config_in(tmp_path, enable_authorization=False), executor=FakeExecutor())
    with TestClient(app, base_url="http://127.0.0.1:8181") as client:
        assert "WAVEfmt" in transcribe(client)


def job(name: str) -> Job:
    options = TranscriptionOptions(model="base")
    return Job(job_id=name, owner="", options=options, output_format="txt", audio_bytes=1, created_at=0.0)


def run(executor: Executor, job: Job, directory: Path, cancel: threading.Event) -> Transcript:
    def ignore(event: object) -> None: ...

    return executor.run(
        job,
        directory / "audio",
        on_progress=ignore,
        on_partial=ignore,
        on_missing_model=ignore,
        cancel=cancel,
    )


def test_a_held_job_ends_when_it_is_released_or_canceled(tmp_path: Path) -> None:
    fake = FakeExecutor("text", held=True)
    fake.release("job")
    cancel = threading.Event()
    transcript = run(fake, job("job"), tmp_path, cancel)
    assert (transcript.text, transcript.model, transcript.options) == ("text", "base", job("job").options)
    cancel.set()
    with pytest.raises(Canceled):
        run(fake, job("another"), tmp_path, cancel)
    assert (fake.started, fake.active, fake.most_active) == (["job", "another"], 0, 1)


def test_a_closed_fake_says_that_it_was_used() -> None:
    executor = FakeExecutor()
    executor.close()
    with pytest.raises(EngineClosed):
        executor.preload()
    assert executor.used_after_close
