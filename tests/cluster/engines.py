"""Executors for the actors of tests: the upload says what the job does."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_api.errors import Canceled, DeviceLost, InvalidAudio, ModelUnavailable
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import PartialSegments, Progress, Segment, Transcript
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor, fake_transcript
from whisper_api.voices import VoiceEmbedding

PARTS = 3


class Odd(Exception):
    """An error that cannot be unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class ScriptedEngine(FakeExecutor):
    """Each line of an upload is a command; the text of the transcript is what the last one says."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        if options.diarize:
            raise ModelUnavailable("diarize: there is no model here")

    def missing_models(self, options: TranscriptionOptions, hf_token: str | None) -> tuple[str, ...]:
        return tuple(os.environ.get("TEST_MISSING", "").split())

    def enroll(self, recordings: Sequence[bytes]) -> VoiceEmbedding:
        if b"break" in recordings:
            raise DeviceLost("the device has failed")
        return super().enroll(recordings)

    def run(
        self,
        job: Job,
        audio: Path,
        *,
        on_progress: Any,
        on_partial: Any,
        on_missing_model: Any,
        cancel: Any,
        voices: Mapping[str, VoiceEmbedding] | None = None,
    ) -> Transcript:
        if audio.stat().st_size > 1000:
            digest = hashlib.sha256()
            with audio.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            return fake_transcript(digest.hexdigest(), job.options)
        text = ""
        for line in audio.read_text().splitlines():
            command, _, argument = line.partition(" ")
            on_progress(Progress(0.5, "asr"))
            match command:
                case "sleep":
                    if cancel.wait(float(argument)):
                        raise Canceled("the job was canceled")
                case "say":
                    text = argument
                    segment = Segment(id=0, start=0.0, end=10.0, text=argument)
                    on_partial(PartialSegments(index=0, aligned=True, segments=(segment,)))
                case "where":
                    text = f"{os.getpid()}"
                case "speakers":
                    files = (audio.with_name(f"speaker-{number}") for number in range(len(job.known_speakers)))
                    text = " ".join([*(each.read_text() for each in files), *sorted(voices or {})])
                case "miss":
                    on_missing_model(argument)
                    text = f"without {argument}"
                case "fail":
                    raise InvalidAudio(argument)
                case "odd":
                    raise Odd("very", "odd")
                case "break":
                    raise DeviceLost("the device has failed")
                case "die":
                    os._exit(1)
                case "die-once":
                    mark = Path(argument)
                    if not mark.exists():
                        mark.touch()
                        os._exit(1)
                case "token":
                    text = f"{self.config.hf_token} {job.hf_token}"
                case "log":
                    time.sleep(0)
                    text = argument
        if cancel.is_set():
            raise Canceled("the job was canceled")
        return fake_transcript(text, job.options)
