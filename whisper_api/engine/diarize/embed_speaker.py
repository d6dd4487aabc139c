"""The embedding of speech of one person: of a recording, or of a speaker of a job.

The centroids of a diarization are no good for a comparison with other recordings: all speakers of the diarization have
the same mean of features subtracted, and a voice is embedded best with the mean of its own features subtracted.

A telephone takes a voice's sound above 4 kHz away. Embeddings of one voice with and without it differ as much as those
of two people. So where one of two recordings was made over a telephone, both are compared in the band. Different
telephones then hardly matter.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from whisper_api.engine.audio.track import Samples
from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize.analysis import embed_one_voice
from whisper_api.engine.diarize.open_models import VoiceModel, open_models
from whisper_api.engine.diarize.pipeline import (
    COMMUNITY,
    SAME_PERSON,
    Diarization,
    community_model,
    community_source,
    unit,
)
from whisper_api.engine.worker.device_errors import kind_of
from whisper_api.errors import ModelUnavailable, WhisperApiError
from whisper_api.schema import SAMPLE_RATE
from whisper_api.speaker_turns import stretches
from whisper_api.voices import VoiceSample

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

# Seconds of a speaker that are embedded; 30 gave the same error rates.
VOICE_SECONDS = 10.0
# Shorter stretches of speech are used only where there are no longer ones.
STRETCH_SECONDS = 0.3

# The band of a telephone (ITU-T G.712), and what it takes away, in Hz.
BAND = (300.0, 3400.0)
# Faint noise in place of what a telephone takes away, in decibels below the band. Without it, the features outside of
# the band never change, which all voices then have in common: of 38 pieces of 3 s, 11 resembled their own voice no more
# than the nearest two people resemble each other, and 3 with it. 30 to 50 gave nearly the same.
FILL = 40.0
ABOVE = (4500.0, 7500.0)
# Frames of 32 ms within so many decibels of the loudest are speech.
FRAME = 512
QUIETEST = 30.0
# In the sharpest hundredth of its frames, such as those of an "s", speech has much power above the band: at least
# -15 dB of that in the band in 18 recordings, one of them of 1961. In two calls it has -46 dB, and with the noise of
# mu-law -36 dB.
SHARPEST, MOST_ABOVE = 99, -25.0


def telephone_band(audio: Samples) -> Samples:
    """A recording with the frequencies that a telephone transmits, and faint noise in place of the others.

    The noise is the same for every recording of a length. Nothing else of a telephone is imitated: with the noise of
    mu-law, all voices have more in common.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz.
    """
    if not len(audio):
        return audio
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    inside = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
    band = np.fft.irfft(np.fft.rfft(audio) * inside, len(audio))
    noise = np.fft.irfft(np.fft.rfft(np.random.default_rng(0).standard_normal(len(audio))) * ~inside, len(audio))
    loudness = np.sqrt(np.mean(np.square(band)) / max(float(np.mean(np.square(noise))), 1e-12))
    found: Samples = (band + 10 ** (-FILL / 20) * loudness * noise).astype(np.float32)
    return found


def is_over_telephone(audio: Samples) -> bool:
    """Whether a voice lacks what a telephone takes away.

    Args:
        audio: float32, shape (samples,), mono, 16 kHz: mostly speech, at least some seconds.
    """
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME)
    if not len(frames):
        return False
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)))
    frequencies = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)
    within, above = (
        power[:, (frequencies >= low) & (frequencies <= high)].sum(axis=1) + 1e-12 for low, high in (BAND, ABOVE)
    )
    loudness = 10 * np.log10(within + above)
    loud = loudness >= loudness.max() - QUIETEST
    return bool(np.percentile(10 * np.log10(above / within)[loud], SHARPEST) < MOST_ABOVE)


@dataclass(frozen=True, eq=False)
class SpeakerVoice:
    """The voice of a speaker of a job.

    Attributes:
        vector: embedding of length 1.
        speech: what it was computed from, float32, shape (samples,), mono, 16 kHz; None for a speaker who never speaks
            alone.
        telephone: whether the speaker is heard over a telephone.
    """

    vector: Floats
    speech: Floats | None = None
    telephone: bool = False


def voice_model(ctx: JobContext) -> VoiceModel:
    """The model that embeds the speakers of jobs, as long as it does not fail.

    Raises:
        ModelUnavailable: no model can be had.
    """
    try:
        community = community_model(ctx)
    except ModelUnavailable as error:
        log.warning("%s cannot be used: %s", COMMUNITY, error)
        community = None
    if community is not None:
        return VoiceModel(COMMUNITY, community.revision, SAME_PERSON)
    return open_models(ctx).voice_model


def embed_speaker(ctx: JobContext, audio: Floats, *, community: bool) -> VoiceSample | None:
    """The embedding of a recording of one person.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.
        community: whether to embed with pyannote's pipeline, which must be installed then, or with the open models.

    Returns:
        A vector that is comparable with the embeddings of a diarization by the same models; None when nobody speaks.

    Raises:
        ModelUnavailable, ModelCorrupt: the model cannot be used.
    """
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    if community:
        from whisper_api.engine.diarize.community import run_pipeline

        with ctx.lease(community_source(ctx, ctx.fetch_model(COMMUNITY))) as pipeline:
            vectors = run_pipeline(ctx, audio, pipeline, one_speaker=True).speaker_embeddings
        vector = None if vectors is None or len(vectors) == 0 else np.asarray(vectors[0], np.float32)
        seconds = len(audio) / SAMPLE_RATE
    else:
        vector, seconds = embed_one_voice(ctx, audio) or (None, 0.0)
    if vector is None or not vector.any():
        return None
    # Six decimals change a cosine similarity by less than a hundred-thousandth.
    return VoiceSample(seconds=round(seconds, 3), vector=tuple(round(float(x), 6) for x in unit(vector)))


def speaker_voices(ctx: JobContext, audio: Floats, diarization: Diarization) -> dict[str, SpeakerVoice]:
    """The voices of a job's speakers, comparable with those of other recordings.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.
        diarization: of this audio.

    Returns:
        Label to voice. A speaker who never speaks alone keeps the vector of the diarization.

    Raises:
        ModelUnavailable, ModelCorrupt: the model cannot be used.
    """
    alone: dict[str, list[tuple[float, float]]] = {}
    for start, end, speakers in stretches(diarization.turns):
        if len(speakers) == 1:
            alone.setdefault(speakers[0], []).append((start, end))
    found = {}
    for label, vector in diarization.embeddings.items():
        found[label] = SpeakerVoice(vector)
        pieces = [audio[round(s * SAMPLE_RATE) : round(e * SAMPLE_RATE)] for s, e in _longest(alone.get(label, []))]
        if pieces:
            speech = np.concatenate(pieces)[: round(VOICE_SECONDS * SAMPLE_RATE)]
            sample = embedded(ctx, speech, diarization.voice_model)
            if sample is not None:
                vector = np.asarray(sample.vector, np.float32)
                found[label] = SpeakerVoice(vector, speech, is_over_telephone(speech))
    return found


def sample_of(ctx: JobContext, audio: Floats, model: VoiceModel) -> VoiceSample | None:
    """The embeddings of a recording of one person, whole and in a telephone's band; None when nobody speaks.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.
        model: the model.

    Raises:
        ModelUnavailable, ModelCorrupt: the model cannot be used.
    """
    sample = embedded(ctx, audio, model)
    if sample is None or model.same_person_telephone is None:
        return sample
    narrow = embedded(ctx, telephone_band(audio), model)
    vector = () if narrow is None else narrow.vector
    return replace(sample, telephone_vector=vector, telephone=is_over_telephone(audio))


def embedded(ctx: JobContext, audio: Floats, model: VoiceModel) -> VoiceSample | None:
    """The embedding by a model; None also where pyannote's pipeline fails.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.
        model: the model.

    Raises:
        ModelUnavailable, ModelCorrupt: the model cannot be used.
    """
    try:
        return embed_speaker(ctx, audio, community=model.name == COMMUNITY)
    except (WhisperApiError, OSError):
        raise
    except Exception as error:
        if kind_of(error) != "other":
            raise
        # pyannote's pipeline raises errors of many types when a recording is too short.
        log.warning("a known speaker's recording cannot be used: %s", error)
        return None


def _longest(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The longest spans of together :data:`VOICE_SECONDS`, in order of time."""
    chosen: list[tuple[float, float]] = []
    seconds = 0.0
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        if seconds >= VOICE_SECONDS or (chosen and end - start < STRETCH_SECONDS):
            break
        chosen.append((start, end))
        seconds += end - start
    return sorted(chosen)
