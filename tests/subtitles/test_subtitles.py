"""Properties of subtitles and of every other format: text, width, lines and times."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_api.formats import FORMATS, render, rendered, to_whisperx
from whisper_api.job_values import Correction, Corrections
from whisper_api.jobs.corrections import applied, checked
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment, Transcript, Word
from whisper_api.subtitles import display_width, speaker_label
from whisper_api.word_spacing import pieces

Cue = tuple[int, int, str]
CUE = re.compile(r"(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})\n")
TAGS = re.compile("</?u>")


def transcript(*segments: Segment, language: str = "en", **options: Any) -> Transcript:
    return Transcript(
        language=language,
        duration=60.0,
        segments=segments,
        model="base",
        options=TranscriptionOptions(**options),
        word_times="attention",
    )


def spoken(text: str, words: list[str], start: float = 0.0, speaker: str | None = None) -> Segment:
    """A segment whose words last half a second each."""
    return Segment(
        id=0,
        start=start,
        end=start + len(words) / 2,
        text=text,
        speaker=speaker,
        words=tuple(Word(word=w, start=start + n / 2, end=start + n / 2 + 0.5) for n, w in enumerate(words)),
    )


def cues(text: str) -> list[Cue]:
    """The subtitles of an srt, times in milliseconds."""
    found = []
    for number, block in enumerate(text.split("\n\n")[:-1], start=1):
        first, times, shown = block.split("\n", 2)
        assert first == str(number)
        match = CUE.fullmatch(f"{times}\n")
        assert match, block
        h, m, s, ms, h2, m2, s2, ms2 = map(int, match.groups())
        found.append((((h * 60 + m) * 60 + s) * 1000 + ms, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2, shown))
    return found


moments = st.one_of(st.floats(-0.5, 20), st.sampled_from((0.0, 0.48, 0.4804, 1.06, 19.9996)))
LATIN = st.text(st.sampled_from("abcé-'.,?ß"), min_size=1, max_size=14)
WIDE = st.text(st.sampled_from("日本語かなカナー。、「」（）Go1"), min_size=1, max_size=14)
MARKED = st.text(st.sampled_from("e\u0301a\u0323สวัสดีกำ👩\u200d🚀"), min_size=1, max_size=8)


@st.composite
def transcripts(draw: st.DrawFn, *, in_order: bool = False) -> Transcript:
    """Random word streams: times in any order, without length, before zero and after the end; words of any script."""
    language = draw(st.sampled_from(("en", "fr", "ja", "zh", "th", "ko")))
    word = st.one_of(LATIN, WIDE, MARKED)
    spaces = ("", " ") if language in LANGUAGES_WITHOUT_SPACES else (" ",)
    segments = []
    clock = 0.0
    for number in range(draw(st.integers(0, 4))):
        given = draw(st.lists(st.tuples(word, st.sampled_from(spaces)), min_size=1, max_size=9))
        words = []
        for text, _ in given if draw(st.booleans()) or in_order else ():
            begin, end = (clock, clock + 0.25) if in_order else (draw(moments), draw(moments))
            clock = end
            words.append(Word(word=text, start=begin, end=end, score=0.5))
        start, end = (words[0].start, words[-1].end) if in_order else (draw(moments), draw(moments))
        text = "".join(text + space for text, space in given).strip()
        speaker = draw(st.sampled_from((None, "SPEAKER_00", "Ada")))
        segments.append(Segment(id=number, start=start, end=end, text=text, words=tuple(words), speaker=speaker))
    return transcript(*segments, language=language)


layouts = st.builds(
    RenderOptions,
    max_line_width=st.none() | st.integers(1, 50),
    max_line_count=st.none() | st.integers(1, 3),
    highlight_words=st.booleans(),
    karaoke=st.booleans(),
)


def hundredths(time: str) -> int:
    """A time of an ass file."""
    hours, minutes, seconds = time.split(":")
    return round(100 * (3600 * int(hours) + 60 * int(minutes) + float(seconds)))


def assert_times(times: list[tuple[int, int]]) -> None:
    assert all(0 <= start < end for start, end in times)
    assert all(before[1] <= after[0] for before, after in pairwise(times))


@settings(max_examples=60, deadline=None)
@given(transcripts(), layouts)
def test_times_are_in_order_in_every_format(given: Transcript, options: RenderOptions) -> None:
    for name in FORMATS:
        text = render(given, name, options)
        rows = [line.split("\t") for line in text.splitlines()]
        match name:
            case "srt":
                assert_times([cue[:2] for cue in cues(text)])
            case "vtt":
                plain = msgspec.structs.replace(
                    options, highlight_words=options.highlight_words and not options.karaoke
                )
                assert text.count("-->") == render(given, "srt", plain).count("-->")
            case "tsv":
                assert_times([(int(start), int(end)) for start, end, _ in rows[1:]])
            case "aud":
                assert_times([(round(1000 * float(start)), round(1000 * float(end))) for start, end, _ in rows])
            case "ass":
                dialogue = [line.split(",") for line in text.split("Dialogue: ")[1:]]
                assert_times([(hundredths(start), hundredths(end)) for _, start, end, *_ in dialogue])
            case "rttm":
                turns = [line.split() for line in text.splitlines()]
                spans = [(round(1000 * float(turn[3])), round(1000 * float(turn[4]))) for turn in turns]
                assert_times([(start, start + length) for start, length in spans])
            case "json":
                content = json.loads(text)
                for items in (content["segments"], content.get("word_segments", [])):
                    assert_times([(round(1000 * item["start"]), round(1000 * item["end"])) for item in items])
                    assert all(before["end"] <= after["start"] for before, after in pairwise(items))


def without_spaces(text: str) -> str:
    return "".join(text.split())


def label_of(segment: Segment) -> str:
    return speaker_label(segment.speaker)


@settings(max_examples=60, deadline=None)
@given(transcripts(), layouts)
def test_subtitles_hold_the_text_of_the_segments(given: Transcript, options: RenderOptions) -> None:
    options = msgspec.structs.replace(options, highlight_words=False)
    shown = [text for _, _, text in cues(render(given, "srt", options))]
    if options.max_line_width is None:
        expected = [label_of(segment) + " ".join(segment.text.split()) for segment in given.segments]
        assert [" ".join(text.split()) for text in shown] == expected
    said = "".join(segment.text for segment in given.segments)
    labels = "|".join(re.escape(label.strip()) for label in ("[SPEAKER_00]:", "[Ada]:"))
    assert without_spaces("".join(re.sub(f"^({labels})", "", text) for text in shown)) == without_spaces(said)


@settings(max_examples=60, deadline=None)
@given(transcripts(), layouts)
def test_highlighted_subtitles_have_the_text_of_the_plain_ones(given: Transcript, options: RenderOptions) -> None:
    plain = [text for _, _, text in cues(render(given, "srt", msgspec.structs.replace(options, highlight_words=False)))]
    shown = cues(render(given, "srt", msgspec.structs.replace(options, highlight_words=True)))
    bare = [TAGS.sub("", text) for _, _, text in shown]
    assert list(dict.fromkeys(bare)) == list(dict.fromkeys(plain))
    assert all(text.count("<u>") == text.count("</u>") <= 1 for _, _, text in shown)


@settings(max_examples=120, deadline=None)
@given(transcripts(in_order=True), layouts)
def test_no_line_is_wider_than_asked_nor_are_there_more_of_them(given: Transcript, options: RenderOptions) -> None:
    width, count = options.max_line_width, options.max_line_count
    if width is None:
        return
    for _, _, text in cues(render(given, "srt", options)):
        lines = TAGS.sub("", text).split("\n")
        assert count is None or len(lines) <= count
        for line in lines:
            assert line == line.strip() != ""
            if display_width(line) > width:
                # Only unbreakable text is too wide: a label, a word, or both in the only line.
                label = next((label for label in ("[SPEAKER_00]:", "[Ada]:") if line.startswith(label)), "")
                rest = line.removeprefix(label).strip()
                assert " " not in rest
                assert not re.search("[日本語かなカナ]{2}", rest)
                assert not label or not rest or count == 1


@pytest.mark.parametrize(
    ("language", "text", "words", "options", "expected"),
    [
        # Spaces count, except at the end of a line.
        ("en", "one two three", ["one", "two", "three"], {"max_line_width": 7}, ["one two\nthree"]),
        ("en", "one two three", ["one", "two", "three"], {"max_line_width": 6}, ["one\ntwo\nthree"]),
        ("en", "one two three", ["one", "two", "three"], {"max_line_width": 3, "max_line_count": 1},
         ["one", "two", "three"]),
        # A word of letters is never broken.
        ("ja", "検査Google結果", ["検査", "Go", "ogle", "結果"], {"max_line_width": 6}, ["検査\nGoogle\n結果"]),
        ("ja", "検査Google結果", [*"検査Google結果"], {"max_line_width": 6}, ["検査\nGoogle\n結果"]),
        # A long word of Japanese may be cut, and no line begins with a mark.
        ("ja", "ニュースタブです。", ["ニュースタブ", "です。"], {"max_line_width": 4}, ["ニュー\nスタブ\nです。"]),
        ("zh", "他说（好）。", [*"他说（好）。"], {"max_line_width": 3}, ["他说\n（好）。"]),
        # A combining accent has no width, and an emoji of three code points has the width two.
        ("en", "e\u0301e\u0301 e\u0301e\u0301", ["e\u0301e\u0301"] * 2, {"max_line_width": 5},
         ["e\u0301e\u0301 e\u0301e\u0301"]),
        ("fr", "Est-il là ? Oui !", ["Est-il", "là ?", "Oui !"], {"max_line_width": 8}, ["Est-il\nlà ?\nOui !"]),
        # Thai has no spaces, and its lines end between words.
        ("th", "สวัสดีครับ", ["สวัสดี", "ครับ"], {"max_line_width": 5}, ["สวัสดี\nครับ"]),
        ("en", "a --> b", ["a", "-->", "b"], {"max_line_width": 20}, ["a -> b"]),
    ],
)  # fmt: skip
def test_lines(language: str, text: str, words: list[str], options: dict[str, Any], expected: list[str]) -> None:
    given = transcript(spoken(text, words), language=language)
    assert [shown for _, _, shown in cues(render(given, "srt", RenderOptions(**options)))] == expected


def test_the_speaker_s_label_counts() -> None:
    given = transcript(spoken("One two three", ["One", "two", "three"], speaker="Ada"))
    assert cues(render(given, "srt", RenderOptions(max_line_width=14))) == [(0, 1500, "[Ada]: One\ntwo three")]
    assert cues(render(given, "srt", RenderOptions(max_line_width=8))) == [(0, 1500, "[Ada]:\nOne two\nthree")]
    # The word fits on no other line.
    narrow = RenderOptions(max_line_width=8, max_line_count=1)
    assert [text for _, _, text in cues(render(given, "srt", narrow))] == [
        "[Ada]: One",
        "[Ada]: two",
        "[Ada]: three",
    ]


def test_subtitles_of_counted_lines_go_over_the_ends_of_segments_but_not_of_turns_and_pauses() -> None:
    options = RenderOptions(max_line_width=24, max_line_count=2)
    given = transcript(
        spoken("One two.", ["One", "two."], 0.0, "Ada"),
        spoken("Three.", ["Three."], 1.0, "Ada"),
        spoken("Four.", ["Four."], 2.0, "Bob"),
        spoken("Five.", ["Five."], 9.0, "Bob"),
    )
    assert cues(render(given, "srt", options)) == [
        (0, 1500, "[Ada]: One two. Three."),
        (2000, 2500, "[Bob]: Four."),
        (9000, 9500, "[Bob]: Five."),
    ]


def test_a_word_over_two_subtitles_is_in_each_for_its_part_of_the_time() -> None:
    given = transcript(spoken("日本語日本語", ["日本語日本語"]), language="ja")
    options = RenderOptions(max_line_width=2, max_line_count=1)
    assert cues(render(given, "srt", options)) == [(0, 167, "日本"), (167, 333, "語日"), (333, 500, "本語")]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "One two three four", [(0, 6600, "One\ntwo three"), (6600, 9000, "four")]),
        ("ja", "日本語です", [(0, 9000, "日本語です")]),
    ],
)
def test_a_text_without_word_times_is_split_by_its_length(language: str, text: str, expected: list[Cue]) -> None:
    given = transcript(Segment(id=0, start=0.0, end=9.0, text=text), language=language)
    options = RenderOptions(max_line_width=9, max_line_count=2)
    text, warnings = rendered(given, "srt", options)
    assert cues(text) == expected
    assert warnings == (
        "the subtitles' times are estimated from the length of the words, since there are no word times",
    )
    assert rendered(given, "srt", RenderOptions(max_line_width=9)).warnings == ()


def test_layout_options_without_effect_are_warnings() -> None:
    given = transcript(spoken("One", ["One"]))
    assert rendered(given, "txt").warnings == ()
    assert rendered(given, "vtt", RenderOptions(max_line_width=9)).warnings == ()
    (warning,) = rendered(given, "txt", RenderOptions(max_line_width=9, subtitle_preset="bbc")).warnings
    assert warning == "subtitle_preset, max_line_width: only subtitles have a layout; txt is without it"
    assert "without max_line_width" in rendered(given, "srt", RenderOptions(max_line_count=2)).warnings[0]


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("abc", 3),
        ("日本", 2),
        ("e\u0301", 1),
        ("\u1112\u1161\u11ab", 1),
        ("a\u200db\ufeff", 2),
        ("กำ", 2),
        ("é", 1),
    ],
)
def test_width_is_what_is_printed(text: str, width: int) -> None:
    assert display_width(text) == width


@given(transcripts(in_order=True), st.data())
def test_after_corrections_the_text_is_still_that_of_the_words(given: Transcript, data: st.DataObject) -> None:
    places = [(segment.id, index) for segment in given.segments for index in range(len(segment.words))]
    changes = data.draw(
        st.dictionaries(st.sampled_from(places), st.sampled_from(["", "x", "New York", "東京"]))
        if places
        else st.just({})
    )
    fixed = Corrections(words=tuple(Correction(segment=s, word=w, text=text) for (s, w), text in changes.items()))
    found = applied(given, checked(given, fixed))
    for segment in found.segments:
        assert "".join(pieces(segment, found.language)) == " ".join(segment.text.split())
        assert [piece.strip() for piece in pieces(segment, found.language)] == [word.word for word in segment.words]
    shown = [text for _, _, text in cues(render(found, "srt"))]
    assert shown == [label_of(segment) + " ".join(segment.text.split()) for segment in found.segments]


def test_a_long_transcript_takes_no_long_time() -> None:
    words = [f"word{n}" for n in range(400)]
    given = transcript(*(spoken(" ".join(words), words, 200.0 * n) for n in range(100)))
    options = RenderOptions(max_line_width=42, max_line_count=2, highlight_words=True)
    assert len(cues(render(given, "srt", options))) >= 40_000
    assert len(to_whisperx(given)["word_segments"]) == 40_000
