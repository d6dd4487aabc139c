"""The task that only detects the language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api import Engine, Progress, TranscriptionOptions, render

pytestmark = pytest.mark.models

DETECT = TranscriptionOptions(task="detect_language")


def test_detection_gives_the_language_without_a_text(
    engine: Engine, sample_call: Path, monkeypatch: pytest.MonkeyPatch, decode_operation: type[Any]
) -> None:
    def refuse(self: Any, inputs: object) -> object:
        raise AssertionError("nothing is to be decoded")

    monkeypatch.setattr(decode_operation, "run", refuse)
    seen: list[Progress] = []
    # The spoken language is detected, whichever language the options name.
    options = TranscriptionOptions(task="detect_language", language="fr")
    transcript = engine.transcribe(sample_call, options, on_progress=seen.append)
    assert transcript.language == "en"
    assert transcript.segments == ()
    assert transcript.speakers == ()
    assert transcript.model == "base"
    assert transcript.duration == pytest.approx(30.0, abs=0.01)
    assert transcript.warnings == ()
    probabilities = transcript.language_probabilities
    assert probabilities is not None
    assert transcript.language_probability == probabilities["en"] > 0.9
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
    assert sum(probabilities.values()) == pytest.approx(1.0, abs=0.01)
    assert len(probabilities) > 90
    assert [progress.stage for progress in seen][-1] == "done"
    assert {progress.stage for progress in seen} == {"decode", "load", "vad", "asr", "done"}
    assert render(transcript, "txt") == f"en {probabilities['en']:.2f}\n"
    assert render(transcript, "srt") == ""


def test_a_model_of_english_alone_says_so(engine: Engine, tiny_en_model_dir: Path, sample_call: Path) -> None:
    transcript = engine.transcribe(sample_call, TranscriptionOptions(task="detect_language", model="tiny.en"))
    assert transcript.language == "en"
    assert transcript.language_probabilities == {"en": 1.0}
    assert any("English only" in warning for warning in transcript.warnings)


@pytest.mark.parametrize(("asked", "language"), [("fr", "fr"), ("auto", "en")])
def test_silence_has_no_language(engine: Engine, asked: str, language: str) -> None:
    silence = np.zeros(3 * 16_000, np.float32)
    transcript = engine.transcribe(silence, TranscriptionOptions(task="detect_language", language=asked))
    assert transcript.language == language
    assert transcript.language_probability is None
    assert transcript.language_probabilities == {}
    assert any("nobody speaks" in warning for warning in transcript.warnings)
    assert render(transcript, "txt") == f"{language}\n"


def test_other_tasks_have_no_language_probabilities(engine: Engine, sample_call: Path) -> None:
    transcript = engine.transcribe(sample_call, TranscriptionOptions(align=False, diarize=False))
    assert transcript.language_probabilities is None
