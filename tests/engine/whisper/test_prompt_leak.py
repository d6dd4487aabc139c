"""Words of the prompt that nobody says do not get into the text; words that somebody says stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from whisper_api import Engine, Transcript, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.whisper import window_decoder
from whisper_api.engine.whisper.prompt import copied_runs, is_heard, may_be_leaked
from whisper_api.engine.whisper.resemblance import likeness, plain_words
from whisper_api.engine.whisper.window import Attempt

RATE = 16_000
PROMPT = "The following is a meeting about Zyntriqix, Digique Plus and CynapseFive."
HOTWORDS = "Zyntriqix, CynapseFive"

Floats = NDArray[np.float32]


def noise(kind: str) -> Floats:
    """Eight seconds of white noise, or of noise that falls by 3 dB an octave (pink)."""
    count = 8 * RATE
    samples = np.random.default_rng(0).normal(size=count)
    if kind == "pink":
        spectrum = np.fft.rfft(samples)
        samples = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), count)
    loud: Floats = (0.3 * samples / np.abs(samples).max()).astype(np.float32)
    return loud


def transcribed(engine: Engine, audio: Floats, **options: object) -> Transcript:
    values = {"model": "base", "language": "en", "vad": "none", "align": False, "diarize": False}
    # The judgement of invented text would leave out the same words where it hears no voice.
    values |= {"hallucinations": "keep", **options}
    return engine.transcribe(audio, TranscriptionOptions(**values))  # type: ignore[arg-type]


@pytest.mark.models
@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("base", "white", {"prompt": PROMPT}),
        ("base", "pink", {"hotwords": HOTWORDS}),
        ("tiny.en", "white", {"prompt": PROMPT}),
    ],
)
def test_noise_does_not_give_the_words_of_the_prompt(
    engine: Engine,
    base_model_dir: Path,
    tiny_en_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    kind: str,
    words: dict[str, str],
) -> None:
    found = transcribed(engine, noise(kind), model=model, **words)
    assert found.text == transcribed(engine, noise(kind), model=model).text == ""
    assert any("prompt's own words" in warning for warning in found.warnings)
    # Without the comparison they come out, and nothing says so.
    monkeypatch.setattr(window_decoder, "may_be_leaked", lambda *_: False)
    leaked = transcribed(engine, noise(kind), model=model, **words)
    assert "Zyntriqix" in leaked.text or "CynapseFive" in leaked.text
    assert not leaked.segments[0].flags


@pytest.mark.models
def test_what_a_speaker_says_of_the_prompt_stays(engine: Engine, sample_call: Path, base_model_dir: Path) -> None:
    audio = decode(sample_call).audio[int(6.4 * RATE) : int(14.3 * RATE)]
    plain = transcribed(engine, audio)
    found = transcribed(engine, audio, prompt=plain.text)
    assert len(copied_runs(found.text, plain_words(plain.text))[0]) >= 4
    assert "New Jersey" in found.text
    assert found.segments[0].flags == ()
    assert found.warnings == ()


@pytest.mark.models
def test_words_that_replace_speech_make_room_for_it(
    engine: Engine, sample_call: Path, base_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = decode(sample_call).audio[int(6.4 * RATE) : int(14.3 * RATE)]
    plain = transcribed(engine, audio)
    real = window_decoder.WindowDecoder.attempt

    def leaking(self: window_decoder.WindowDecoder, decoded: object, temperature: float) -> Attempt:
        attempt = real(self, decoded, temperature)  # type: ignore[arg-type]
        attempts.append(attempt.text)
        return dataclasses.replace(attempt, text=PROMPT) if len(attempts) == 1 else attempt

    attempts: list[str] = []
    monkeypatch.setattr(window_decoder.WindowDecoder, "attempt", leaking)
    found = transcribed(engine, audio, prompt=PROMPT)
    assert found.text == plain.text
    assert found.segments[0].flags == ("prompt_leak",)
    assert len(found.warnings) == 1
    assert len(attempts) == 2


def test_copied_words_are_found_in_their_order() -> None:
    prompt = plain_words(PROMPT)
    assert copied_runs("So, the following is a MEETING about  zyntriqix!", prompt) == [tuple(prompt[:7])]
    assert copied_runs("is a thing, about a meeting", prompt) == [("is", "a"), ("about",), ("a", "meeting")]
    assert copied_runs("nothing at all", prompt) == []
    assert copied_runs("anything", []) == []


def test_a_text_is_compared_if_it_copies_much_or_if_nobody_seems_to_speak() -> None:
    name = [("zyntriqix",)]
    text = "we saw zyntriqix on the way to the other place"
    assert not may_be_leaked(text, name, 0.1)
    assert may_be_leaked(text, name, 0.7)
    assert may_be_leaked("zyntriqix", name, 0.1)
    assert may_be_leaked(text, [("on", "the", "way", "to")], 0.1)
    assert not may_be_leaked(text, [], 0.99)


def test_what_is_said_sounds_like_the_text_without_the_prompt() -> None:
    assert is_heard([("zyntriqix",)], "and then Centrics said")
    assert is_heard([("cynapsefive",)], "the synapse five thing")
    # Abbreviations differ from what is heard, the names do not.
    assert is_heard([("mr", "dupont"), ("mrs", "durand")], "missed to do hunt, and misses your end.")
    assert not is_heard([tuple(plain_words(PROMPT))], "testing, testing, testing")
    assert not is_heard([("mme", "durand")], "Ha ha ha ha !")
    assert not is_heard([("zyntriqix",)], "")


def test_likeness_follows_the_sound_and_not_the_letters() -> None:
    assert likeness("Sheyla", "well, Sheila is here") == 1.0
    assert likeness("Kubernetes", "a cooper netties cluster") > 0.8
    assert likeness("Björk", "bjork") == 1.0
    assert likeness("东京", "我在东京") == 1.0
    assert likeness("Zyntriqix", "testing, one, two, three") < 0.5
    assert likeness("!?", "anything") == likeness("anything", "") == 0.0
