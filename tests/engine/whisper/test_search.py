"""Decoding over a plain NumPy decoder, held against CTranslate2 with the same model and the same encoder output."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from numpy_decoder import Pair, Window

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.whisper.onnx.sampling import TokenPicker, language_probabilities
from whisper_api.engine.whisper.onnx.search import DecoderState, Decoding, Hypothesis, TokenRules, feed_sequence

RATE = 16_000
# Seconds of the sample call with speech and no pause.
SPANS = ((6.4, 14.3), (14.3, 21.6))
MARGIN_SECONDS = 5.0
CAP = 100
# Tokens of tests that need no whole text.
FEW = 12

pytestmark = pytest.mark.models


def windows_of(pair: Pair, recording: Path) -> list[Window]:
    audio = decode(recording).audio
    return [
        pair.window(audio[int(start * RATE) : int(end * RATE)], math.ceil(end - start + MARGIN_SECONDS))
        for start, end in SPANS
    ]


@pytest.fixture(scope="module")
def english(tiny_en_model_dir: Path, sample_call: Path) -> list[Window]:
    return windows_of(Pair(tiny_en_model_dir), sample_call)


@pytest.fixture(scope="module")
def multilingual(base_model_dir: Path, sample_call: Path) -> Window:
    return windows_of(Pair(base_model_dir), sample_call)[0]


def decoding(window: Window, **options: Any) -> Decoding:
    settings: dict[str, Any] = {
        "prompt": window.pair.prompt,
        "rules": window.pair.rules,
        "beam_size": 5,
        "temperature": 0.0,
        "best_of": 5,
        "max_new_tokens": CAP,
        "rng": np.random.default_rng(0),
        **options,
    }
    state = settings.pop("state", None) or window.state()
    return Decoding(state, settings.pop("prompt"), **settings)


def decoded(window: Window, **options: Any) -> Hypothesis:
    state = options.pop("state", None) or window.state()
    return finished(decoding(window, state=state, **options), state)


def finished(running: Decoding, state: DecoderState) -> Hypothesis:
    while not running.finished:
        running.accept(state.feed(*running.next_feed()))
    return running.result()


def agree(window: Window, cap: int = CAP, **options: Any) -> Hypothesis:
    """Decode with both and check that they agree."""
    prompt = options.get("prompt", window.pair.prompt)
    rules = options.get("rules", window.pair.rules)
    expected = window.generate(prompt, rules.suppress, cap, beam_size=options.get("beam_size", 5), patience=1.0)
    found = decoded(window, max_new_tokens=cap, **options)
    assert list(found.tokens) == expected.sequences_ids[0]
    assert found.score == pytest.approx(expected.scores[0], abs=1e-3)
    assert found.no_speech_prob == pytest.approx(expected.no_speech_prob, abs=1e-4)
    assert found.capped == (len(expected.sequences_ids[0]) >= cap)
    return found


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_the_text_is_ctranslate2s(english: list[Window], beam_size: int) -> None:
    for window in english[:2]:
        found = agree(window, beam_size=beam_size)
        assert len(found.tokens) > 10
        assert not found.capped


def test_a_multilingual_model_gives_ctranslate2s_text(multilingual: Window) -> None:
    found = agree(multilingual, 2 * FEW)
    assert "I didn't know you were there" in multilingual.pair.tokenizer.decode(list(found.tokens))


def test_text_before_the_transcript_is_heeded(english: list[Window]) -> None:
    pair = english[0].pair
    before = pair.tokenizer.encode(" so i said to her", add_special_tokens=False).ids
    plain = agree(english[0], FEW)
    found = agree(english[0], FEW, prompt=(pair.previous, *before, *pair.prompt))
    assert found.score != pytest.approx(plain.score, abs=1e-3)


@pytest.mark.parametrize("beam_size", [1, 5])
def test_suppressed_tokens_are_not_taken(english: list[Window], beam_size: int) -> None:
    rules = english[1].pair.rules
    unwanted = agree(english[1], FEW, beam_size=beam_size).tokens
    found = agree(english[1], FEW, beam_size=beam_size, rules=replace(rules, suppress=(*rules.suppress, *unwanted)))
    assert not set(unwanted) & set(found.tokens)


@pytest.mark.parametrize("beam_size", [1, 2, 5])
@pytest.mark.parametrize("cap", [1, 5])
def test_no_more_tokens_than_the_cap(english: list[Window], beam_size: int, cap: int) -> None:
    found = agree(english[0], cap, beam_size=beam_size)
    assert found.capped
    assert len(found.tokens) == cap


def test_a_text_that_ends_at_the_cap_is_as_long_as_without_it(english: list[Window]) -> None:
    length = len(decoded(english[0], beam_size=1).tokens)
    assert not agree(english[0], length + 1, beam_size=1).capped
    assert agree(english[0], length, beam_size=1).capped


def test_a_decoding_goes_on_where_it_stopped(english: list[Window]) -> None:
    whole = decoded(english[0], beam_size=2, max_new_tokens=FEW)
    state = english[0].state()
    running = decoding(english[0], state=state, beam_size=2, max_new_tokens=FEW)
    calls = 0
    while not running.finished:
        calls += 1
        with pytest.raises(RuntimeError, match="not finished"):
            running.result()
        running.accept(state.feed(*running.next_feed()))
    assert calls >= FEW
    assert running.result() == whole


def test_older_cache_entries_are_not_attended_to(english: list[Window]) -> None:
    state = english[0].state()
    whole = decoded(english[0], state=state, beam_size=2, max_new_tokens=FEW)
    assert state.length > FEW
    again = decoded(english[0], state=state, beam_size=2, max_new_tokens=FEW)
    assert again.tokens == whole.tokens
    assert again.score == pytest.approx(whole.score, abs=1e-5)


def test_the_score_is_what_the_decoder_gives_the_text(english: list[Window]) -> None:
    window = english[1]
    rules = window.pair.rules
    for options in ({"beam_size": 2}, {"temperature": 0.6}):
        found = decoded(window, **options)
        logits = feed_sequence(window.state(), [*window.pair.prompt, *found.tokens])[len(window.pair.prompt) - 1 :]
        logits[:, list(rules.suppress)] = -np.inf
        logits[0, list(rules.blank)] = -np.inf
        taken = log_softmax(logits)[np.arange(len(logits)), [*found.tokens, rules.eot]]
        assert found.score == pytest.approx(taken.sum() / len(found.tokens), abs=1e-4)
        assert found.logprobs == pytest.approx(taken[:-1], abs=1e-3)


def test_sampling_is_repeatable_with_a_seed(english: list[Window]) -> None:
    first, same, other = (
        decoded(english[1], temperature=0.8, max_new_tokens=FEW, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == same
    assert first.tokens != other.tokens


class TwoTexts:
    """A decoder of two texts that are equally likely to begin, of which one is much less likely to go on.

    Token 0 begins a transcript and 1 ends it. 2 is followed by 2 with near certainty, 3 by any of the other tokens.
    """

    RULES = TokenRules(sot=0, eot=1, no_speech=4, suppress=(), blank=())
    VOCABULARY = 100
    attention = np.zeros((1, 1, 1), np.float32)

    def __init__(self) -> None:
        self.length = 0

    def feed(self, tokens: NDArray[np.int64], positions: object, visible: object) -> NDArray[np.float32]:
        self.length += len(tokens)
        logits = np.zeros((len(tokens), self.VOCABULARY), np.float32)
        logits[tokens == 0, 2:4] = 20.0
        logits[tokens == 2, 2] = 20.0
        return logits


@pytest.mark.parametrize("seed", range(5))
def test_the_most_probable_of_the_samples_is_the_result(seed: int) -> None:
    state = TwoTexts()
    running = Decoding(
        state,
        (0,),
        rules=TwoTexts.RULES,
        beam_size=1,
        temperature=1.0,
        best_of=20,
        max_new_tokens=4,
        rng=np.random.default_rng(seed),
    )
    found = finished(running, state)
    assert found.tokens == (2, 2, 2, 2)
    assert found.score == pytest.approx(math.log(0.5) / 4, abs=1e-3)


def test_sampling_at_a_low_temperature_is_greedy_search(english: list[Window]) -> None:
    sampled, greedy = (decoded(english[0], max_new_tokens=FEW, beam_size=1, temperature=t) for t in (0.001, 0.0))
    assert sampled.tokens == greedy.tokens


def test_a_prompt_needs_a_start(english: list[Window]) -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        decoding(english[0], prompt=(english[0].pair.no_timestamps,))


def test_languages_are_as_probable_as_ctranslate2_says(multilingual: Window) -> None:
    pair = multilingual.pair
    tokens = pair.decoder.config["lang_ids"]
    probabilities = language_probabilities(feed_sequence(multilingual.state(), [pair.rules.sot])[0], tokens)
    found = {pair.tokenizer.id_to_token(token): float(p) for token, p in zip(tokens, probabilities, strict=True)}
    expected = dict(pair.ct2.detect_language(multilingual.encoded)[0])
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(found, key=lambda language: found[language]) == "<|en|>"


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float64)


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 5),
    vocabulary=st.sampled_from([1, 3, 511, 512, 513, 1500, 5000]),
    count=st.integers(1, 12),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_the_best_continuations_are_those_of_a_full_sort(
    seed: int, rows: int, vocabulary: int, count: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, levels, (rows, vocabulary)).astype(np.float32)
    scores = rng.normal(size=rows)
    totals = log_softmax(logits) + scores[:, None]
    found_rows, tokens, found = TokenPicker(vocabulary).best(logits, scores, count)
    expected = np.sort(totals.ravel())[::-1][:count]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(totals[found_rows, tokens], expected, atol=1e-4)
    assert len(set(zip(found_rows, tokens, strict=True))) == len(tokens)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 1300).astype(np.float32)
    logits[::7] = -np.inf
    draws = 50_000
    tokens, log_probabilities = TokenPicker(len(logits)).sample(logits, temperature, draws, rng)
    expected = np.exp(log_softmax(logits[None] / np.float32(temperature))[0])
    counts = np.bincount(tokens, minlength=len(logits))
    assert not counts[::7].any()
    np.testing.assert_allclose(counts / draws, expected, atol=5 * math.sqrt(0.25 / draws))
    np.testing.assert_allclose(log_probabilities, log_softmax(logits[None])[0][tokens], atol=1e-4)
