"""The conversations that diarization is measured on: the same ones each time, and their truth is true."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import conversations

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def voices() -> dict[str, list[Floats]]:
    """Two voices: buzzes of different pitch, in phrases of one second."""
    time = np.arange(16_000) / 16_000
    return {
        name: [np.asarray(0.1 * np.sign(np.sin(2 * np.pi * hertz * time)), dtype=np.float32)] * 5
        for name, hertz in (("high", 220), ("low", 110))
    }


def test_the_same_conversations_come_out_each_time(voices: dict[str, list[Floats]], tmp_path: Path) -> None:
    contents = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        made = list(conversations.write(voices, tmp_path / run))
        assert [name for name, _, _ in made] == [c.name for c in conversations.CONVERSATIONS if c.speakers <= 2]
        contents.append([path.read_bytes() for _, wav, rttm in made for path in (wav, rttm)])
    assert contents[0] == contents[1]


def test_there_is_sound_where_somebody_speaks_and_nowhere_else(voices: dict[str, list[Floats]], tmp_path: Path) -> None:
    for name, wav, rttm in conversations.write(voices, tmp_path):
        with wave.open(str(wav)) as file:
            audio = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
        spoken = np.zeros(len(audio), dtype=np.bool_)
        lines = [line.split() for line in rttm.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            start = float(line[3]) - 0.04
            spoken[max(0, round(start * 16_000)) : round((start + float(line[4]) + 0.08) * 16_000)] = True
        assert len({line[7] for line in lines}) == 2
        assert np.square(audio[spoken]).mean() > 100 * np.square(audio[~spoken]).mean(), name


def test_the_pitch_of_a_voice_is_heard(voices: dict[str, list[Floats]]) -> None:
    assert conversations.pitch(voices["low"]) == pytest.approx(110, rel=0.05)
    assert conversations.pitch(voices["high"]) == pytest.approx(220, rel=0.05)
