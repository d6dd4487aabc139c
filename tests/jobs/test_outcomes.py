"""The errors and outcomes of jobs that clients see."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisper_api.errors import InvalidAudio
from whisper_api.job_values import JobCanceledEvent, JobCompletedEvent, JobFailedEvent, JobProgressEvent, JobQueuedEvent
from whisper_api.jobs.events import event_of
from whisper_api.jobs.outcomes import MAX_ERROR_LENGTH, failure_of
from whisper_api.jobs.retention import remove_upload
from whisper_api.options import TranscriptionOptions
from whisper_api.store.rows import Job


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot open /srv/models/base/model.bin", "cannot open model.bin"),
        ("'/srv/models/base': not found", "'base': not found"),
        ("[Errno 2] No such file: '/home/me/a b'", "[Errno 2] No such file: 'a b'"),
        (r"cannot open C:\models\base\model.bin", "cannot open model.bin"),
        ("copy the files to /srv/m/whisper/base.", "copy the files to base."),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("model hub (Systran/faster-whisper-base)", "model hub (Systran/faster-whisper-base)"),
        ("3/4 of it, and/or 1/2", "3/4 of it, and/or 1/2"),
        ("two\nlines\t and  space", "two lines and space"),
    ],
)
def test_errors_are_told_in_one_line_and_without_paths(text: str, told: str) -> None:
    assert failure_of(ValueError(text)).error == told


def test_errors_have_a_name_and_are_never_empty_or_endless() -> None:
    assert failure_of(InvalidAudio("no sound")).error_name == "InvalidAudio"
    assert failure_of(MemoryError()).error == "MemoryError"
    assert len(failure_of(ValueError("x" * 10_000)).error) == MAX_ERROR_LENGTH


def test_every_state_is_an_event() -> None:
    def job(**fields: object) -> Job:
        values = {"job_id": "a", "owner": "", "output_format": "txt", "audio_bytes": 1, "created_at": 0.0, **fields}
        return Job(options=TranscriptionOptions(), **values)  # type: ignore[arg-type]

    assert event_of(job(), 3) == JobQueuedEvent(job_id="a", queue_position=3)
    assert event_of(job(state="Processing")) == JobProgressEvent(job_id="a", progress=0.0, stage="load")
    assert event_of(job(state="Completed")) == JobCompletedEvent(job_id="a")
    assert event_of(job(state="Failed", error="x")) == JobFailedEvent(job_id="a", error="x")
    assert event_of(job(state="Canceled")) == JobCanceledEvent(job_id="a")


def test_an_upload_is_removed_whatever_is_left_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "audio").write_text("x")
    remove_upload(tmp_path, "a")
    remove_upload(tmp_path, "a")
    assert not list(tmp_path.iterdir())
