"""Turns: joined, as stretches, and in the formats of the task ``diarize``."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from whisper_api import Transcript, TranscriptionOptions, Turn, render
from whisper_api.formats import FORMATS
from whisper_api.speaker_turns import joined_turns, stretches, turn_segments

SPEAKERS = ("SPEAKER_00", "SPEAKER_01", "Ada Lovelace")


@st.composite
def turn_lists(draw: st.DrawFn) -> list[Turn]:
    """Turns on a grid of tenths of a second; those of one speaker may overlap too."""
    starts = draw(st.lists(st.integers(0, 100), max_size=12))
    return [
        Turn(start / 10, (start + draw(st.integers(1, 40))) / 10, draw(st.sampled_from(SPEAKERS))) for start in starts
    ]


def speaking(turns: list[Turn], time: float) -> set[str]:
    return {turn.speaker for turn in turns if turn.start <= time < turn.end}


TIMES = [tenth / 10 + 0.05 for tenth in range(150)]


@given(turn_lists())
def test_at_every_time_the_same_people_speak(turns: list[Turn]) -> None:
    joined = joined_turns(turns)
    parts = stretches(turns)
    assert all(before[1] <= after[0] for before, after in pairwise(parts))
    assert [turn.start for turn in joined] == sorted(turn.start for turn in joined)
    for time in TIMES:
        now = speaking(turns, time)
        assert speaking(list(joined), time) == now
        assert {name for start, end, names in parts if start <= time < end for name in names} == now
    for speaker in SPEAKERS:
        own = [turn for turn in joined if turn.speaker == speaker]
        assert all(before.end < after.start for before, after in pairwise(own))
    assert [segment.id for segment in turn_segments(turns)] == list(range(len(parts)))


def diarized(*turns: Turn) -> Transcript:
    options = TranscriptionOptions(task="diarize")
    return Transcript(language="", duration=10.0, segments=(), model="", options=options, turns=turns)


def test_every_format_shows_who_speaks_and_overlap_has_two() -> None:
    transcript = diarized(Turn(0.5, 4.0, "SPEAKER_00"), Turn(3.0, 6.25, "Ada Lovelace"))
    assert render(transcript, "txt") == "0.500 4.000 SPEAKER_00\n3.000 6.250 Ada Lovelace\n" == render(transcript, "md")
    assert render(transcript, "rttm") == (
        "SPEAKER audio 1 0.500 3.500 <NA> <NA> SPEAKER_00 <NA> <NA>\n"
        "SPEAKER audio 1 3.000 3.250 <NA> <NA> Ada_Lovelace <NA> <NA>\n"
    )
    assert json.loads(render(transcript, "json"))["turns"][1] == {
        "start": 3.0,
        "end": 6.25,
        "speaker": "Ada Lovelace",
    }
    assert "00:00:03,000 --> 00:00:04,000\nSPEAKER_00, Ada Lovelace\n" in render(transcript, "srt")
    assert "00:04.000 --> 00:06.250\nAda Lovelace\n" in render(transcript, "vtt")
    assert render(transcript, "tsv").splitlines()[2] == "3000\t4000\tSPEAKER_00, Ada Lovelace"
    for name in FORMATS:
        assert "SPEAKER_00" in render(transcript, name)
        assert "SPEAKER" not in render(diarized(), name).replace("[SPEAKER", "")


def test_json_of_a_transcript_has_no_turns_since_whisperx_has_none() -> None:
    options = TranscriptionOptions()
    transcript = Transcript(
        language="en", duration=1.0, segments=(), model="base", options=options, turns=(Turn(0.0, 1.0, "A"),)
    )
    assert "turns" not in json.loads(render(transcript, "json"))
    assert render(transcript, "rttm").startswith("SPEAKER audio 1 0.000 1.000")
