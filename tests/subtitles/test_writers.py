"""Subtitle formats with tags: voices and times of words in WebVTT, styles and karaoke in ass."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subtitles.test_rules import talks
from subtitles.test_subtitles import hundredths, spoken, transcript
from whisper_api.formats import rendered
from whisper_api.options import RenderOptions
from whisper_api.schema import Transcript

VTT_TIME = re.compile(r"(?:(\d+):)?(\d\d):(\d\d\.\d\d\d)")


def dialogue() -> Transcript:
    return transcript(
        spoken("Is A <b & c?", ["Is", "A", "<b", "&", "c?"], 0.0, "Ada, <Queen>"),
        spoken("{x} \\No.", ["{x}", "\\No."], 3.0, "Bo"),
    )


def test_voices_of_webvtt_are_spans_and_special_characters_are_escaped() -> None:
    text, warnings = rendered(dialogue(), "vtt", RenderOptions(speakers="voice"))
    assert text == (
        "WEBVTT\n\n"
        "00:00.000 --> 00:02.500\n<v Ada, &lt;Queen&gt;>Is A &lt;b &amp; c?\n\n"
        "00:03.000 --> 00:04.000\n<v Bo>{x} \\No.\n\n"
    )
    assert warnings == ()


@pytest.mark.parametrize(
    "options",
    [RenderOptions(subtitle_preset="netflix"), RenderOptions(highlight_words=True), RenderOptions(max_line_width=30)],
)
def test_a_word_is_no_tag_of_webvtt(options: RenderOptions) -> None:
    text = rendered(dialogue(), "vtt", options).text
    bare = re.sub("</?u>", "", text)
    assert "&lt;b &amp; c?" in bare
    assert "<" not in bare


def test_a_name_is_one_line_in_every_format() -> None:
    given = transcript(spoken("Yes.", ["Yes."], 0.0, "Ada\n\nLovelace"))
    for format in ("srt", "vtt", "ass", "txt", "md"):
        text = rendered(given, format, RenderOptions(subtitle_preset="default", speakers="label")).text
        assert re.search("Ada( |\\\\ )Lovelace", text), text


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_words_make_no_arrow(format: str) -> None:
    given = transcript(spoken("a --> b -- > c --> d", ["a", "-->", "b", "--", ">", "c", "--", "> d"], 0.0, None))
    glued = msgspec.structs.replace(given.segments[0], text="a-->b-->c-->d")
    shown = rendered(transcript(glued, language="zh"), format, RenderOptions(subtitle_preset="default")).text
    assert shown.count("-->") == shown.count(" --> ") == shown.count("\n00:")


def test_karaoke_of_webvtt_times_each_word_but_the_first() -> None:
    text = rendered(dialogue(), "vtt", RenderOptions(karaoke=True, speakers="none", max_line_width=7)).text
    assert text.split("\n\n")[1] == (
        "00:00.000 --> 00:02.500\nIs <00:00.500>A\n<00:01.000>&lt;b <00:01.500>&amp; <00:02.000>c?"
    )


def milliseconds(time: str) -> int:
    match = VTT_TIME.fullmatch(time)
    assert match is not None
    hours, minutes, seconds = match.groups()
    return round(1000 * (3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)))


@settings(max_examples=50, deadline=None)
@given(talks())
def test_times_inside_a_cue_rise_between_its_start_and_its_end(given: Transcript) -> None:
    text = rendered(given, "vtt", RenderOptions(karaoke=True, subtitle_preset="default")).text
    for block in text.split("\n\n")[1:-1]:
        times, _, shown = block.partition("\n")
        start, end = map(milliseconds, times.split(" --> "))
        inside = [milliseconds(time) for time in re.findall(r"<([\d:.]+)>", shown)]
        assert inside == sorted({*inside})
        assert all(start < time < end for time in inside)


def test_speakers_of_ass_are_names_with_styles_and_special_characters_are_escaped() -> None:
    text, warnings = rendered(dialogue(), "ass")
    assert warnings == ()
    assert re.findall("^Dialogue.*$", text, re.MULTILINE) == [
        "Dialogue: 0,0:00:00.00,0:00:02.50,Speaker 1,Ada; <Queen>,0,0,0,,Is A <b & c?",
        "Dialogue: 0,0:00:03.00,0:00:04.00,Speaker 2,Bo,0,0,0,,\\{x\\} \\\u2060No.",
    ]
    styles = re.findall("^Style: ([^,]+),", text, re.MULTILINE)
    assert styles == ["Default", "Speaker 1", "Speaker 2"]


def test_a_subtitle_of_both_speakers_has_both_names() -> None:
    given = transcript(
        spoken("Really?", ["Really?"], 0.0, "Ada"), spoken("Yes, I do.", ["Yes,", "I", "do."], 0.5, "Bo")
    )
    text = rendered(given, "ass", RenderOptions(subtitle_preset="netflix")).text
    assert text.splitlines()[-1] == r"Dialogue: 0,0:00:00.00,0:00:02.00,Default,Ada & Bo,0,0,0,,-Really?\N-Yes, I do."


@settings(max_examples=50, deadline=None)
@given(talks())
def test_the_words_of_ass_karaoke_fill_the_time_of_their_subtitle(given: Transcript) -> None:
    options = RenderOptions(karaoke=True, subtitle_preset="default")
    text = rendered(given, "ass", options).text
    plain = rendered(given, "ass", msgspec.structs.replace(options, karaoke=False)).text
    assert re.sub(r"\{\\k\d+\}", "", text) == plain
    for line in text.split("Dialogue: ")[1:]:
        start, end = map(hundredths, line.split(",")[1:3])
        assert sum(map(int, re.findall(r"\{\\k(\d+)\}", line))) <= end - start


@settings(max_examples=50, deadline=None)
@given(
    talks(),
    st.sampled_from([RenderOptions(), RenderOptions(subtitle_preset="default"), RenderOptions(subtitle_preset="bbc")]),
)
def test_the_cues_are_those_of_srt_and_name_every_word_once_in_order(given: Transcript, options: RenderOptions) -> None:
    cues = json.loads(rendered(given, "cues", options).text)["cues"]
    blocks = [block.split("\n", 2) for block in rendered(given, "srt", options).text.split("\n\n")[:-1]]
    shown = [
        "\n".join(
            (line["mark"] + "".join(" " * word["space"] + word["text"] for word in line["words"])).strip()
            for line in cue["lines"]
        )
        for cue in cues
    ]
    assert shown == [text for _, _, text in blocks]
    named = [(word["segment"], word["word"]) for cue in cues for line in cue["lines"] for word in line["words"]]
    words = [
        (each.id, index if each.words else None)
        for each in given.segments
        for index, _ in enumerate(each.words or (each,))
    ]
    assert list(dict.fromkeys(named)) == words


def test_a_cue_names_the_rules_that_it_breaks() -> None:
    fast = transcript(spoken("Extraordinarily incomprehensible.", ["Extraordinarily", "incomprehensible."], 0.0, None))
    text, warnings = rendered(fast, "cues", RenderOptions(subtitle_preset="netflix", max_line_width=10))
    (cue,) = json.loads(text)["cues"][:1]
    assert set(cue["broken"]) == {warning.partition(":")[0].replace(" ", "_") for warning in warnings}
    assert "max_line_width" in cue["broken"]


@pytest.mark.parametrize("options", [RenderOptions(karaoke=True), RenderOptions(speakers="voice")])
def test_srt_has_no_tags_and_says_so(options: RenderOptions) -> None:
    text, warnings = rendered(dialogue(), "srt", options)
    assert text == rendered(dialogue(), "srt").text
    assert [warning.partition(":")[0] for warning in warnings] == [
        "karaoke" if options.karaoke else "speakers",
    ]
