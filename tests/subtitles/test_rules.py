"""All rules of a layout hold at once, or the rule that cannot hold is named."""

from __future__ import annotations

import re
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subtitles.test_subtitles import assert_times, cues, spoken, transcript
from whisper_api.errors import InvalidOption
from whisper_api.formats import rendered
from whisper_api.options import RenderOptions
from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment, Transcript, Word
from whisper_api.subtitles import display_width
from whisper_api.subtitles.rules import PRESETS, rules_of

ALPHABETS = {
    "en": "abcdefgXYZ",
    "fr": "abcéàç'X",
    "ru": "абвгдежЯ",
    "ar": "ابتثجحخد",
    "ko": "안녕하세요서울",
    "ja": "日本語かなカナー東京",
    "zh": "日本語中文東京",
    "th": "สวัสดีครับ",
}
MARKS = ("", "", "", "", ",", ".", "?")
WIDE_MARKS = ("", "", "", "", "、", "。", "？")


@st.composite
def talks(draw: st.DrawFn, *, slow: bool = False) -> Transcript:
    """Random words with their times, in any of several scripts; slow talks have time enough for every rule."""
    language = draw(st.sampled_from(sorted(ALPHABETS)))
    spaceless = language in LANGUAGES_WITHOUT_SPACES
    letters = st.text(st.sampled_from(ALPHABETS[language]), min_size=1, max_size=4 if slow or spaceless else 16)
    speakers = draw(st.sampled_from(((None,), ("SPEAKER_00", "SPEAKER_01"), ("Ada", "Bo", "SPEAKER_02"))))
    clock = draw(st.floats(0, 2))
    segments = []
    for number in range(draw(st.integers(1, 5))):
        words = []
        count = draw(st.integers(2, 3) if slow else st.integers(1, 25))
        for index in range(count):
            mark = draw(st.sampled_from(WIDE_MARKS if spaceless else MARKS))
            if slow:
                mark = ("。" if spaceless else ".") if index == count - 1 else ""
            text = draw(letters) + mark
            length = 0.6 if slow else draw(st.sampled_from((0.03, 0.1, 0.25, 0.4, 1.5, 9.0)))
            words.append(Word(word=text, start=round(clock, 3), end=round(clock + length, 3)))
            clock += length + (0.02 if slow else draw(st.sampled_from((0.0, 0.0, 0.02, 0.2, 0.9, 4.0))))
        text = ("" if spaceless else " ").join(word.word for word in words)
        segments.append(
            Segment(
                id=number,
                start=words[0].start,
                end=words[-1].end,
                text=text,
                words=tuple(words),
                speaker=draw(st.sampled_from(speakers)),
            )
        )
        clock += 2.5 if slow else draw(st.sampled_from((0.0, 0.3, 2.0, 6.0)))
    return msgspec.structs.replace(transcript(*segments, language=language), duration=clock + 1)


layouts = st.builds(
    RenderOptions,
    subtitle_preset=st.sampled_from((None, "netflix", "bbc", "default")),
    max_line_width=st.none() | st.integers(4, 50) | st.just(10**9),
    max_line_count=st.none() | st.integers(1, 6) | st.just(10**18),
    min_duration=st.none() | st.floats(0, 2),
    max_duration=st.none() | st.floats(2, 8),
    min_gap=st.none() | st.floats(0, 0.5),
    max_characters_per_second=st.none() | st.floats(5, 30),
    speakers=st.sampled_from((None, "label", "dash", "none")),
)


def named(warnings: tuple[str, ...]) -> set[str]:
    return {warning.partition(":")[0] for warning in warnings} - {"line breaks", "speakers"}


@settings(max_examples=60, deadline=None)
@given(talks(), layouts)
def test_every_rule_holds_or_is_named(given: Transcript, options: RenderOptions) -> None:
    text, warnings = rendered(given, "srt", options)
    found = cues(text)
    assert_times([(start, end) for start, end, _ in found])
    rules = rules_of(options, given.language)
    broken = set()
    for (start, end, shown), (following, _, _) in pairwise([*found, (10**9, 0, "")]):
        lines = [display_width(line) for line in shown.split("\n")]
        length = end - start
        if rules.width is not None and max(lines) > rules.width:
            broken.add("max_line_width")
        if rules.lines is not None and len(lines) > rules.lines:
            broken.add("max_line_count")
        if rules.max_duration is not None and length > rules.max_duration + 1:
            broken.add("max_duration")
        if rules.gap and following - end < rules.gap - 1:
            broken.add("min_gap")
        short = length < rules.min_duration - 1
        speed = rules.characters_per_second
        fast = speed is not None and 1000 * sum(lines) > speed * (length + 1)
        if short:
            broken.add("min_duration")
        if fast:
            broken.add("max_characters_per_second")
        if short or fast:
            # There was no more time.
            longest = rules.max_duration is not None and length >= rules.max_duration - 1
            assert longest or end >= min(following - rules.gap - 1, round(1000 * given.duration) - 1)
    assert broken - {"max_line_count"} == named(warnings) - {"max_line_count has no effect without max_line_width"} - {
        "the subtitles' times are estimated from the length of the words, since there are no word times"
    }
    assert "max_line_count" not in broken


