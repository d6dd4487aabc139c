"""Short stretches are decoded in several languages: what the decodings may decide, and what they may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api import Engine
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.context import JobContext
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.detection import LanguageDetector
from whisper_api.engine.whisper.language_changes import evidence, most_likely_languages
from whisper_api.engine.whisper.language_trials import (
    TRIAL_SECONDS,
    decoded_evidence,
    heard_alone,
    is_meaningful,
    logprobs_in,
)

RATE = 16_000
LANGUAGES = 5
EN, FR = range(2)
LOGPROBS = st.floats(-3.0, 0.0)


def heard(language: int, probability: float) -> np.ndarray:
    found = np.full(LANGUAGES, (1 - probability) / (LANGUAGES - 1))
    found[language] = probability
    return found


@given(st.floats(0.95, 1.0), LOGPROBS, LOGPROBS)
def test_a_fluent_translation_does_not_outweigh_a_clear_detection(
    probability: float, spoken: float, translated: float
) -> None:
    assert decoded_evidence(heard(FR, probability), {FR: spoken, EN: translated}).argmax() == FR


@given(st.floats(0.0, 1.0), LOGPROBS, LOGPROBS)
def test_a_language_that_was_not_tried_is_the_least_likely(probability: float, first: float, second: float) -> None:
    found = decoded_evidence(heard(2, probability), {EN: first, FR: second})
    assert max(found[2:]) <= min(found[EN], found[FR])


@given(st.floats(0.3, 0.6), st.floats(-2.0, -0.1), st.floats(0.5, 1.0))
def test_of_two_languages_that_sound_as_likely_the_more_probable_text_decides(
    probability: float, logprob: float, less: float
) -> None:
    alone = np.array([probability, probability, 0.0, 0.0, 0.0])
    assert decoded_evidence(alone, {EN: logprob, FR: logprob - less}).argmax() == EN
    assert decoded_evidence(alone, {EN: logprob - less, FR: logprob}).argmax() == FR


def test_a_short_answer_that_is_clear_and_well_decoded_has_its_own_language() -> None:
    speech = evidence(heard(EN, 0.98), heard(EN, 0.98), 8.0)
    inside, alone = heard(2, 0.3), heard(FR, 0.95)
    unweighed = evidence(inside, alone, 1.8)
    assert most_likely_languages(np.array([speech, unweighed, speech])) == [EN, EN, EN]
    decoded = decoded_evidence(alone, {EN: -0.8, FR: -0.3})
    assert most_likely_languages(np.array([speech, decoded, speech])) == [EN, FR, EN]
    # The text of English as English and of what the detector took it for.
    mistaken = decoded_evidence(heard(FR, 0.6), {EN: -0.2, FR: -0.9})
    assert most_likely_languages(np.array([speech, mistaken, speech])) == [EN, EN, EN]


def test_improbable_texts_decide_nothing_and_a_new_language_needs_a_surer_one() -> None:
    assert is_meaningful({"en": -0.6, "fr": -1.4}, ["en"])
    assert not is_meaningful({"en": -0.9, "fr": -1.4}, ["en"])
    assert not is_meaningful({"en": -1.4, "fr": -0.6}, ["en"])
    assert is_meaningful({"en": -1.4, "fr": -0.6}, ["en", "fr"])
    assert is_meaningful({"en": -1.4, "fr": -0.4}, ["en"])


@pytest.mark.models
def test_english_is_most_probable_as_english_and_its_encoding_serves_all_decodings(
    engine: Engine, ctx: JobContext, short_call: Path, base_model_dir: Path
) -> None:
    audio = decode(short_call).audio
    short, long = Span(0, 4 * RATE), Span(0, round((TRIAL_SECONDS + 1) * RATE))
    with engine.models.lease(engine.whisper.source(engine.store.ensure("base"))) as whisper:
        detector = LanguageDetector(ctx, whisper, audio, engine.whisper.batching())
        alone, longer = heard_alone(detector, [short, long])
        assert (alone.likeliest, longer.likeliest) == ("en", "en")
        assert (alone.is_short, longer.is_short) == (True, False)
        assert alone.window.encoded is not None
        assert longer.window.encoded is None
        bare = replace(alone.window, encoded=None)
        found, again = logprobs_in(detector, [(alone.window, ["de", "en", "ko"]), (bare, ["de", "en", "ko"])])
        assert list(found) == ["de", "en", "ko"]
        assert max(found, key=lambda code: found[code]) == "en"
        assert again == pytest.approx(found, abs=0.02)
