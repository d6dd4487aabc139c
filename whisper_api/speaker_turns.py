"""Turns of speakers: their forms for the formats of the task ``diarize``, and for RTTM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from msgspec.structs import replace

from whisper_api.schema import Segment, Turn

# Shorter stretches are left out, as no subtitle may be shorter.
MIN_SECONDS = 1e-3


def joined_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Turns in order of their starts, with those of one speaker joined that overlap or touch."""
    found: list[Turn] = []
    last: dict[str, int] = {}
    for turn in sorted(turns, key=lambda turn: (turn.start, turn.end)):
        number = last.get(turn.speaker)
        if number is not None and turn.start <= found[number].end:
            found[number] = replace(found[number], end=max(found[number].end, turn.end))
        else:
            last[turn.speaker] = len(found)
            found.append(turn)
    return tuple(found)


def rttm(turns: Iterable[Turn]) -> str:
    """Turns as SPEAKER lines of NIST's Rich Transcription Time Marked format.

    The file is named ``audio``. Its channels are counted from 1, and the mix is channel 1.
    """
    lines = []
    for turn in turns:
        milliseconds = round(1000 * turn.start)
        times = f"{milliseconds / 1000:.3f} {(round(1000 * turn.end) - milliseconds) / 1000:.3f}"
        channel = 1 if turn.channel is None else 1 + turn.channel
        lines.append(f"SPEAKER audio {channel} {times} <NA> <NA> {'_'.join(turn.speaker.split())} <NA> <NA>\n")
    return "".join(lines)


def turn_lines(turns: Iterable[Turn]) -> str:
    """A line for each turn: start and end in seconds, and the speaker."""
    return "".join(f"{turn.start:.3f} {turn.end:.3f} {turn.speaker}\n" for turn in turns)


def turn_segments(turns: Sequence[Turn]) -> tuple[Segment, ...]:
    """Segments whose texts are the speakers' labels. Where people talk at once, a segment has all their labels.

    Segments do not overlap, because formats with subtitles have one text at a time.
    """
    return tuple(
        Segment(id=number, start=start, end=end, text=", ".join(speakers))
        for number, (start, end, speakers) in enumerate(stretches(turns))
    )


def stretches(turns: Sequence[Turn]) -> list[tuple[float, float, tuple[str, ...]]]:
    """The stretches in which the same people speak: start and end in seconds, and who speaks; no silence."""
    borders = sorted({time for turn in turns for time in (turn.start, turn.end)})
    number_of = {time: number for number, time in enumerate(borders)}
    begins: list[list[str]] = [[] for _ in borders]
    ends: list[list[str]] = [[] for _ in borders]
    for turn in turns:
        begins[number_of[turn.start]].append(turn.speaker)
        ends[number_of[turn.end]].append(turn.speaker)
    found: list[tuple[float, float, tuple[str, ...]]] = []
    speaking: list[str] = []
    for number, (start, end) in enumerate(pairwise(borders)):
        for speaker in ends[number]:
            speaking.remove(speaker)
        speaking += begins[number]
        speakers = tuple(dict.fromkeys(speaking))
        if found and found[-1][1:] == (start, speakers):
            found[-1] = (found[-1][0], end, speakers)
        elif speakers and end - start >= MIN_SECONDS:
            found.append((start, end, speakers))
    return found