@settings(max_examples=50, deadline=None)
@given(talks(), layouts)
def test_no_word_is_lost_doubled_or_moved(given: Transcript, options: RenderOptions) -> None:
    shown = "".join(text for _, _, text in cues(rendered(given, "srt", options).text))
    shown = re.sub(r"\[(SPEAKER_\d\d|Ada|Bo)\]:", "", shown).replace("-", "")
    assert "".join(shown.split()) == "".join("".join(segment.text.split()) for segment in given.segments)


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=50, deadline=None)
@given(given=talks(slow=True))
def test_slow_speech_with_pauses_breaks_no_rule_of_a_preset(preset: Any, given: Transcript) -> None:
    assert named(rendered(given, "srt", RenderOptions(subtitle_preset=preset)).warnings) == set()


@settings(max_examples=60, deadline=None)
@given(talks(), layouts)
def test_a_subtitle_begins_with_its_speech(given: Transcript, options: RenderOptions) -> None:
    starts = {round(1000 * word.start) for word in given.words}
    shown = cues(rendered(given, "srt", options).text)
    if given.language not in LANGUAGES_WITHOUT_SPACES:
        assert {start for start, _, _ in shown} <= starts


def laid_out(text: str, seconds: float = 0.3, language: str = "en", **options: Any) -> list[str]:
    """The texts of the subtitles of one segment, whose words last equally long."""
    words = text.split()
    segment = Segment(
        id=0,
        start=0.0,
        end=seconds * len(words),
        text=text,
        words=tuple(Word(word=w, start=seconds * n, end=seconds * (n + 1)) for n, w in enumerate(words)),
    )
    found = rendered(transcript(segment, language=language), "srt", RenderOptions(**options)).text
    return [shown for _, _, shown in cues(found)]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        # After punctuation, and before a conjunction.
        ("en", "She wanted to go home, but nobody would drive her there.",
         ["She wanted to go home,\nbut nobody would drive her there."]),
        ("fr", "Elle voulait rentrer à la maison mais personne ne voulait la conduire.",
         ["Elle voulait rentrer à la maison\nmais personne ne voulait la conduire."]),
        ("de", "Sie wollte endlich nach Hause gehen weil es dort warm war.",
         ["Sie wollte endlich nach Hause gehen\nweil es dort warm war."]),
        ("en", "Nobody had the leisure to consider how much there might be.",
         ["Nobody had the leisure to consider\nhow much there might be."]),
        # Names, numbers with their units and articles with their nouns stay whole.
        ("en", "Today the new chancellor Angela Merkel met the reporters.",
         ["Today the new chancellor\nAngela Merkel met the reporters."]),
        ("en", "They carried more than seventy 20 kilogram bags up the stairs.",
         ["They carried more than seventy\n20 kilogram bags up the stairs."]),
        ("it", "Hanno visto tutti insieme la grande macchina della famiglia.",
         ["Hanno visto tutti insieme\nla grande macchina della famiglia."]),
        ("es", "Ayer compramos cuatro botellas para la fiesta de mi hermana.",
         ["Ayer compramos cuatro botellas\npara la fiesta de mi hermana."]),
        # Two conjunctions stay together, and a pronoun stays with its verb.
        ("fr", "On a pris cela très au sérieux et qui amène cette espèce.",
         ["On a pris cela très au sérieux\net qui amène cette espèce."]),
        ("fr", "Personne ne comprenait vraiment est-ce que cela allait.",
         ["Personne ne comprenait vraiment\nest-ce que cela allait."]),
        ("en", "The important thing clearly is that we have been trying.",
         ["The important thing clearly is\nthat we have been trying."]),
        # A full stop in the middle of a sentence ends nothing.
        ("en", "He has been trying to get the U.S. government to accept it.",
         ["He has been trying to get\nthe U.S. government to accept it."]),
        ("en", "Every day at nine they met Prof. J. R. R. Tolkien there.",
         ["Every day at nine they met\nProf. J. R. R. Tolkien there."]),
        ("en", "You will find all of that explained in Fig. 7 of the book.",
         ["You will find all of that explained\nin Fig. 7 of the book."]),
        ("fr", "Il faudrait appeler quelqu'un de sérieux, p. ex. le voisin.",
         ["Il faudrait appeler quelqu'un de sérieux,\np. ex. le voisin."]),
        ("de", "Sie haben sich zum letzten Mal am 3. Oktober dort gesehen.",
         ["Sie haben sich zum letzten Mal\nam 3. Oktober dort gesehen."]),
        # A question in quotes does not end the sentence around it.
        ("en", "\"Is that really what you want?\" said the old man by the door.",
         ["\"Is that really what you want?\"\nsaid the old man by the door."]),
        # The last line has more than one word, and a text that fits has one line.
        ("en", "Several quick brown foxes suddenly jumped yesterday.",
         ["Several quick brown foxes\nsuddenly jumped yesterday."]),
        ("en", "The quick brown foxes jumped over them.", ["The quick brown foxes jumped over them."]),
    ],
)  # fmt: skip
def test_lines_end_where_a_reader_pauses(language: str, text: str, expected: list[str]) -> None:
    assert laid_out(text, language=language, subtitle_preset="netflix") == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("abcdé", min_size=1, max_size=12), st.sampled_from(("", " !", " ?", " »", " ! »", " ;")))
    ),
    st.sampled_from((RenderOptions(subtitle_preset="netflix"), RenderOptions(max_line_width=24, max_line_count=3))),
    st.floats(0.02, 3.0),
)
def test_no_line_begins_with_a_mark_that_french_sets_apart(
    given: list[tuple[str, str]], options: RenderOptions, seconds: float
) -> None:
    text = " ".join(f"« {word}{mark}" if mark.endswith("»") else word + mark for word, mark in given) or "a"
    for shown in laid_out(text, seconds, "fr", **msgspec.structs.asdict(options)):
        for line in shown.split("\n"):
            assert line[0] not in "!?;»"
            assert line[-1] != "«"


