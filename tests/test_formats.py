"""Without options, every format is byte for byte what whisperx's own writers give for the same transcript."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from whisper_api.errors import InvalidOption
from whisper_api.formats import FORMATS, render, rendered, to_whisperx
from whisper_api.job_values import job_result
from whisper_api.options import RenderOptions, Task, TranscriptionOptions
from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment, Transcript, Word, WordTimes

GOLDEN = Path(__file__).parent / "golden"
# The formats that whisperx has, too.
OF_WHISPERX = ("srt", "vtt", "txt", "tsv", "json", "aud")
SPEAKERS = ("SPEAKER_00", "SPEAKER_01", "")
WORDS = (
    "a",
    "hello,",
    "-->",
    "x\ty",
    "naïve",
    "日",
    "<b>",
    "&",
    "e\u0301",
    "in side",
    "long" * 12,
    "👩\u200d🚀",
)


def make(segments: list[Segment], language: str = "en", word_times: WordTimes = "ctc", **more: Any) -> Transcript:
    return Transcript(
        language=language,
        duration=100.0,
        segments=tuple(segments),
        model="base",
        options=TranscriptionOptions(),
        word_times=word_times,
        **more,
    )


def call() -> Transcript:
    """Two speakers; the second segment holds two of them, and a long pause."""

    def words(speaker: str | None, *given: tuple[str, float, float]) -> tuple[Word, ...]:
        return tuple(Word(word=word, start=start, end=end, score=0.875, speaker=speaker) for word, start, end in given)

    first = words("SPEAKER_00", ("Hello,", 0.031, 0.4), ("who", 0.5, 0.62), ("is", 0.64, 0.7), ("there?", 0.7, 1.2345))
    second = words("SPEAKER_01", ("It's", 5.5, 5.8), ("me", 5.8, 6.0)) + words(
        "SPEAKER_00", ("-->\tOh.", 3599.9996, 3600.5)
    )
    return make(
        [
            Segment(id=0, start=0.031, end=1.2345, text=" Hello, who is there?", speaker="SPEAKER_00", words=first),
            Segment(
                id=1,
                start=5.5,
                end=3600.5,
                text="It's me -->\tOh.",
                speaker="SPEAKER_01",
                words=second,
                avg_logprob=-0.25,
            ),
        ],
        speakers=("SPEAKER_00", "SPEAKER_01"),
    )


def by_whisperx(result: dict[str, Any], name: str, options: RenderOptions, folder: Path) -> bytes:
    from whisperx.utils import get_writer

    writer: Any = get_writer(name, str(folder))
    writer(result, "transcript.wav", msgspec.structs.asdict(options))
    return (folder / f"transcript.{FORMATS[name].extension}").read_bytes()


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Transcripts as the pipeline makes them: every segment has words, or none has."""
    has_words, has_speakers, word_speakers = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    language = draw(st.sampled_from(("en", "ja", "zh", "fr")))
    space = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    shown = st.text(st.characters(codec="utf-8", exclude_categories=["Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=8)
    text = st.one_of(st.sampled_from(WORDS), shown.map(str.strip).filter(bool))
    speaker = st.sampled_from(SPEAKERS) if has_speakers else st.none()
    seconds = st.one_of(st.floats(0, 20), st.sampled_from((0.0, 0.0005, 0.9995, 59.9999, 3599.9996)))
    clock = 0.0
    segments = []
    for index in range(draw(st.integers(0, 4))):
        clock = start = clock + draw(seconds)
        words = []
        for _ in range(draw(st.integers(1, 7)) if has_words else 0):
            begin = clock + draw(st.sampled_from((0.0, 0.1, 2.9, 3.1)))
            clock = begin + draw(st.sampled_from((0.002, 0.2, 1.0)))
            words.append(
                Word(
                    word=draw(text),
                    start=begin,
                    end=clock,
                    score=draw(st.none() | st.floats(0, 1)),
                    speaker=draw(speaker) if word_speakers else None,
                )
            )
        clock += draw(seconds) + 0.002 if not words else 0.0
        segments.append(
            Segment(
                id=index,
                start=start,
                end=clock,
                text=space.join(word.word for word in words) or draw(text),
                speaker=draw(speaker | st.none()),
                words=tuple(words),
                avg_logprob=draw(st.none() | st.floats(-5, 0)),
            )
        )
    return make(segments, language, "ctc" if has_words else "none")


@pytest.mark.parametrize("name", OF_WHISPERX)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(transcript=transcripts())
def test_equals_the_writers_of_whisperx(name: str, transcript: Transcript, tmp_path: Path) -> None:
    expected = by_whisperx(to_whisperx(transcript), name, RenderOptions(), tmp_path)
    assert render(transcript, name).encode() == expected


@pytest.mark.parametrize("options", [RenderOptions(), RenderOptions(max_line_count=2)])
@pytest.mark.parametrize("name", OF_WHISPERX)
def test_a_call_equals_the_writers_of_whisperx(name: str, options: RenderOptions, tmp_path: Path) -> None:
    expected = by_whisperx(to_whisperx(call()), name, options, tmp_path)
    assert render(call(), name, options).encode() == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_is_as_it_was(name: str) -> None:
    assert render(call(), name).encode() == (GOLDEN / f"call.{FORMATS[name].extension}").read_bytes()


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("name", OF_WHISPERX)
def test_an_empty_transcript_equals_the_writers_of_whisperx(name: str, language: str, tmp_path: Path) -> None:
    for word_times in ("none", "ctc"):
        transcript = make([], language, word_times)
        expected = by_whisperx(to_whisperx(transcript), name, RenderOptions(), tmp_path)
        assert render(transcript, name).encode() == expected


@pytest.mark.parametrize(
    ("language", "task", "words", "shown"),
    [
        ("ja", "translate", ["Good", "day."], "Good day."),
        ("th", "translate", ["Good", "day."], "Good day."),
        ("ja", "transcribe", ["今", "日"], "今日"),
        ("th", "transcribe", ["สวัสดี", "ครับ"], "สวัสดีครับ"),
        ("yue", "transcribe", ["你", "好"], "你好"),
        ("ko", "transcribe", ["안녕", "하세요"], "안녕 하세요"),
    ],
)
@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_words_are_joined_as_the_text_is_written(
    name: str, language: str, task: Task, words: list[str], shown: str
) -> None:
    spoken = tuple(Word(word=word, start=at, end=at + 1.0) for at, word in enumerate(words))
    transcript = make([Segment(id=0, start=0.0, end=2.0, text=shown, words=spoken)], language, "attention")
    transcript = msgspec.structs.replace(transcript, options=TranscriptionOptions(task=task))
    assert render(transcript, name).splitlines()[-2] == shown


def test_keys_and_their_order_are_those_of_whisperx() -> None:
    aligned = to_whisperx(call())
    assert list(aligned) == ["segments", "word_segments", "language"]
    assert list(aligned["segments"][0]) == ["start", "end", "text", "words", "speaker"]
    assert list(aligned["segments"][1]) == ["start", "end", "text", "words", "avg_logprob", "speaker"]
    assert list(aligned["word_segments"][0]) == ["word", "start", "end", "score", "speaker"]
    assert [word["word"] for word in aligned["word_segments"]] == [word.word for word in call().words]

    bare = to_whisperx(make([Segment(id=0, start=0.0, end=1.0, text="Yes.", avg_logprob=-0.5)], word_times="none"))
    assert list(bare) == ["segments", "language"]
    assert list(bare["segments"][0]) == ["text", "start", "end", "avg_logprob"]

    embedded = to_whisperx(make([], speaker_embeddings={"SPEAKER_00": (0.5, 1.0)}))
    assert list(embedded) == ["segments", "word_segments", "speaker_embeddings", "language"]
    assert json.loads(json.dumps(embedded))["speaker_embeddings"] == {"SPEAKER_00": [0.5, 1.0]}


def later(segment: Segment, seconds: float) -> Segment:
    words = [replace(word, start=word.start + seconds, end=word.end + seconds) for word in segment.words]
    return replace(segment, start=segment.start + seconds, end=segment.end + seconds, words=tuple(words))


def test_a_segment_without_words_among_others_loses_nothing(tmp_path: Path) -> None:
    worded, bare = call().segments[0], Segment(id=1, start=2.0, end=3.0, text=" 42 --> 43 ", speaker="SPEAKER_01")
    transcript = make([worded, bare, later(worded, 5.0)])
    with pytest.raises(KeyError):
        by_whisperx(to_whisperx(transcript), "srt", RenderOptions(), tmp_path)
    for options in (
        RenderOptions(),
        RenderOptions(max_line_width=40),
        RenderOptions(max_line_width=40, max_line_count=2),
    ):
        text = render(transcript, "srt", options)
        assert "00:00:02,000 --> 00:00:03,000\n[SPEAKER_01]: 42 -> 43\n" in text
        assert text.count("there?") >= 2
    assert [name for name in FORMATS if render(transcript, name).count("43") != 1] == ["rttm"]


def test_markdown_has_paragraphs_of_speakers_and_is_shown_as_it_was_said() -> None:
    def said(number: int, start: float, text: str, speaker: str | None) -> Segment:
        return Segment(id=number, start=start, end=start + 1, text=text, speaker=speaker)

    transcript = make(
        [
            said(0, 0.0, " 1. *Well*,", "Ada"),
            said(1, 1.0, "a_b <i> & `c`.", "Ada"),
            said(2, 2.0, "- No.", "Bo"),
            said(3, 3700.0, "# [Yes](x)", "Bo"),
        ],
        word_times="none",
    )
    assert render(transcript, "md") == (
        "**Ada** (0:00)\n\n&#49;. \\*Well\\*, a\\_b \\<i\\> \\& \\`c\\`.\n\n"
        "**Bo** (0:02)\n\n&#45; No.\n\n"
        "**Bo** (1:01:40)\n\n&#35; \\[Yes\\](x)\n"
    )
    nobody = [replace(segment, speaker=None) for segment in transcript.segments[:1]]
    assert render(replace(transcript, segments=tuple(nobody)), "md").startswith("**0:00**\n\n")
    long = [said(n, float(n), "word " * 60, None) for n in range(10)]
    assert render(replace(transcript, segments=tuple(long)), "md").count("**0:0") == 4


def test_rttm_has_a_line_for_each_turn() -> None:
    # A pause of half a second is part of a turn; a word of another speaker inside a segment is a turn of its own.
    assert render(call(), "rttm").splitlines() == [
        "SPEAKER audio 1 0.031 1.203 <NA> <NA> SPEAKER_00 <NA> <NA>",
        "SPEAKER audio 1 5.500 0.500 <NA> <NA> SPEAKER_01 <NA> <NA>",
        "SPEAKER audio 1 3600.000 0.500 <NA> <NA> SPEAKER_00 <NA> <NA>",
    ]
    named = make([Segment(id=0, start=1.0, end=2.5, text="Yes.", speaker="Ada L.")], word_times="none")
    assert render(named, "rttm") == "SPEAKER audio 1 1.000 1.500 <NA> <NA> Ada_L. <NA> <NA>\n"
    nobody = make([Segment(id=0, start=1.0, end=2.5, text="Yes.")], word_times="none")
    assert rendered(nobody, "rttm") == ("", ("rttm is empty, since no speakers were told apart",))


def test_a_time_before_zero_counts_as_zero() -> None:
    transcript = make([Segment(id=0, start=-0.02, end=1.0, text="Yes.")], word_times="none")
    assert render(transcript, "vtt") == "WEBVTT\n\n00:00.000 --> 00:01.000\nYes.\n\n"


@pytest.mark.parametrize("name", ["pdf", "SRT", "", "all"])
def test_an_unknown_format_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidOption, match="srt, vtt, txt, tsv, json, aud") as raised:
        render(call(), name)
    assert raised.value.field == "format"


def test_the_table_of_formats_is_consistent() -> None:
    assert list(FORMATS) == [format.name for format in FORMATS.values()]
    assert all("/" in format.media_type and ";" not in format.media_type for format in FORMATS.values())


@pytest.mark.parametrize("field", ["max_line_width", "max_line_count"])
def test_a_line_option_below_one_is_refused(field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: 0}, RenderOptions)


def on_channels() -> Transcript:
    """Two people who talk at once, each on a channel."""

    def segment(number: int, channel: int, start: float, end: float, text: str) -> Segment:
        speaker = f"SPEAKER_{channel:02d}"
        word = Word(word=text, start=start, end=end, score=0.5, speaker=speaker, channel=channel)
        return Segment(id=number, start=start, end=end, text=text, speaker=speaker, words=(word,), channel=channel)

    segments = [segment(0, 1, 0.0, 4.0, "Listen,"), segment(1, 0, 1.0, 2.0, "yes"), segment(2, 1, 4.1, 5.0, "now.")]
    return make(segments, speakers=("SPEAKER_01", "SPEAKER_00"), channels=(0, 1), word_times="ctc")


def test_rttm_has_the_channel_of_each_turn() -> None:
    """Channels count from 1. The turn of a speaker goes on while somebody else speaks on another channel."""
    assert render(on_channels(), "rttm").splitlines() == [
        "SPEAKER audio 2 0.000 5.000 <NA> <NA> SPEAKER_01 <NA> <NA>",
        "SPEAKER audio 1 1.000 1.000 <NA> <NA> SPEAKER_00 <NA> <NA>",
    ]


def test_json_has_the_channel_of_segments_and_words() -> None:
    found = to_whisperx(on_channels())
    assert [segment["channel"] for segment in found["segments"]] == [1, 0, 1]
    assert [word["channel"] for word in found["word_segments"]] == [1, 0, 1]
    result = msgspec.to_builtins(job_result(on_channels(), ""))
    assert [segment["channel"] for segment in result["segments"]] == [1, 0, 1]
    assert [word["channel"] for segment in result["segments"] for word in segment["words"]] == [1, 0, 1]


def test_subtitles_of_people_who_talk_at_once_keep_their_times() -> None:
    times = [line for line in render(on_channels(), "vtt").splitlines() if "-->" in line]
    assert times == ["00:00.000 --> 00:04.000", "00:01.000 --> 00:02.000", "00:04.100 --> 00:05.000"]
    laid_out = rendered(on_channels(), "vtt", RenderOptions(subtitle_preset="netflix"))
    times = [line for line in laid_out.text.splitlines() if "-->" in line]
    assert times == ["00:00.000 --> 00:05.000", "00:01.000 --> 00:02.000"]
    assert any(warning.startswith("min_gap") for warning in laid_out.warnings)
    dialogues = [line for line in render(on_channels(), "ass").splitlines() if line.startswith("Dialogue")]
    assert [line.split(",")[1:3] for line in dialogues] == [
        ["0:00:00.00", "0:00:04.00"],
        ["0:00:01.00", "0:00:02.00"],
        ["0:00:04.10", "0:00:05.00"],
    ]
