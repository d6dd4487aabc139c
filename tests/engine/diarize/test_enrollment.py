"""Speakers recognised by a recording of their voice."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from whisper_api import Engine, InvalidAudio, InvalidOption, Transcript, TranscriptionOptions, VoiceEmbedding
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.diarize.enrollment import match_speakers
from whisper_api.engine.diarize.open_models import CAMPPLUS
from whisper_api.voices import VoiceSample

RATE = 16_000
THRESHOLD = CAMPPLUS.same_person
Floats = np.ndarray[Any, np.dtype[np.float32]]
SPEAKERS = TranscriptionOptions(language="en", align=False, diarize=True, model="tiny.en", beam_size=1)
TURNS = TranscriptionOptions(task="diarize")


def axis(number: int) -> Floats:
    vector: Floats = np.zeros(8, np.float32)
    vector[number] = 1.0
    return vector


def between(similarity: float, other: int) -> Floats:
    """A voice that is so similar to speaker 0, and for the rest to nobody."""
    mixed: Floats = similarity * axis(0) + np.float32(np.sqrt(1 - similarity**2)) * axis(other)
    return mixed


def matched(speakers: dict[str, Floats], known: dict[str, Floats]) -> dict[str, str]:
    """Label to name."""
    similarity = np.array([[one @ other for other in known.values()] for one in speakers.values()], np.float32)
    pairs = match_speakers(similarity.reshape(len(speakers), len(known)))
    return {list(speakers)[row]: list(known)[column] for row, column in pairs}


def test_each_speaker_gets_the_name_of_the_most_similar_voice() -> None:
    speakers = {"SPEAKER_00": axis(0), "SPEAKER_01": axis(1)}
    assert matched(speakers, {"Ada": axis(1), "Bo": between(0.9, 5)}) == {
        "SPEAKER_00": "Bo",
        "SPEAKER_01": "Ada",
    }


def test_below_the_threshold_nobody_is_named() -> None:
    speakers = {"SPEAKER_00": axis(0)}
    assert matched(speakers, {"Ada": between(THRESHOLD - 0.01, 5)}) == {}
    assert matched(speakers, {"Ada": between(THRESHOLD + 0.01, 5)}) == {"SPEAKER_00": "Ada"}
    assert matched(speakers, {}) == {}
    assert matched({}, {"Ada": axis(0)}) == {}


def test_each_pair_has_its_own_threshold() -> None:
    similarity = np.array([[0.7, 0.6], [0.7, 0.6]], np.float32)
    assert match_speakers(similarity, np.array([[0.8, 0.5], [0.6, 0.8]], np.float32)) == [(0, 1), (1, 0)]
    assert match_speakers(similarity, np.full((2, 2), 0.8, np.float32)) == []


def test_a_name_goes_to_one_speaker_only() -> None:
    speakers = {"SPEAKER_00": axis(0), "SPEAKER_01": between(0.9, 2)}
    assert matched(speakers, {"Ada": axis(0)}) == {"SPEAKER_00": "Ada"}
    assert matched({"SPEAKER_00": axis(0)}, {"Ada": between(0.8, 2), "Bo": axis(0)}) == {"SPEAKER_00": "Bo"}


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_the_pairs_are_one_to_one_and_above_the_threshold(speakers: int, voices: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int, name: str) -> dict[str, Floats]:
        vectors = rng.normal(size=(count, 3)).astype(np.float32)
        return {f"{name}{n}": vector / np.linalg.norm(vector) for n, vector in enumerate(vectors)}

    labels, known = some(speakers, "SPEAKER_0"), some(voices, "voice")
    found = matched(labels, known)
    assert len(set(found.values())) == len(found)
    assert all(float(labels[label] @ known[name]) >= THRESHOLD for label, name in found.items())


# --- with real voices -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    return decode(sample_call).audio


def wav(audio: Floats) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


# By the call's .rttm: the longest stretches in which one of the two speaks alone, in seconds.
ALONE = {"Diane": (11.1, 14.4), "Sheila": (21.9, 27.8)}


@pytest.fixture(scope="module")
def voices(call: Floats) -> dict[str, bytes]:
    """A recording of each speaker of the call."""
    return {name: wav(call[int(start * RATE) : int(end * RATE)]) for name, (start, end) in ALONE.items()}


@pytest.fixture(scope="module")
def both(call: Floats) -> Floats:
    """The part of the call in which Diane introduces herself, then Sheila, and both go on."""
    return call[int(11 * RATE) : int(28 * RATE)]


def one_speaks(call: Floats) -> Floats:
    """The part of the call in which Sheila speaks alone."""
    return call[int(21.7 * RATE) : int(28.0 * RATE)]


def order(transcript: Transcript) -> list[str | None]:
    return [segment.speaker for segment in transcript.segments]


@pytest.mark.models
def test_speakers_who_are_known_have_their_names_everywhere(
    engine: Engine, both: Floats, voices: dict[str, bytes], ecapa_path: Path
) -> None:
    options = TranscriptionOptions(language="en", diarize=True, speaker_embeddings=True, beam_size=1)
    plain = engine.transcribe(both, options)
    named = engine.transcribe(both, options, known_speakers=voices)
    names = dict(zip(plain.speakers, named.speakers, strict=True))
    assert set(names) == {"SPEAKER_00", "SPEAKER_01"}
    assert set(names.values()) == {"Diane", "Sheila"}
    assert [names[str(segment.speaker)] for segment in plain.segments] == order(named)
    assert [names[str(word.speaker)] for word in plain.words] == [word.speaker for word in named.words]
    assert named.speaker_embeddings is not None
    assert set(named.speaker_embeddings) == {"Diane", "Sheila"}
    said = {name: " ".join(s.text for s in named.segments if s.speaker == name) for name in names.values()}
    assert "This is Diane" in said["Diane"]
    assert "I'm Sheila" in said["Sheila"]
    # When the recordings are swapped, the names follow the voices.
    exchanged = {"Sheila": voices["Diane"], "Diane": voices["Sheila"]}
    swapped = engine.transcribe(both, TURNS, known_speakers=exchanged)
    other = {"Diane": "Sheila", "Sheila": "Diane"}
    assert swapped.speakers == tuple(other[name] for name in named.speakers)


@pytest.mark.models
def test_an_enrolled_voice_names_its_speaker_with_a_score(
    engine: Engine, call: Floats, both: Floats, voices: dict[str, bytes], ecapa_path: Path
) -> None:
    sheila = engine.enroll(voices["Sheila"])
    assert (sheila.model, len(sheila.samples)) == ("campplus", 1)
    assert 4.0 < sheila.seconds < 6.0
    # The second recording is noisy, and shorter.
    noise = np.random.default_rng(0).normal(0, 0.01, 3 * RATE).astype(np.float32)
    twice = engine.enroll(voices["Sheila"], call[int(22 * RATE) : int(25 * RATE)] + noise)
    assert len(twice.samples) == 2
    assert twice.similarity(sheila) > 0.9
    assert sheila.similarity(engine.enroll(voices["Diane"])) < THRESHOLD

    found = engine.transcribe(both, TURNS, known_speakers={"Sheila": twice})
    assert found.speakers == ("SPEAKER_00", "Sheila")
    assert found.speaker_scores is not None
    assert set(found.speaker_scores) == {"Sheila"}
    score = found.speaker_scores["Sheila"]
    assert THRESHOLD <= score <= 1.0
    # The score decides, and the option overrides the model's threshold.
    strict = replace(TURNS, identify_threshold=score + 0.001)
    assert engine.transcribe(both, strict, known_speakers={"Sheila": twice}).speaker_scores == {}


def wide(narrow: Floats) -> Floats:
    """A voice with sound above a telephone's band: each syllable begins with a hiss of its loudness."""
    hiss = np.random.default_rng(0).normal(0, 1, len(narrow))
    spectrum = np.fft.rfft(hiss)
    spectrum[np.fft.rfftfreq(len(hiss), 1 / RATE) < 4000] = 0
    loudness = np.sqrt(np.convolve(np.square(narrow), np.full(512, 1 / 512), mode="same"))
    gate = np.arange(len(narrow)) // 2400 % 4 == 0
    found: Floats = (narrow + 2 * loudness * gate * np.fft.irfft(spectrum, len(hiss))).astype(np.float32)
    return found


