"""Speakers of words and segments: what overlaps most, splits where they change, and no flicker."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_api.engine.diarize.assignment import assign_speakers
from whisper_api.schema import Segment, Turn, Word


def words_at(*spans: tuple[str, float, float]) -> tuple[Word, ...]:
    return tuple(Word(word=text, start=start, end=end) for text, start, end in spans)


def segment_of(words: tuple[Word, ...], text: str | None = None, **fields: Any) -> Segment:
    text = " ".join(word.word for word in words) if text is None else text
    return Segment(id=7, start=words[0].start, end=words[-1].end, text=text, words=words, **fields)


def speakers(segments: tuple[Segment, ...]) -> list[str | None]:
    return [word.speaker for segment in segments for word in segment.words]


def test_segments_without_turns_do_not_change() -> None:
    segment = segment_of(words_at(("a", 0, 1)))
    assert assign_speakers([segment], []) == (segment,)


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    words = words_at(("Hello,", 0.0, 0.4), ("you.", 0.4, 0.9), ("Good", 1.1, 1.4), ("morning!", 1.4, 2.0))
    before = Segment(id=3, start=-0.1, end=0.0, text=" uh")
    segment = segment_of(words, "  Hello,  you. Good\tmorning!", avg_logprob=-0.5, flags=("repetitive",))
    turns = [Turn(0.0, 1.0, "A"), Turn(1.0, 2.1, "B")]
    found = assign_speakers([before, segment], turns)
    assert [piece.id for piece in found] == [0, 1, 2]
    assert [piece.text for piece in found] == [" uh", "Hello,  you.", "Good\tmorning!"]
    assert [piece.speaker for piece in found] == ["A", "A", "B"]
    assert [(piece.start, piece.end) for piece in found[1:]] == [(0.0, 0.9), (1.1, 2.0)]
    assert all(piece.avg_logprob == -0.5 and piece.flags == ("repetitive",) for piece in found[1:])
    assert tuple(word.word for piece in found for word in piece.words) == tuple(word.word for word in words)


def test_text_without_spaces_is_split_between_its_characters() -> None:
    words = words_at(("你", 0, 1), ("好", 1, 2), ("好", 2, 3), ("吗", 3, 4))
    found = assign_speakers([segment_of(words, "你好好吗")], [Turn(0, 2, "A"), Turn(2, 4, "B")])
    assert [piece.text for piece in found] == ["你好", "好吗"]


def test_words_that_do_not_stand_in_the_text_are_joined() -> None:
    words = words_at(("one", 0, 1), ("two", 1, 2), ("three", 2, 3), ("four", 3, 4))
    found = assign_speakers([segment_of(words, "1 2 3 4")], [Turn(0, 2, "A"), Turn(2, 4, "B")])
    assert [piece.text for piece in found] == ["one two", "three four"]


def test_a_word_between_turns_takes_the_nearest() -> None:
    words = words_at(("a", 0.0, 1.0), ("b", 1.2, 1.4), ("c", 2.6, 2.8), ("d", 3.0, 4.0))
    found = assign_speakers([segment_of(words)], [Turn(0, 1, "A"), Turn(3, 4, "B")])
    assert speakers(found) == ["A", "A", "B", "B"]


def test_a_word_long_after_the_end_takes_the_turn_that_ends_last() -> None:
    turns = [Turn(0.0, 9.0, "A"), Turn(1.0, 2.0, "B")]
    assert speakers(assign_speakers([segment_of(words_at(("x", 20, 21)))], turns)) == ["A"]
    assert speakers(assign_speakers([segment_of(words_at(("x", 5, 5)))], turns)) == ["A"]


def test_a_segment_without_words_gets_the_speaker_of_the_longest_overlap_or_the_nearest_turn() -> None:
    turns = [Turn(0, 1, "A"), Turn(1, 3, "B"), Turn(4, 5, "A")]
    segments = [Segment(id=0, start=0, end=3, text="x"), Segment(id=1, start=3.1, end=3.3, text="y")]
    assert [segment.speaker for segment in assign_speakers(segments, turns)] == ["B", "B"]


def test_a_single_marginal_word_does_not_change_the_speaker() -> None:
    words = words_at(("a", 0.0, 1.0), ("b", 1.0, 1.4), ("c", 1.4, 2.4))
    # B has a little more than half of the middle word, A the rest.
    turns = [Turn(0.0, 1.18, "A"), Turn(1.18, 1.4, "B"), Turn(1.4, 2.4, "A")]
    found = assign_speakers([segment_of(words)], turns)
    assert speakers(found) == ["A", "A", "A"]
    assert len(found) == 1


def test_a_clear_backchannel_of_one_word_is_kept() -> None:
    words = words_at(("so", 0.0, 1.0), ("yeah", 1.05, 1.35), ("then", 1.4, 2.4))
    turns = [Turn(0.0, 1.0, "A"), Turn(1.02, 1.38, "B"), Turn(1.4, 2.4, "A")]
    found = assign_speakers([segment_of(words)], turns)
    assert [(piece.text, piece.speaker) for piece in found] == [("so", "A"), ("yeah", "B"), ("then", "A")]


def test_overlapped_words_go_to_the_speaker_who_began_first() -> None:
    turns = [Turn(0.5, 3.0, "B"), Turn(0.0, 2.0, "A")]
    assert speakers(assign_speakers([segment_of(words_at(("x", 1.0, 1.5)))], turns)) == ["A"]


times = st.integers(0, 400).map(lambda tenths: tenths / 10)


@st.composite
def turn_lists(draw: st.DrawFn) -> list[Turn]:
    begins = draw(st.lists(times, min_size=1, max_size=12))
    return [
        Turn(start, start + draw(st.integers(1, 80)) / 10, draw(st.sampled_from(["A", "B", "C"]))) for start in begins
    ]


@st.composite
def transcripts(draw: st.DrawFn) -> list[Segment]:
    at, segments = 0.0, []
    for number in range(draw(st.integers(1, 5))):
        words = []
        for _ in range(draw(st.integers(0, 6))):
            at += draw(st.integers(0, 10)) / 10
            end = at + draw(st.integers(1, 20)) / 10
            words.append(Word(word=draw(st.sampled_from(["a", "aa", "b."])), start=at, end=end))
            at = end
        start = words[0].start if words else at
        end = words[-1].end if words else at + 1.0
        at = end
        text = " ".join(word.word for word in words) or "x"
        segments.append(Segment(id=number, start=start, end=end, text=text, words=tuple(words)))
    return segments


@given(transcripts(), turn_lists())
def test_words_and_text_survive_and_every_segment_has_one_speaker(segments: list[Segment], turns: list[Turn]) -> None:
    found = assign_speakers(segments, turns)
    assert [piece.id for piece in found] == list(range(len(found)))
    for piece in found:
        assert piece.speaker in {turn.speaker for turn in turns}
        assert {word.speaker for word in piece.words} <= {piece.speaker}
        assert piece.start <= piece.end
        if piece.words:
            assert piece.text.split() == [word.word for word in piece.words]
    given_words = [(word.word, word.start, word.end) for segment in segments for word in segment.words]
    assert [(word.word, word.start, word.end) for piece in found for word in piece.words] == given_words
    assert " ".join(piece.text for piece in found) == " ".join(segment.text for segment in segments)
    for a, b in itertools.pairwise(found):
        assert a.start <= b.start


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(transcripts(), turn_lists())
def test_the_same_as_whisperx_where_nothing_is_split_or_filled_in(segments: list[Segment], turns: list[Turn]) -> None:
    pandas = pytest.importorskip("pandas")
    from whisperx.diarize import assign_word_speakers

    rows = [(turn.start, turn.end, turn.speaker) for turn in turns]
    table = pandas.DataFrame(rows, columns=["start", "end", "speaker"])
    result = {
        "segments": [
            {"start": s.start, "end": s.end, "words": [{"start": w.start, "end": w.end} for w in s.words]}
            for s in segments
        ]
    }
    theirs = assign_word_speakers(table, result)["segments"]
    for segment, expected in zip(segments, theirs, strict=True):
        labels = {word.get("speaker") for word in expected["words"]} | {expected.get("speaker")}
        if len(labels) == 1 and None not in labels:
            (found,) = assign_speakers([segment], turns)
            assert {found.speaker} | {word.speaker for word in found.words} == labels
