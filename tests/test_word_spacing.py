"""The positions of words in a text, and the spaces between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.schema import Segment, Word
from whisper_api.word_spacing import joined, pieces, space_between, word_spans


def segment(text: str, *words: str) -> Segment:
    return Segment(id=0, start=0.0, end=1.0, text=text, words=tuple(Word(word=w, start=0.0, end=1.0) for w in words))


@pytest.mark.parametrize(
    ("language", "text", "words", "expected"),
    [
        ("zh", "And so my", ["And", "so", "my"], ["And", " so", " my"]),
        ("zh", "我用 Google 搜索", [*"我用", "Google", *"搜索"], ["我", "用", " Google", " 搜", "索"]),
        # An alignment model of Chinese or Japanese has a word for each character.
        ("ja", "Go on。", [*"Goon。"], ["G", "o", " o", "n", "。"]),
        ("en", " Hello,  world.", ["Hello,", "world."], ["Hello,", " world."]),
        # The word has one space where the text has two, or another kind of space.
        ("fr", "Oui\u00a0 ! Non.", ["Oui !", "Non."], ["Oui !", " Non."]),
        # Marks outside of every word.
        ("en", "- yes – no!", ["yes", "no"], ["- yes –", " no!"]),
        ("en", '"yes" no', ["yes", "no"], ['"yes"', " no"]),
        # Words that are not in the text.
        ("en", "other", ["a", "b"], ["a", " b"]),
        ("ja", "other", ["今", "日"], ["今", "日"]),
        ("en", "a a a", ["a", "a", "a"], ["a", " a", " a"]),
    ],
)
def test_words_keep_the_spaces_of_the_text(language: str, text: str, words: list[str], expected: list[str]) -> None:
    assert pieces(segment(text, *words), language) == expected


word = st.text(st.sampled_from("aB1é日本はข.。,-"), min_size=1, max_size=4)


@given(st.lists(st.tuples(word, st.sampled_from(["", " ", "  ", "\u3000", "\n"])), max_size=12), st.sampled_from("ef"))
def test_put_together_they_are_the_text(given: list[tuple[str, str]], language: str) -> None:
    text = "".join(word + space for word, space in given)
    found = pieces(segment(f" {text}", *(word for word, _ in given)), language)
    assert "".join(found) == " ".join(text.split())
    assert [piece.strip() for piece in found] == [word for word, _ in given]
    spans = word_spans(text, [word for word, _ in given])
    assert spans is not None
    assert [text[start:end] for start, end in spans] == [word for word, _ in given]


def test_long_texts_take_no_long_time() -> None:
    words = [f"w{n}" for n in range(100_000)]
    assert "".join(pieces(segment(" ".join(words), *words), "en")) == " ".join(words)
    assert word_spans("\u00a0\u00a0".join(words), ["x", *words]) is None


@pytest.mark.parametrize(
    ("before", "after", "space"),
    [
        ("a", "b", " "),
        ("。", "b", ""),
        ("a", "日", ""),
        ("한", "국", " "),
        ("", "a", ""),
        ("a", "", ""),
        ("ア", "a", ""),
    ],
)
def test_scripts_decide_what_stands_between_texts(before: str, after: str, space: str) -> None:
    assert space_between(before, after) == space
    assert joined([before, f" {after} "]) == before + space + after
