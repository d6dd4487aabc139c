"""Channels as speakers: each is recognized by itself, and nobody's words appear twice or get lost."""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from stereo import Signal, leaked, wav

from whisper_api import Engine, InvalidOption, Progress, Segment, Transcript, TranscriptionOptions, render
from whisper_api.engine.audio.decode import decode
from whisper_api.formats import FORMATS
from whisper_api.schema import PartialSegments

pytestmark = pytest.mark.models

RATE = 16_000
# By the call's .rttm: when each of the two speaks alone, in seconds.
DIANE = ((12.5, 14.35), (18.7, 21.6))
SHEILA = ((14.6, 17.85),)
BEGIN, END = 12.3, 22.0
# Words that each of them says once.
ONCE = (("Diane", "Also", "Now", "Chicago"), ("Sheila", "Chicago"))
QUICK = TranscriptionOptions(language="en", align=False)
SEPARATE = TranscriptionOptions(language="en", align=False, channels="separate")


def room(samples: int, seed: int) -> Signal:
    return (10 ** (-65 / 20) * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def sides(sample_call: Path) -> tuple[Signal, Signal]:
    """The call with each of the two people on a channel of their own."""
    call = decode(sample_call).audio
    found = []
    for spans in (DIANE, SHEILA):
        side = np.zeros_like(call)
        for start, end in spans:
            side[int(start * RATE) : int(end * RATE)] = call[int(start * RATE) : int(end * RATE)]
        found.append(side[int(BEGIN * RATE) : int(END * RATE)])
    return found[0], found[1]


@pytest.fixture(scope="module")
def phrase(sides: tuple[Signal, Signal]) -> Signal:
    """Two seconds in which one person speaks."""
    return sides[0][: int(2.1 * RATE)]


@pytest.fixture(scope="module")
def alone(engine: Engine, sides: tuple[Signal, Signal]) -> tuple[str, str]:
    """What each of the two says, recognized from a file of that person alone."""
    left, right = (said(engine.transcribe(wav([side]), SEPARATE).segments) for side in sides)
    assert "Diane" in left
    assert "Chicago" in right
    return left, right


def said(segments: tuple[Segment, ...], channel: int | None = None) -> str:
    found = [segment.text for segment in segments if channel is None or segment.channel == channel]
    return " ".join("".join(c for c in " ".join(found).lower() if c.isalnum() or c == " ").split()).title()


def without_options(transcript: Transcript) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    return transcript.segments, transcript.speakers


def test_the_words_of_each_channel_are_those_of_its_voice(
    engine: Engine, sides: tuple[Signal, Signal], alone: tuple[str, str]
) -> None:
    """Also where each channel hears the other one, 25 dB quieter and a little later."""
    left, right = (
        own + leaked(other, -25.0, 0.015) + room(len(own), number)
        for number, (own, other) in enumerate((sides, sides[::-1]))
    )
    partials: list[PartialSegments] = []
    progress: list[Progress] = []
    used = engine.audio_memory.used
    options = TranscriptionOptions(language="en", channels="separate")
    found = engine.transcribe(wav([left, right]), options, on_partial=partials.append, on_progress=progress.append)
    for channel in (0, 1):
        words = said(found.segments, channel).split()
        assert SequenceMatcher(None, words, alone[channel].split(), autojunk=False).ratio() > 0.6
        assert abs(len(words) - len(alone[channel].split())) <= 1
        assert [words.count(word) for word in ONCE[channel]] == [1] * len(ONCE[channel])
        assert not set(words) & set(ONCE[1 - channel]) - set(ONCE[channel])
    assert found.channels == (0, 1)
    assert set(found.speakers) == {"SPEAKER_00", "SPEAKER_01"}
    assert found.diarization_model is None
    assert sum("crosstalk" in warning for warning in found.warnings) == 2
    for segment in found.segments:
        assert segment.speaker == f"SPEAKER_{segment.channel:02d}"
        assert {(word.channel, word.speaker) for word in segment.words} == {(segment.channel, segment.speaker)}
        assert 0 <= segment.start < segment.end <= found.duration
    assert [segment.id for segment in found.segments] == list(range(len(found.segments)))
    assert all(a.start <= b.start for a, b in pairwise(found.segments))
    for channel in (0, 1):
        times = [(word.start, word.end) for word in found.words if word.channel == channel]
        assert all(a[1] <= b[0] for a, b in pairwise(times))
    # Live text has the same channels and times, in order of time.
    last = {partial.index: partial for partial in partials}
    live = [segment for index in sorted(last) for segment in last[index].segments]
    assert sorted((s.channel, s.start, s.text) for s in live) == sorted(
        (s.channel, s.start, s.text) for s in found.segments
    )
    assert [last[index].segments[0].start for index in sorted(last)] == sorted(
        partial.segments[0].start for partial in last.values()
    )
    assert all(a.fraction <= b.fraction for a, b in pairwise(progress))
    assert all(render(found, format) for format in FORMATS)
    assert Transcript.from_json(found.to_json()) == found
    del found
    assert engine.audio_memory.used == used


def test_people_may_talk_at_once(engine: Engine, sides: tuple[Signal, Signal], alone: tuple[str, str]) -> None:
    """``auto`` separates them too, as they have nothing in common."""
    left, right = sides
    # Sheila's words begin with Diane's.
    right = np.roll(right, -int(2.0 * RATE))
    for channels in ("separate", "auto"):
        options = TranscriptionOptions(language="en", align=False, channels=channels, diarize=False)
        found = engine.transcribe(wav([left, right]), options)
        assert (said(found.segments, 0), said(found.segments, 1)) == alone
        first, second = (next(s for s in found.segments if s.channel == channel) for channel in (0, 1))
        assert second.start < first.end
        assert found.speakers == ()
        assert not found.warnings


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.3])
def test_a_copy_is_named_and_not_recognized_again(engine: Engine, phrase: Signal, factor: float) -> None:
    """The rest is as with one channel, which may have several speakers."""
    file = wav([phrase, np.float32(factor) * phrase])
    found = engine.transcribe(
        file, TranscriptionOptions(language="en", align=False, channels="separate", diarize=False)
    )
    mixed = engine.transcribe(file, TranscriptionOptions(language="en", align=False, diarize=False))
    assert found.segments == mixed.segments
    assert found.channels == ()
    assert any(warning.startswith("channel 1") and "not recognized again" in warning for warning in found.warnings)
    assert ("phase-inverted" in " ".join(found.warnings)) == (factor < 0)