@pytest.mark.parametrize("preset", PRESETS)
def test_no_subtitle_ends_one_word_before_its_sentence(preset: Any) -> None:
    for length in range(2, 30):
        text = " ".join(["Word", *["word"] * (length - 2), "end."])
        found = laid_out(f"{text} Yet another sentence follows it.", 0.25, subtitle_preset=preset)
        assert not {"end.", "Word"} & {piece for shown in found for piece in shown.split("\n")}


def test_a_japanese_prefix_stays_with_its_noun() -> None:
    text = "これは先生が違う系に関するご質問いただいております"
    words = tuple(Word(word=c, start=n * 0.2, end=(n + 1) * 0.2) for n, c in enumerate(text))
    given = transcript(Segment(id=0, start=0.0, end=6.0, text=text, words=words), language="ja")
    lines = "\n".join(
        shown for _, _, shown in cues(rendered(given, "srt", RenderOptions(subtitle_preset="netflix")).text)
    )
    assert "ご質問" in lines


@pytest.mark.parametrize("options", [{}, {"max_line_width": 20}, {"max_line_width": 20, "max_line_count": 1}])
def test_dashes_without_room_for_two_speakers_are_named(options: dict[str, Any]) -> None:
    given = transcript(spoken("Really?", ["Really?"], 0.0, "Ada"), spoken("Yes.", ["Yes."], 0.5, "Bo"))
    text, warnings = rendered(given, "srt", RenderOptions(speakers="dash", **options))
    assert "-R" not in text
    assert warnings == ("speakers: dash has no effect without max_line_width and a max_line_count of 2 or more",)


def test_two_speakers_share_a_subtitle_with_dashes() -> None:
    given = transcript(
        spoken("Really?", ["Really?"], 0.0, "Ada"), spoken("Yes, of course.", ["Yes,", "of", "course."], 0.5, "Bo")
    )
    written = transcript(
        spoken("– Really?", ["–", "Really?"], 0.0, "Ada"),
        spoken("Yes, of course.", ["Yes,", "of", "course."], 1.0, "Bo"),
    )
    assert "\n– Really?\n-Yes" in rendered(written, "srt", RenderOptions(subtitle_preset="netflix")).text
    french = msgspec.structs.replace(given, language="fr")
    assert cues(rendered(given, "srt", RenderOptions(subtitle_preset="netflix")).text) == [
        (0, 2000, "-Really?\n-Yes, of course.")
    ]
    assert "- Really?\n- Yes" in rendered(french, "srt", RenderOptions(subtitle_preset="netflix")).text
    labels = rendered(given, "srt", RenderOptions(subtitle_preset="netflix", speakers="label"))
    assert [text for _, _, text in cues(labels.text)] == ["[Ada]: Really?", "[Bo]: Yes, of course."]
    assert named(labels.warnings) == {"min_duration", "max_characters_per_second"}
    bare = rendered(given, "srt", RenderOptions(subtitle_preset="netflix", speakers="none"))
    assert [text for _, _, text in cues(bare.text)] == ["Really?", "Yes, of course."]


