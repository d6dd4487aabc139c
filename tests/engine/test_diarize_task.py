"""The task ``diarize``: who speaks when, without a Whisper model and without text."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from whisper_api import (
    Canceled,
    Engine,
    InvalidOption,
    ModelUnavailable,
    Progress,
    Transcript,
    TranscriptionOptions,
    render,
)
from whisper_api.engine.audio.decode import decode
from whisper_api.schema import SAMPLE_RATE

TURNS = TranscriptionOptions(task="diarize")

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def only_diarization(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, ecapa_path: Path) -> Path:
    """A models directory without a Whisper model."""
    directory = tmp_path_factory.mktemp("models")
    (directory / "diarization").symlink_to(models_dir / "diarization", target_is_directory=True)
    return directory


@pytest.fixture(scope="module")
def spoken(short_call: Path) -> np.ndarray:
    return decode(short_call).audio


@pytest.fixture(scope="module")
def turns(only_diarization: Path, spoken: np.ndarray) -> tuple[Transcript, list[Progress]]:
    """The result without a Whisper model, and its progress."""
    progress: list[Progress] = []
    with Engine(device="cpu", models_dir=only_diarization, offline=True) as engine:
        # Two voices at once for a second.
        both = spoken.copy()
        second = SAMPLE_RATE
        both[5 * second : 6 * second] += spoken[second : 2 * second]
        return engine.transcribe(both, TURNS, on_progress=progress.append), progress


def test_no_whisper_model_is_needed(turns: tuple[Transcript, list[Progress]]) -> None:
    transcript, progress = turns
    assert transcript.speakers == ("SPEAKER_00", "SPEAKER_01")
    assert (transcript.segments, transcript.text, transcript.language) == ((), "", "")
    assert (transcript.model, transcript.model_revision) == ("", None)
    assert transcript.diarization_model == "pyannote segmentation, CAM++"
    assert set(transcript.timings) == {"decode", "vad", "diarize"}
    assert [each.stage for each in progress][-1] == "done"
    assert {each.stage for each in progress} == {"decode", "vad", "diarize", "done"}
    assert [each.fraction for each in progress] == sorted(each.fraction for each in progress)


def test_turns_are_in_order_and_survive_json(turns: tuple[Transcript, list[Progress]]) -> None:
    transcript, _ = turns
    assert [turn.start for turn in transcript.turns] == sorted(turn.start for turn in transcript.turns)
    assert all(0 <= turn.start < turn.end <= transcript.duration for turn in transcript.turns)
    assert Transcript.from_json(transcript.to_json()) == transcript
    assert len(render(transcript, "rttm").splitlines()) == len(transcript.turns)


def test_a_transcript_has_the_same_turns_and_its_rttm_has_them_too(
    engine: Engine, spoken: np.ndarray, ecapa_path: Path
) -> None:
    alone = engine.transcribe(spoken, TURNS)
    told = engine.transcribe(spoken, TranscriptionOptions(language="en", align=False, diarize=True))
    assert told.segments
    assert told.turns == alone.turns
    assert render(told, "rttm") == render(alone, "rttm")


def test_silence_has_no_turns(engine: Engine, ecapa_path: Path) -> None:
    silent = engine.transcribe(np.zeros(3 * SAMPLE_RATE, np.float32), TURNS)
    assert (silent.turns, silent.speakers, silent.diarization_model) == ((), (), None)
    assert render(silent, "txt") == ""


def test_without_a_model_the_job_fails_and_can_be_canceled(
    tmp_path: Path, engine: Engine, spoken: np.ndarray, ecapa_path: Path
) -> None:
    with (
        Engine(device="cpu", models_dir=tmp_path, offline=True) as bare,
        pytest.raises(ModelUnavailable, match=r"campplus|segmentation"),
    ):
        bare.transcribe(spoken, TURNS)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Canceled):
        engine.transcribe(spoken, TURNS, cancel=cancel)
    with pytest.raises(InvalidOption, match="leave diarize out"):
        TranscriptionOptions(task="diarize", diarize=False)
