"""Silero's probabilities do not depend on how many threads compute them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api.engine import silero
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.silero import CHUNK, SILERO_FRAME, silero_probabilities

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    return decode(sample_call.read_bytes()).audio


@pytest.fixture(scope="module")
def recordings(call: Floats) -> dict[str, Floats]:
    """Speech with pauses, without any, with digital silence, and only noise; of lengths that no chunk divides."""
    speech, random = call[round(6.4 * RATE) :], np.random.default_rng(0)

    def room(seconds: float) -> Floats:
        return random.normal(0, 1e-3, round(seconds * RATE)).astype(np.float32)

    def silence(seconds: float) -> Floats:
        return np.zeros(round(seconds * RATE), np.float32)

    return {
        "pauses": np.concatenate(
            [speech, room(3.1), speech, room(7.7), speech[: 9 * RATE], room(4.3), speech, room(2)]
        ),
        "no pauses": np.concatenate([speech[: 9 * RATE]] * 6),
        "one pause": np.concatenate([*[speech[: 9 * RATE]] * 5, room(5), *[speech[: 9 * RATE]] * 2]),
        "digital silence": np.concatenate([silence(20), speech, silence(11), speech, silence(1), speech, silence(40)]),
        "noise": room(61.7),
    }


@pytest.mark.parametrize("kind", ["pauses", "no pauses", "one pause", "digital silence", "noise"])
def test_any_number_of_threads_gives_the_same_to_the_last_bit(recordings: dict[str, Floats], kind: str) -> None:
    audio = recordings[kind]
    alone = silero_probabilities(audio, threads=1)
    assert len(alone) == -(-len(audio) // SILERO_FRAME)
    for threads in (2, 5) if kind == "pauses" else (3,):
        assert np.array_equal(silero_probabilities(audio, threads=threads), alone)


def test_threads_do_little_twice_where_there_are_pauses(
    recordings: dict[str, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a part reads of the next one ends with the first pause after speech."""
    session, frames = silero.silero_session(), []

    class Counted:
        def run(self, names: Any, inputs: Any) -> Any:
            frames.append(len(inputs["input"]))
            return session.run(names, inputs)

    monkeypatch.setattr(silero, "silero_session", Counted)
    audio = recordings["pauses"]
    silero_probabilities(audio, threads=1)
    alone = sum(frames)
    frames.clear()
    silero_probabilities(audio, threads=2)
    assert alone < sum(frames) < 1.5 * alone


def test_short_recordings_start_no_threads(recordings: dict[str, Floats], monkeypatch: pytest.MonkeyPatch) -> None:
    audio, start = recordings["pauses"], threading.Thread.start
    started: list[threading.Thread] = []

    def counted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    monkeypatch.setattr(silero, "physical_cores", lambda: 4)
    silero_probabilities(audio)
    assert not started
    monkeypatch.setattr(silero, "LEAST_CHUNKS", -(-len(audio) // SILERO_FRAME) // CHUNK // 3)
    silero_probabilities(audio)
    assert 1 < len(started) <= 3


def test_a_canceled_job_ends_the_threads(recordings: dict[str, Floats], monkeypatch: pytest.MonkeyPatch) -> None:
    class CanceledError(Exception):
        pass

    asked: list[float] = []

    def cancel(done: float) -> None:
        asked.append(done)
        raise CanceledError

    monkeypatch.setattr(silero, "REPORT_SECONDS", 0.001)
    before = set(threading.enumerate())
    with pytest.raises(CanceledError):
        silero_probabilities(np.tile(recordings["noise"], 20), cancel, threads=3)
    # Threads of earlier tests may end meanwhile.
    assert not set(threading.enumerate()) - before
    assert len(asked) == 1
    assert asked[0] < 0.5


def test_progress_rises_to_the_end(recordings: dict[str, Floats], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "REPORT_SECONDS", 0.001)
    for threads in (1, 2):
        told: list[float] = []
        silero_probabilities(np.tile(recordings["noise"], 2), told.append, threads=threads)
        assert told == sorted(told)
        assert all(0.0 <= each <= 1.0 for each in told)
        assert len(told) > 1
