"""Runs single jobs on an executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whisper_api.jobs.executor import Executor
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import PartialSegments, Progress, Transcript
from whisper_api.store.rows import Job

DEADLINE = 240.0


class Watched:
    """A job, and what its executor has reported."""

    def __init__(
        self,
        executor: Executor,
        audio: Path,
        options: TranscriptionOptions | None = None,
        *,
        missing: Callable[[str], None] = lambda name: None,
        **fields: Any,
    ) -> None:
        self.executor = executor
        self.audio = audio
        self.missing = missing
        self.voices = fields.pop("voices", None)
        values = {"audio_seconds": 10.0, "job_id": "a", **fields}
        self.job = Job(
            owner="",
            options=options or TranscriptionOptions(language="en"),
            output_format="txt",
            audio_bytes=audio.stat().st_size,
            created_at=0.0,
            **values,
        )
        self.cancel = threading.Event()
        self.progress: list[Progress] = []
        self.partial: list[PartialSegments] = []
        self.transcript: Transcript | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def run(self) -> Transcript:
        return self.executor.run(
            self.job,
            self.audio,
            on_progress=self.progress.append,
            on_partial=self.partial.append,
            on_missing_model=self.missing,
            cancel=self.cancel,
            voices=self.voices,
        )

    def start(self) -> Watched:
        """Run the job in a thread."""
        self._thread.start()
        return self

    def end(self) -> Watched:
        """Wait for its end."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self

    def _run(self) -> None:
        try:
            self.transcript = self.run()
        except BaseException as error:
            self.error = error


def script(directory: Path, *lines: str) -> Path:
    """An upload with commands."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "audio"
    path.write_text("\n".join(lines))
    return path
