"""Known speakers: gives the speakers of a diarization the names of people whose voices are known from a recording."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from whisper_api.engine.audio.decode import AudioInput, decode
from whisper_api.engine.diarize.assignment import Turn
from whisper_api.engine.diarize.open_models import CAMPPLUS
from whisper_api.engine.diarize.pipeline import Diarization, embed_speaker
from whisper_api.engine.worker.device_errors import is_out_of_memory
from whisper_api.errors import InvalidAudio, InvalidOption, WhisperApiError
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    from whisper_api.engine.context import JobContext

__all__ = ["check_names", "decode_references", "match_speakers", "name_speakers"]

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

MAX_SECONDS = 60.0
"""Seconds of a recording that are used; a longer one does not improve the embedding."""

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


def decode_references(ctx: JobContext, known: Mapping[str, AudioInput]) -> dict[str, Floats]:
    """Decode the recordings of the known speakers.

    Args:
        ctx: the job. A recording over 60 s, of which the rest is ignored, becomes a warning.
        known: name to recording.

    Returns:
        Name to float32 samples, shape (samples,), mono, 16 kHz.

    Raises:
        InvalidAudio: a recording cannot be decoded.
    """
    return {name: _decoded(ctx, number, source) for number, (name, source) in enumerate(known.items(), start=1)}


def _decoded(ctx: JobContext, number: int, source: AudioInput) -> Floats:
    try:
        audio = decode(source, check=ctx.check, stop_at=MAX_SECONDS).audio
    except InvalidAudio as error:
        # The number and not the name, because errors are logged and names of people must not be.
        raise InvalidAudio(f"known speaker {number}: {error}") from error
    if len(audio) >= MAX_SECONDS * SAMPLE_RATE:
        ctx.warn(f"of the recording of known speaker {number}, the first {MAX_SECONDS:g} s were used")
    return audio


def name_speakers(ctx: JobContext, diarization: Diarization, references: Mapping[str, Floats]) -> Diarization:
    """Replace the labels of recognised speakers by their names.

    Args:
        ctx: the job. A recording in which nobody speaks becomes a warning.
        diarization: the turns and embeddings of the job's audio.
        references: name to a recording of that person alone: float32, shape (samples,), 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: the embedding model cannot be used.
        Canceled: the caller canceled.
    """
    embeddings: dict[str, Floats] = {}
    for name, audio in references.items():
        embedding = _embedding(ctx, audio, diarization)
        if embedding is None:
            ctx.warn(f"{name!r} was not looked for, because nobody can be heard in the recording that was given")
        else:
            embeddings[name] = embedding

    def named(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return tuple(Turn(turn.start, turn.end, names.get(turn.speaker, turn.speaker)) for turn in turns)

    names = match_speakers(diarization.embeddings, embeddings, diarization.same_person)
    return replace(
        diarization,
        turns=named(diarization.turns),
        word_turns=named(diarization.word_turns),
        embeddings={names.get(label, label): vector for label, vector in diarization.embeddings.items()},
    )


def _embedding(ctx: JobContext, audio: Floats, diarization: Diarization) -> Floats | None:
    try:
        return embed_speaker(ctx, audio, community=diarization.community)
    except (WhisperApiError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # pyannote's pipeline raises errors of many types when a recording is too short.
        log.warning("a known speaker's recording cannot be used: %s", error)
        return None


def match_speakers(
    speakers: Mapping[str, Floats], known: Mapping[str, Floats], threshold: float = CAMPPLUS.same_person
) -> dict[str, str]:
    """Assign names to labels one to one, with the highest sum of similarities.

    Args:
        speakers: label to embedding of length 1.
        known: name to embedding of length 1.
        threshold: least similarity of a label and its name.

    Returns:
        Label to name, for the recognised speakers only.
    """
    if not speakers or not known:
        return {}
    from scipy.optimize import linear_sum_assignment

    similarity = np.stack(list(speakers.values())) @ np.stack(list(known.values())).T
    # Similarities below the threshold count as 0: two pairs below it must not replace one above it.
    gain = np.where(similarity >= threshold, similarity, 0.0)
    labels, names = list(speakers), list(known)
    return {
        labels[row]: names[column]
        for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True)
        if similarity[row, column] >= threshold
    }