@pytest.mark.models
def test_a_voice_is_compared_in_the_band_of_a_telephone(
    engine: Engine, call: Floats, ecapa_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording with a full band, and the call of the same person."""
    start, end = ALONE["Sheila"]
    full = wide(call[int(start * RATE) : int(end * RATE)])
    known = engine.enroll(full)
    (sample,) = known.samples
    assert not sample.telephone
    assert engine.enroll(one_speaks(call)).telephone
    assert len(sample.telephone_vector) == len(sample.vector)
    assert VoiceEmbedding.from_json(known.to_json()) == known
    in_band = engine.transcribe(one_speaks(call), TURNS, known_speakers={"Sheila": known})
    assert in_band.speakers == ("Sheila",)
    assert (in_band.speaker_scores or {})["Sheila"] >= (CAMPPLUS.same_person_telephone or 1.0)
    # Voices that were enrolled by earlier versions have no vectors of the band.
    earlier = replace(known, samples=(replace(sample, telephone_vector=()),))
    low = replace(TURNS, identify_threshold=0.01)
    scores = engine.transcribe(one_speaks(call), low, known_speakers={"Sheila": earlier}).speaker_scores
    assert scores is not None
    assert in_band.speaker_scores is not None
    assert scores["Sheila"] < in_band.speaker_scores["Sheila"]
    # And a voice that is known from a call is found in a recording with a full band.
    of_call = engine.enroll(one_speaks(call))
    assert engine.transcribe(full, TURNS, known_speakers={"Sheila": of_call}).speakers == ("Sheila",)


@pytest.mark.models
def test_a_voice_is_the_same_with_pauses_in_it(engine: Engine, call: Floats, ecapa_path: Path) -> None:
    """Three sentences of Diane, one after the other and with silence between them."""
    sentences = [call[int(start * RATE) : int(end * RATE)] for start, end in ((8.8, 9.9), (11.1, 14.4), (18.7, 21.4))]
    silence = np.zeros(2 * RATE, np.float32)
    paused = np.concatenate([part for sentence in sentences for part in (sentence, silence)])
    assert engine.enroll(np.concatenate(sentences)).similarity(engine.enroll(paused)) > 0.9


@pytest.mark.models
def test_nobody_is_named_after_a_voice_that_is_not_there(
    engine: Engine, call: Floats, voices: dict[str, bytes], ecapa_path: Path
) -> None:
    """Each of the two speakers alone, with the voice of the other one."""
    for name, (start, end) in ALONE.items():
        (other,) = ALONE.keys() - {name}
        alone = call[int(start * RATE) : int(end * RATE)]
        found = engine.transcribe(alone, TURNS, known_speakers={other: engine.enroll(voices[other])})
        assert found.speaker_scores == {}
        assert other not in found.speakers


@pytest.mark.models
def test_a_voice_of_another_model_is_named_in_a_warning(engine: Engine, call: Floats, ecapa_path: Path) -> None:
    sample = VoiceSample(seconds=3.0, vector=(1.0, *[0.0] * 191))
    others = {f"Person {number}": VoiceEmbedding(model="ecapa", samples=(sample,)) for number in range(7)}
    found = engine.transcribe(one_speaks(call), TURNS, known_speakers=others)
    assert found.speakers == ("SPEAKER_00",)
    (warning,) = found.warnings
    assert "'Person 0', 'Person 1'" in warning
    assert "and 2 more: not looked for, because another model than campplus" in warning
    assert "enrol them again" in warning


@pytest.mark.models
def test_what_cannot_be_enrolled_is_named_by_its_number(
    engine: Engine, voices: dict[str, bytes], ecapa_path: Path
) -> None:
    with pytest.raises(InvalidAudio, match="recording 2: nobody can be heard"):
        engine.enroll(voices["Diane"], np.zeros(3 * RATE, np.float32))
    with pytest.raises(InvalidAudio, match=r"recording 1: .*"):
        engine.enroll(b"no audio at all, just words\n" * 40)
    with pytest.raises(InvalidOption):
        engine.enroll()


@pytest.mark.models
def test_identify_without_voices_says_so(engine: Engine, call: Floats, ecapa_path: Path) -> None:
    found = engine.transcribe(one_speaks(call), replace(TURNS, identify=True))
    assert (found.speakers, found.speaker_scores) == (("SPEAKER_00",), None)
    (warning,) = found.warnings
    assert "POST /speakers" in warning


@pytest.mark.models
@pytest.mark.parametrize(
    ("known", "speakers"), [("Diane", ("Diane", "SPEAKER_01")), ("Sheila", ("SPEAKER_00", "Sheila"))]
)
def test_unknown_speakers_are_numbered_by_appearance(
    known: str, speakers: tuple[str, ...], engine: Engine, both: Floats, voices: dict[str, bytes], ecapa_path: Path
) -> None:
    assert engine.transcribe(both, TURNS, known_speakers={known: voices[known]}).speakers == speakers


@pytest.mark.models
def test_names_come_without_word_times_too(
    engine: Engine, call: Floats, voices: dict[str, bytes], ecapa_path: Path
) -> None:
    transcript = engine.transcribe(one_speaks(call), SPEAKERS, known_speakers=voices)
    assert transcript.words == ()
    assert order(transcript) == ["Sheila"]


@pytest.mark.models
@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_a_recording_without_speech_is_a_warning_that_names_it(
    seconds: float, engine: Engine, call: Floats, ecapa_path: Path
) -> None:
    silence = np.zeros(int(seconds * RATE), np.float32)
    named = engine.transcribe(one_speaks(call), SPEAKERS, known_speakers={"Ada": silence})
    assert named.speakers == ("SPEAKER_00",)
    (warning,) = (warning for warning in named.warnings if "Ada" in warning)
    assert "nobody can be heard" in warning


@pytest.mark.models
def test_known_speakers_are_ignored_without_diarization(engine: Engine, call: Floats, voices: dict[str, bytes]) -> None:
    options = TranscriptionOptions(language="en", align=False, diarize=False)
    transcript = engine.transcribe(call[: 10 * RATE], options, known_speakers=dict(voices))
    assert transcript.speakers == ()
    assert any("known speakers" in warning for warning in transcript.warnings)


@pytest.mark.models
@pytest.mark.parametrize("name", ["", "  ", "SPEAKER_00", "speaker_7", "Ada\n", "Ada\u2028Bo", "Ada --> Bo"])
def test_names_that_cannot_be_labels_are_refused(engine: Engine, call: Floats, name: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        engine.transcribe(call, SPEAKERS, known_speakers={name: call})
    assert caught.value.field == "known_speakers"


@pytest.mark.models
def test_the_error_of_an_undecodable_recording_has_its_number(engine: Engine, call: Floats) -> None:
    with pytest.raises(InvalidAudio, match="known speaker 2"):
        engine.transcribe(call, SPEAKERS, known_speakers={"Ada": call, "Bo": b"no audio at all, just words\n" * 40})


@pytest.mark.models
def test_only_the_first_minute_of_a_long_recording_is_decoded(engine: Engine, call: Floats, ecapa_path: Path) -> None:
    class Endless(io.RawIOBase):
        """A WAV stream that never ends."""

        given = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            if not self.given:
                self.given = 44
                head = io.BytesIO()
                with wave.open(head, "wb") as out:
                    out.setparams((1, 2, RATE, 0, "NONE", ""))
                    out.writeframes(b"")
                return head.getvalue()
            self.given += size
            assert self.given < 10 * 60 * 2 * RATE, "more is read than is needed"
            return np.random.default_rng(self.given).integers(-3, 4, size // 2, np.int16).tobytes()

    endless: Any = Endless()
    named = engine.transcribe(one_speaks(call), SPEAKERS, known_speakers={"Ada": endless})
    assert any("known speaker 1, the first 60 s were used" in warning for warning in named.warnings)
