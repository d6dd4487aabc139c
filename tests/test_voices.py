"""Voices: the mean of several recordings, and which voices can be compared."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api import InvalidInput, VoiceEmbedding
from whisper_api.voices import VoiceSample


def sample(*vector: float, seconds: float = 1.0) -> VoiceSample:
    length = math.hypot(*vector)
    return VoiceSample(seconds=seconds, vector=tuple(x / length for x in vector))


def voice(*samples: VoiceSample, model: str = "campplus", revision: str | None = "1") -> VoiceEmbedding:
    return VoiceEmbedding(model=model, revision=revision, samples=samples)


@given(
    st.lists(st.tuples(st.floats(0.1, 60), st.lists(st.floats(0.1, 1), min_size=3, max_size=3)), min_size=1, max_size=5)
)
def test_the_mean_has_length_one_and_leans_to_the_longer_recordings(given: list[tuple[float, list[float]]]) -> None:
    both = voice(*(sample(*vector, seconds=seconds) for seconds, vector in given))
    assert math.hypot(*both.vector) == pytest.approx(1)
    assert both.seconds == pytest.approx(sum(seconds for seconds, _ in given))
    short, long = sample(1, 0, seconds=1.0), sample(0, 1, seconds=3.0)
    mean = voice(short, long)
    assert mean.similarity(voice(long)) == pytest.approx(3 / math.sqrt(10))
    assert mean.similarity(voice(short)) == pytest.approx(1 / math.sqrt(10))


def test_a_voice_survives_json_and_grows_by_recordings_of_the_same_model_only() -> None:
    first = voice(sample(1, 0), revision=None)
    assert VoiceEmbedding.from_json(first.to_json()) == first
    joined = first.joined(voice(sample(0, 1)))
    assert (joined.revision, len(joined.samples)) == ("1", 2)
    for other in (voice(sample(1, 0), model="ecapa"), voice(sample(1, 0), revision="2")):
        assert not joined.is_comparable(other.model, other.revision)
        with pytest.raises(InvalidInput, match="enrol the recordings again"):
            joined.joined(other)


def test_a_recording_over_a_telephone_and_another_are_compared_in_its_band() -> None:
    full = VoiceSample(seconds=1.0, vector=(1.0, 0.0), telephone_vector=(0.0, 1.0))
    narrow = VoiceSample(seconds=9.0, vector=(0.0, 1.0), telephone_vector=(0.6, 0.8), telephone=True)
    assert voice(full).similarity(voice(narrow)) == pytest.approx(0.8)
    assert voice(full).similarity(voice(full)) == pytest.approx(1.0)
    other = VoiceSample(seconds=1.0, vector=(0.0, 1.0), telephone_vector=(1.0, 0.0), telephone=True)
    assert voice(narrow).similarity(voice(other)) == pytest.approx(0.6)
    both = voice(full, narrow)
    # The telephone does not count in the whole band, and both count in its band.
    assert both.vector == (1.0, 0.0)
    assert not both.telephone
    assert both.telephone_vector == pytest.approx((5.4 / math.hypot(5.4, 8.2), 8.2 / math.hypot(5.4, 8.2)))
    # Voices of earlier versions have no vectors in the band.
    earlier = voice(sample(1, 0))
    assert earlier.telephone_vector == ()
    assert earlier.similarity(voice(narrow)) == pytest.approx(0.0)
