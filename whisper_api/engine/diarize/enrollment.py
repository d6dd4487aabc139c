"""Known speakers: gives the speakers of a diarization the names of people whose voices are known from a recording."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from whisper_api.engine.audio.decode import AudioInput, decode
from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize.embed_speaker import (
    SpeakerVoice,
    embedded,
    sample_of,
    speaker_voices,
    telephone_band,
    voice_model,
)
from whisper_api.engine.diarize.open_models import CAMPPLUS, VoiceModel
from whisper_api.engine.diarize.pipeline import Diarization
from whisper_api.errors import InvalidAudio, InvalidOption
from whisper_api.schema import SAMPLE_RATE, Turn
from whisper_api.voices import VoiceEmbedding

Floats = npt.NDArray[np.float32]

MAX_SECONDS = 60.0
"""Seconds of a recording that are used; a longer one does not improve the embedding."""

# A warning repeats at most so many names.
SHOWN_NAMES = 5

LABEL = re.compile(r"SPEAKER_\d+", re.IGNORECASE | re.ASCII)


def check_names(names: Mapping[str, object]) -> None:
    """Refuse names that look like the label of an unknown speaker, or that would break subtitles.

    Raises:
        InvalidOption: a name is empty, looks like a label, has several lines or contains an arrow.
    """
    for name in names:
        if not name.strip():
            raise InvalidOption("known_speakers", "a name is empty")
        if LABEL.fullmatch(name.strip()):
            raise InvalidOption("known_speakers", f"{name!r} is the label of a speaker who is not known; use a name")
        if "-->" in name or name.splitlines() != [name]:
            raise InvalidOption(
                "known_speakers", "a name has a line break or an arrow (-->), which subtitles cannot hold"
            )


def decode_references(
    ctx: JobContext, known: Mapping[str, AudioInput | VoiceEmbedding]
) -> dict[str, Floats | VoiceEmbedding]:
    """Decode the recordings of the known speakers.

    Args:
        ctx: the job. A recording over 60 s, of which the rest is ignored, becomes a warning.
        known: name to recording or voice.

    Returns:
        Name to voice, or to float32 samples, shape (samples,), mono, 16 kHz.

    Raises:
        InvalidAudio: a recording cannot be decoded.
    """
    return {
        # The number and not the name, because errors are logged and names of people must not be.
        name: source if isinstance(source, VoiceEmbedding) else _reference(ctx, number, source)
        for number, (name, source) in enumerate(known.items(), start=1)
    }


def enroll(ctx: JobContext, recordings: Sequence[AudioInput]) -> VoiceEmbedding:
    """The voice of a person.

    Args:
        ctx: the job.
        recordings: at least one; in each only this person speaks.

    Raises:
        InvalidAudio: a recording cannot be decoded, or nobody can be heard in it; the message has its number.
        ModelUnavailable, ModelCorrupt: the embedding model cannot be used.
        Canceled: the caller canceled.
    """
    model = voice_model(ctx)
    samples = []
    for number, source in enumerate(recordings, start=1):
        sample = sample_of(ctx, _decoded(ctx, f"recording {number}", source), model)
        if sample is None:
            raise InvalidAudio(f"recording {number}: nobody can be heard")
        samples.append(sample)
    return VoiceEmbedding(model=model.name, revision=model.revision, samples=tuple(samples))


def _reference(ctx: JobContext, number: int, source: AudioInput) -> Floats:
    audio = _decoded(ctx, f"known speaker {number}", source)
    if len(audio) >= MAX_SECONDS * SAMPLE_RATE:
        ctx.warn(f"of the recording of known speaker {number}, the first {MAX_SECONDS:g} s were used")
    return audio


def _decoded(ctx: JobContext, name: str, source: AudioInput) -> Floats:
    try:
        return decode(source, check=ctx.check, stop_at=MAX_SECONDS).audio
    except InvalidAudio as error:
        raise InvalidAudio(f"{name}: {error}") from error


def name_speakers(
    ctx: JobContext, audio: Floats, diarization: Diarization, references: Mapping[str, Floats | VoiceEmbedding]
) -> Diarization:
    """Replace the labels of recognised speakers by their names.

    Args:
        ctx: the job. A recording in which nobody speaks, and voices of another model, become warnings.
        audio: the job's audio, shape (samples,), mono, 16 kHz.
        diarization: the turns and embeddings of this audio.
        references: name to the voice of that person, or to a recording of that person alone: float32, shape (samples,),
            16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: the embedding model cannot be used.
        Canceled: the caller canceled.
    """
    model = diarization.voice_model
    known: dict[str, VoiceEmbedding] = {}
    of_others: list[str] = []
    for name, reference in references.items():
        if isinstance(reference, VoiceEmbedding):
            if reference.is_comparable(model.name, model.revision):
                known[name] = reference
            else:
                of_others.append(name)
            continue
        sample = sample_of(ctx, reference, model)
        if sample is None:
            ctx.warn(f"{name!r} was not looked for, because nobody can be heard in the recording that was given")
        else:
            known[name] = VoiceEmbedding(model=model.name, revision=model.revision, samples=(sample,))
    if of_others:
        more = f" and {len(of_others) - SHOWN_NAMES} more" if len(of_others) > SHOWN_NAMES else ""
        shown = ", ".join(map(repr, of_others[:SHOWN_NAMES])) + more
        ctx.warn(
            f"{shown}: not looked for, because another model than "
            f"{model.name}, which told the speakers of this recording apart, has made these voices; enrol them again"
        )

    voices = speaker_voices(ctx, audio, diarization) if known else {}
    similarity, thresholds = _similarities(ctx, voices, known, model)
    names, scores = {}, {}
    for row, column in match_speakers(similarity, ctx.options.identify_threshold or thresholds):
        label, name = list(voices)[row], list(known)[column]
        names[label], scores[name] = name, round(float(similarity[row, column]), 4)

    def named(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return tuple(Turn(turn.start, turn.end, names.get(turn.speaker, turn.speaker)) for turn in turns)

    return replace(
        diarization,
        turns=named(diarization.turns),
        word_turns=named(diarization.word_turns),
        embeddings={names.get(label, label): vector for label, vector in diarization.embeddings.items()},
        scores=scores,
    )


def _similarities(
    ctx: JobContext, voices: Mapping[str, SpeakerVoice], known: Mapping[str, VoiceEmbedding], model: VoiceModel
) -> tuple[Floats, Floats]:
    """The similarity of each speaker and each known voice, and the threshold for each of them.

    Where one of the two is heard over a telephone, both are compared in its band. Voices have more in common there, so
    the threshold is higher.

    Returns:
        Two arrays of shape (speakers, known voices).
    """
    similarity = np.zeros((len(voices), len(known)), np.float32)
    thresholds = np.full(similarity.shape, model.same_person, np.float32)
    for row, voice in enumerate(voices.values()):
        over_telephone = [voice.telephone or reference.telephone for reference in known.values()]
        narrow = None
        if voice.speech is not None and model.same_person_telephone is not None and any(over_telephone):
            narrow = embedded(ctx, telephone_band(voice.speech), model)
        for column, reference in enumerate(known.values()):
            mine, theirs = voice.vector, reference.vector
            if over_telephone[column] and model.same_person_telephone is not None:
                thresholds[row, column] = model.same_person_telephone
                if narrow is not None and reference.telephone_vector:
                    mine, theirs = np.asarray(narrow.vector, np.float32), reference.telephone_vector
            similarity[row, column] = mine @ np.asarray(theirs, np.float32)
    return similarity, thresholds


def match_speakers(similarity: Floats, threshold: float | Floats = CAMPPLUS.same_person) -> list[tuple[int, int]]:
    """Assign known voices to speakers one to one, with the highest sum of similarities.

    Args:
        similarity: shape (speakers, known voices): cosine similarities.
        threshold: least similarity of a speaker and a voice, one for all pairs or of the same shape.

    Returns:
        Speaker and voice, for the recognised speakers only.
    """
    if not similarity.size:
        return []
    from scipy.optimize import linear_sum_assignment

    # Similarities below the threshold count as 0: two pairs below it must not replace one above it.
    enough = similarity >= threshold
    rows, columns = linear_sum_assignment(np.where(enough, similarity, 0.0), maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if enough[row, column]]