def test_a_short_subtitle_stays_into_the_pause_after_and_leaves_the_gap() -> None:
    given = transcript(spoken("Yes.", ["Yes."], 0.0), spoken("No.", ["No."], 1.5))
    options = RenderOptions(min_duration=2.0, min_gap=0.25)
    text, warnings = rendered(given, "srt", options)
    assert [cue[:2] for cue in cues(text)] == [(0, 1250), (1500, 3500)]
    assert warnings == ("min_duration: the next speech comes before 2 seconds in 1 of 2 subtitles, first at 0:00.000",)


def test_a_long_segment_is_divided_and_a_long_word_is_cut_short() -> None:
    given = transcript(
        Segment(
            id=0,
            start=0.0,
            end=29.0,
            text="One two.",
            words=(Word(word="One", start=0.0, end=1.0), Word(word="two.", start=1.0, end=29.0)),
        )
    )
    text, warnings = rendered(given, "srt", RenderOptions(max_duration=5.0))
    assert cues(text) == [(0, 1000, "One"), (1000, 6000, "two.")]
    assert warnings == ()


def test_japanese_of_26_seconds_becomes_subtitles_that_can_be_shown() -> None:
    text = "今日は東京の天気について、専門家の田中さんにお話を伺いたいと思います。" * 5
    words = tuple(Word(word=c, start=n * 0.15, end=(n + 1) * 0.15) for n, c in enumerate(text))
    given = transcript(Segment(id=0, start=0.0, end=26.0, text=text, words=words), language="ja")
    found = cues(rendered(given, "srt", RenderOptions(subtitle_preset="netflix")).text)
    assert max(end - start for start, end, _ in found) <= 7000
    assert max(len(line) for _, _, shown in found for line in shown.split("\n")) <= 13
    assert max(shown.count("\n") for _, _, shown in found) == 1
    # The name stays whole, and sentences end subtitles.
    assert sum("田中さん" in shown for _, _, shown in found) == 5
    assert sum(shown.endswith("。") for _, _, shown in found) == 5


def test_options_replace_the_numbers_of_a_preset() -> None:
    assert rules_of(RenderOptions(subtitle_preset="netflix"), "en").width == 42
    assert rules_of(RenderOptions(subtitle_preset="netflix", max_line_width=30), "ja").width == 30
    assert rules_of(RenderOptions(subtitle_preset="bbc", speakers="none"), "en").speakers == "none"
    # An option that contradicts a number of the preset wins.
    rules = rules_of(RenderOptions(subtitle_preset="bbc", min_duration=9.0), "en")
    assert (rules.min_duration, rules.max_duration) == (9000, 9000)
    rules = rules_of(RenderOptions(subtitle_preset="bbc", max_duration=0.5), "en")
    assert (rules.min_duration, rules.max_duration) == (500, 500)
    with pytest.raises(InvalidOption, match="max_duration"):
        RenderOptions(min_duration=2.0, max_duration=1.0)


def test_a_name_that_must_be_cut_is_named() -> None:
    names = "Anna Bella Carla Dorothea Emilia Frederica Gabriella Henrietta Isabella Josephine"
    given = transcript(spoken(names, names.split()))
    warnings = rendered(given, "srt", RenderOptions(subtitle_preset="netflix")).warnings
    assert any(warning.startswith("line breaks: a name") for warning in warnings)


@pytest.mark.parametrize(
    "options",
    [
        RenderOptions(subtitle_preset="netflix"),
        RenderOptions(max_line_width=20, max_line_count=50),
        RenderOptions(max_line_width=10**6, max_line_count=10**6),
        RenderOptions(max_duration=3600.0),
    ],
)
def test_the_work_of_a_layout_grows_with_the_text(options: RenderOptions) -> None:
    words = [f"word{n}" for n in range(100)]
    lines = Counter[int]()
    before = sys.gettrace()

    def traced(length: int) -> Any:
        def trace(*_: object) -> Any:
            lines[length] += 1
            return trace

        return trace

    for length in (4, 8):
        given = transcript(*(spoken(" ".join(words), words, 50.0 * n) for n in range(length)))
        sys.settrace(traced(length))
        try:
            rendered(given, "srt", options)
        finally:
            sys.settrace(before)
    # Twice the text is twice the work, and a little more because the first subtitles look back less far.
    assert lines[8] <= 2.6 * lines[4]
