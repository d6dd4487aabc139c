"""Subtitles of separate channels: in order, each with a length, and only those of different channels overlap."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from whisper_api.formats import render
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.schema import Segment, Transcript, Word
from whisper_api.subtitles import subtitles
from whisper_api.time_order import in_order

WORDS = st.sampled_from(["yes", "no", "well,", "I", "see.", "the", "extraordinary", "day", "--"])


@st.composite
def conversations(draw: st.DrawFn) -> Transcript:
    """Up to three people, each on a channel, who talk at any time."""
    segments: list[Segment] = []
    for channel in range(draw(st.integers(1, 3))):
        clock = draw(st.floats(0, 3))
        for _ in range(draw(st.integers(0, 4))):
            words = []
            for text in draw(st.lists(WORDS, min_size=1, max_size=12)):
                end = clock + draw(st.sampled_from([0.001, 0.1, 0.35, 1.2]))
                words.append(Word(word=text, start=clock, end=end, channel=channel))
                clock = end + draw(st.sampled_from([0.0, 0.0, 0.05, 0.8]))
            text = " ".join(word.word for word in words)
            timed = tuple(words) if draw(st.booleans()) else ()
            segments.append(
                Segment(
                    id=len(segments),
                    start=words[0].start,
                    end=words[-1].end,
                    text=text,
                    words=timed,
                    channel=channel,
                    speaker=f"SPEAKER_{channel:02d}",
                )
            )
            clock += draw(st.sampled_from([0.0, 0.5, 4.0]))
    return Transcript(
        language="en",
        duration=300.0,
        segments=in_order(segments),
        model="base",
        options=TranscriptionOptions(channels="separate"),
    )


layouts = st.builds(
    RenderOptions,
    subtitle_preset=st.sampled_from([None, "netflix", "bbc", "default"]),
    max_line_width=st.none() | st.integers(10, 42),
    min_duration=st.none() | st.floats(0.2, 2.0),
    speakers=st.sampled_from([None, "label", "dash", "none", "voice"]),
)


@settings(max_examples=60)
@given(conversations(), layouts)
def test_only_subtitles_of_different_channels_overlap(given: Transcript, options: RenderOptions) -> None:
    cues = subtitles(given, options).cues
    assert all(before.start <= after.start for before, after in pairwise(cues))
    starts = sorted(cue.start for cue in cues)
    for channel in {segment.channel for segment in given.segments}:
        own = [cue for cue in cues if cue.channel == channel]
        assert all(round(1000 * cue.start) < round(1000 * cue.end) for cue in own)
        assert all(before.end <= after.start for before, after in pairwise(own))
        assert {speaker for cue in own for speaker in cue.speakers} <= {f"SPEAKER_{channel:02d}"}
        shown = " ".join(word.text for cue in own for line in cue.lines for word in line.words)
        said = " ".join(segment.text for segment in given.segments if segment.channel == channel)
        assert "".join(shown.split()) == "".join(said.split())
        for cue in own:
            # It is prolonged only while nobody begins to speak.
            spoken = max(word.end for line in cue.lines for word in line.words)
            assert cue.end <= max([spoken, *[start for start in starts if start >= spoken][:1]]) or all(
                start < spoken for start in starts
            )


@settings(max_examples=60)
@given(conversations(), layouts, st.booleans(), st.booleans())
def test_files_list_subtitles_in_order(
    given: Transcript, options: RenderOptions, highlight: bool, karaoke: bool
) -> None:
    """As WebVTT demands."""
    options = replace(options, highlight_words=highlight, karaoke=karaoke)
    for format, pattern in (
        ("vtt", r"^([\d:.]+) -->"),
        ("srt", r"^([\d:,]+) -->"),
        ("ass", r"^Dialogue: 0,([\d:.]+),"),
    ):
        times = re.findall(pattern, render(given, format, options), re.MULTILINE)
        assert [time.rjust(12, "0") for time in times] == sorted(time.rjust(12, "0") for time in times)
