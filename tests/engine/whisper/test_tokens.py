"""Tokens and their log probabilities, and which segment each goes to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from whisper_api import Engine, Segment, Transcript, TranscriptionOptions
from whisper_api.engine.whisper.model import load_tokenizer
from whisper_api.engine.whisper.tokens import hand_out_tokens, token_bytes, token_logprobs

TEXTS = (
    "Hello there.",
    " L'été, ça va?",
    " Über 300 €!",
    " こんにちは。元気ですか",
    " 😀🎉 ok",
    "  two  spaces ",
    "\n",
    "",
)


def window(tokens: Sequence[bytes], seek: int | None = 0) -> tuple[Segment, dict[int, bytes]]:
    """One segment that holds all tokens of a window."""
    content = dict(enumerate(tokens))
    text = b"".join(tokens).decode("utf-8", "replace").strip()
    segment = Segment(
        id=0,
        start=0.0,
        end=1.0,
        text=text,
        seek=seek,
        tokens=tuple(content),
        logprobs=token_logprobs(list(content), [-0.1 * number for number in content], content.__getitem__),
    )
    return segment, content


def cut(segment: Segment, *places: int) -> list[Segment]:
    """The segment cut before these characters, as sentences and speakers cut it."""
    bounds = [0, *places, len(segment.text)]
    return [replace(segment, text=segment.text[a:b].strip()) for a, b in itertools.pairwise(bounds)]


def test_a_segment_between_those_of_a_window_keeps_its_own_tokens() -> None:
    whole, content = window([b" Hello", b" there", b".", b" How", b" are", b" you", b"?"])
    first, last = cut(whole, 13)
    between = replace(first, text="Well.", seek=300, tokens=(5,), logprobs=())
    found = hand_out_tokens([first, between, last], content.__getitem__)
    assert [segment.tokens for segment in found] == [(0, 1, 2), (5,), (3, 4, 5, 6)]


def test_a_segment_gets_the_tokens_of_its_words() -> None:
    segment, content = window([b" Hello", b" there", b".", b" How", b" are", b" you", b"?"])
    first, second = hand_out_tokens(cut(segment, 13), content.__getitem__)
    assert (first.text, first.tokens) == ("Hello there.", (0, 1, 2))
    assert (second.text, second.tokens) == ("How are you?", (3, 4, 5, 6))
    assert [each.token for each in second.logprobs] == [" How", " are", " you", "?"]
    assert [each.logprob for each in second.logprobs] == [-0.3, -0.4, -0.5, -0.6]


def test_a_token_that_is_cut_goes_with_its_first_character() -> None:
    segment, content = window([b"ab", b"cd", b"ef"])
    assert [piece.tokens for piece in hand_out_tokens(cut(segment, 3), content.__getitem__)] == [(0, 1), (2,)]


def test_a_character_of_several_tokens_stays_whole() -> None:
    smile = "😀".encode()
    segment, content = window([b"a", smile[:2], smile[2:3], smile[3:], b"b"])
    first, second = hand_out_tokens(cut(segment, 1), content.__getitem__)
    assert first.tokens == (0,)
    assert second.tokens == (1, 2, 3, 4)
    assert [each.token for each in second.logprobs[:3]] == ["\ufffd"] * 3
    assert bytes(itertools.chain(*(each.bytes for each in second.logprobs))) == smile + b"b"


def test_windows_keep_to_their_own_tokens() -> None:
    one, content = window([b"one", b" two"])
    other = replace(one, seek=300)
    pieces = hand_out_tokens([*cut(one, 3), other], content.__getitem__)
    assert [piece.tokens for piece in pieces] == [(0,), (1,), (0, 1)]


@given(st.lists(st.sampled_from(TEXTS) | st.binary(max_size=6).map(lambda b: b.decode("latin-1"))), st.data())
def test_all_tokens_are_handed_out_once_and_in_order(texts: list[str], data: st.DataObject) -> None:
    content = "".join(texts).encode()
    places = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    segment, bytes_of = window([content[a:b] for a, b in itertools.pairwise([0, *places, len(content)])])
    borders = sorted(data.draw(st.lists(st.integers(0, len(segment.text)), max_size=5)))
    pieces = hand_out_tokens(cut(segment, *borders), bytes_of.__getitem__)
    assert tuple(token for piece in pieces for token in piece.tokens) == segment.tokens
    assert tuple(each for piece in pieces for each in piece.logprobs) == segment.logprobs
    # The text of a piece is that of its tokens, unless a token is cut.
    if len(pieces) == 1:
        assert b"".join(bytes_of[token] for token in pieces[0].tokens) == content


def test_a_probability_of_nothing_can_be_written_as_json() -> None:
    (found,) = token_logprobs([0], [-math.inf], lambda token: b"x")
    assert msgspec.json.decode(msgspec.json.encode(found))["logprob"] < -50


@pytest.mark.models
def test_the_bytes_of_tokens_are_those_of_the_text(base_model_dir: Path) -> None:
    tokenizer = load_tokenizer(base_model_dir, multilingual=True)
    for text in TEXTS:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(token_bytes(spelling) for spelling in encoded.tokens).decode() == text


@pytest.fixture(scope="module")
def transcript(engine: Engine, sample_call: Path, ecapa_path: Path) -> Transcript:
    return engine.transcribe(sample_call, TranscriptionOptions(language="en", diarize=True, logprobs=True))


@pytest.mark.models
def test_segments_of_a_real_transcript_have_their_own_tokens(transcript: Transcript) -> None:
    assert len(transcript.segments) > 5
    assert len(transcript.speakers) == 2
    for segment in transcript.segments:
        assert segment.seek is not None
        assert segment.seek / 100 <= segment.start + 0.01
        assert len(segment.tokens) == len(segment.logprobs) > 0
        said = bytes(itertools.chain(*(each.bytes for each in segment.logprobs))).decode()
        assert said.split() == segment.text.split()
        assert all(-100 <= each.logprob <= 0 for each in segment.logprobs)


@pytest.mark.cpu("on a GPU, a second pass gives the probabilities of tokens, in which none is suppressed")
@pytest.mark.models
def test_log_probabilities_are_those_of_the_decoding(transcript: Transcript) -> None:
    for _, group in itertools.groupby(transcript.segments, key=lambda segment: segment.seek):
        pieces = list(group)
        logprobs = [each.logprob for piece in pieces for each in piece.logprobs]
        assert pieces[0].avg_logprob is not None
        # The mean includes the end of text, so its log probability is the difference.
        end = pieces[0].avg_logprob * (len(logprobs) + 1) - sum(logprobs)
        assert -5 < end < 0.01


@pytest.mark.models
def test_tokens_are_there_without_word_times_and_log_probabilities_only_when_asked_for(
    engine: Engine, sample_call: Path
) -> None:
    plain = engine.transcribe(sample_call, TranscriptionOptions(language="en", align=False, diarize=False))
    assert all(segment.tokens and segment.seek is not None for segment in plain.segments)
    assert all(segment.logprobs == () for segment in plain.segments)