def test_each_of_eight_channels_is_heard_or_named(engine: Engine, phrase: Signal, sides: tuple[Signal, Signal]) -> None:
    silent = np.zeros_like(phrase)
    other = sides[1][int(3.2 * RATE) :][: len(phrase)]
    channels = [silent, phrase, silent, -phrase, other, 0.5 * other, room(len(phrase), 1), silent]
    found = engine.transcribe(wav(channels), SEPARATE)
    assert found.channels == (1, 4, 6)
    assert found.speakers == ("SPEAKER_01", "SPEAKER_04")
    assert "Diane" in said(found.segments, 1)
    assert "Chicago" in said(found.segments, 4)
    for number, what in enumerate(
        ["silent", "", "silent", "inverted", "", "sound of channel 4", "no speech", "silent"]
    ):
        told = [warning for warning in found.warnings if warning.startswith(f"channel {number} ")]
        assert len(told) == bool(what)
        assert all(what in warning for warning in told)


def test_more_than_eight_channels_cannot_be_separated(engine: Engine, phrase: Signal) -> None:
    file = wav([phrase] * 9)
    with pytest.raises(InvalidOption, match="channels: the file has 9 channels; separate takes up to 8"):
        engine.transcribe(file, SEPARATE)
    found = engine.transcribe(file, TranscriptionOptions(language="en", align=False, channels="auto", diarize=False))
    assert "Diane" in said(found.segments)
    assert found.warnings == ("the channels were mixed: 9 are more than the 8 that auto takes",)


def test_auto_separates_only_what_surely_is_separate(engine: Engine, sides: tuple[Signal, Signal]) -> None:
    """Recordings of one voice, of one room, or with panned voices have the same result as with ``mix``."""
    left, right = (side[: int(4.2 * RATE)] for side in sides)
    unlike = {
        "one voice on one side": [left, room(len(left), 1)],
        "two microphones": [left + leaked(right, -1.0, 0.004), leaked(left, -2.0, 0.005) + right],
        "panned": [left + leaked(right, -7.0, 0.0), right + leaked(left, -7.0, 0.0)],
    }
    for name, channels in unlike.items():
        file = wav(channels)
        auto, mix = (
            engine.transcribe(file, TranscriptionOptions(language="en", align=False, channels=how, diarize=False))
            for how in ("auto", "mix")
        )
        assert (name, auto.segments) == (name, mix.segments)
        assert (name, auto.warnings) == (name, mix.warnings)
        assert auto.channels == ()


def test_one_channel_is_transcribed_as_ever(engine: Engine, phrase: Signal) -> None:
    found, mixed = (engine.transcribe(wav([phrase]), options) for options in (SEPARATE, QUICK))
    assert (found.segments, found.speakers) == (mixed.segments, mixed.speakers)
    assert found.channels == ()
    assert "the channels were not separated: the recording has one channel" in found.warnings


def test_known_voices_name_the_channels(engine: Engine, sides: tuple[Signal, Signal], ecapa_path: Path) -> None:
    left, right = (side[: int(5.0 * RATE)] for side in sides)
    options = TranscriptionOptions(
        language="en",
        align=False,
        channels="separate",
        speaker_embeddings=True,
        num_speakers=1,
        # Over a telephone, so little speech does not reach the threshold of the model.
        identify_threshold=0.6,
    )
    known = {"Diane": sides[0][int(6.0 * RATE) :]}
    found = engine.transcribe(wav([right, left]), options, known_speakers=known)
    assert set(found.speakers) == {"SPEAKER_00", "Diane"}
    assert {segment.channel for segment in found.segments if segment.speaker == "Diane"} == {1}
    assert found.speaker_embeddings is not None
    assert set(found.speaker_embeddings) == set(found.speakers)
    assert "the number of speakers was not used: each of the separate channels is one speaker" in found.warnings


def test_redactions_have_the_channel_and_the_time_of_their_words(engine: Engine, sides: tuple[Signal, Signal]) -> None:
    options = TranscriptionOptions(language="en", channels="separate", redact="names")
    partials: list[PartialSegments] = []
    found = engine.transcribe(wav(list(sides)), options, on_partial=partials.append)
    marked = {(word.start, word.end, word.channel) for word in found.words if "[NAME]" in word.word}
    assert {channel for _, _, channel in marked} == {0, 1}
    assert {(each.start, each.end, each.channel) for each in found.redactions} == marked
    shown = [segment for partial in partials for segment in partial.segments]
    assert shown
    assert all(0 <= segment.start < segment.end <= found.duration for segment in shown)
