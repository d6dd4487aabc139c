"""Terms of long lists come out where they are said, and nowhere else."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from whisper_api import Engine, InvalidOption, Transcript, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.whisper import window_decoder
from whisper_api.engine.whisper.onnx.model import OnnxWhisper
from whisper_api.engine.whisper.prompt import TERMS_OF_A_WINDOW, Vocabulary, has_term
from whisper_api.engine.whisper.resemblance import Sounds
from whisper_api.engine.whisper.window import Attempt

RATE = 16_000
FIRST = ("Hart", "Lind", "Berg", "Stein", "Wood", "Ash", "Black", "Carl", "Dan", "Gold", "Hol", "Kings", "Mor", "Peter")
LAST = ("man", "qvist", "son", "ford", "ley", "field", "burg", "worth", "well", "ton", "dale", "hurst", "kamp", "ridge")
OTHERS = tuple(first + last for first, last in itertools.product(FIRST, LAST))


def transcribed(engine: Engine, sample_call: Path, begin: float, end: float, *terms: str) -> Transcript:
    options = TranscriptionOptions(
        model="base", language="en", vad="none", align=False, diarize=False, vocabulary=terms or None
    )
    return engine.transcribe(decode(sample_call).audio[int(begin * RATE) : int(end * RATE)], options)


@pytest.mark.models
def test_a_name_among_hundreds_is_spelled_as_in_the_list(
    engine: Engine, sample_call: Path, base_model_dir: Path
) -> None:
    plain = transcribed(engine, sample_call, 14.4, 17.9)
    assert not has_term(plain.text, "Sheyla")
    found = transcribed(engine, sample_call, 14.4, 17.9, *OTHERS[:100], "Sheyla", *OTHERS[100:])
    assert has_term(found.text, "Sheyla")
    assert not any(has_term(found.text, other) for other in OTHERS)
    assert found.segments[0].flags == ()
    assert found.warnings == ()


@pytest.mark.models
def test_terms_that_nobody_says_change_nothing(engine: Engine, sample_call: Path, base_model_dir: Path) -> None:
    plain = transcribed(engine, sample_call, 6.4, 14.3)
    assert transcribed(engine, sample_call, 6.4, 14.3, *OTHERS).text == plain.text


@pytest.mark.cpu("keeps the encoder's output on a CPU only")
@pytest.mark.models
def test_a_window_without_similar_terms_is_decoded_once(
    engine: Engine, sample_call: Path, base_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = window_decoder.WindowDecoder.attempt
    texts: list[str] = []

    def counted(self: window_decoder.WindowDecoder, decoded: object, temperature: float) -> Attempt:
        attempt = real(self, decoded, temperature)  # type: ignore[arg-type]
        texts.append(attempt.text)
        return attempt

    encode = OnnxWhisper.encode
    encoded: list[int] = []

    def watched(self: OnnxWhisper, samples: Any, frames: int) -> Any:
        encoded.append(frames)
        return encode(self, samples, frames)

    monkeypatch.setattr(window_decoder.WindowDecoder, "attempt", counted)
    monkeypatch.setattr(OnnxWhisper, "encode", watched)
    transcribed(engine, sample_call, 6.4, 14.3, "Bhattacharya", "Papadopoulos", "Jersey")
    assert len(texts) == 1
    transcribed(engine, sample_call, 6.4, 14.3, "Dyane")
    assert len(texts) == 3
    # The second decoding takes the encoder's output of the first.
    assert len(encoded) == 2


@pytest.mark.models
def test_terms_that_cannot_be_used_are_named(engine: Engine, sample_call: Path, base_model_dir: Path) -> None:
    long = "".join(chr(0x10380 + number % 30) for number in range(100))
    found = transcribed(engine, sample_call, 12.0, 14.3, "...", long, "Dyane")
    (warning,) = found.warnings
    assert f"..., {long}" in warning
    assert "Dyane" not in warning


def test_a_name_of_a_vocabulary_is_for_servers(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="only a server"):
        engine.resolve(TranscriptionOptions(vocabulary="clients"))


def like(vocabulary: Vocabulary, text: str, *doubtful: str) -> list[str]:
    words = text.split()
    return vocabulary.like(words, [-3.0 if word in doubtful else -0.01 for word in words])


def test_the_most_similar_terms_come_first_and_those_of_the_text_not_at_all() -> None:
    vocabulary = Vocabulary(("Bo", "Kubernetes", "Krishnamurthy", "Krishna", "..."), lambda term: True)
    assert like(vocabulary, "the Krishna Murphy thing", "Murphy") == ["Krishnamurthy"]
    assert like(vocabulary, "Cuban eats and krishna murti", "Cuban", "murti") == ["Krishnamurthy", "Kubernetes"]
    assert like(vocabulary, "") == []
    assert vocabulary.warning is not None
    assert Vocabulary((), bool).warning is None
    many = Vocabulary([f"Ann{first}{last}" for first in "bdfgklmn" for last in "aeiou"], bool)
    assert len(like(many, "Ann", "Ann")) == TERMS_OF_A_WINDOW


def test_words_that_the_model_is_sure_of_give_way_only_to_terms_of_the_same_sound() -> None:
    vocabulary = Vocabulary(("Sheyla", "Szymanski"), bool)
    text = "Sheila met Shimanke at the station"
    assert like(vocabulary, text) == ["Sheyla"]
    assert like(vocabulary, text, "Shimanke") == ["Sheyla", "Szymanski"]


def test_all_terms_are_searched_as_each_alone() -> None:
    text = "We met Zintricic at the station, and Björn how can Sunweather"
    terms = [*OTHERS[::10], "Zyntriqix", "Björn Håkansson", "x", "…"]
    alone = [float(Sounds([term]).likeness(text)[0]) for term in terms]
    assert Sounds(terms).likeness(text).tolist() == pytest.approx(alone, abs=1e-5)
