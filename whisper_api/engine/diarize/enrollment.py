"""Speakers known by a recording of their voice: which of those that were told apart is whom."""

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
from whisper_api.engine.diarize.pipeline import Diarization, voice_of
from whisper_api.engine.worker.worker import is_out_of_memory
from whisper_api.errors import InvalidAudio, InvalidOption, WhisperApiError
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    from whisper_api.engine.context import JobContext

__all__ = ["THRESHOLD", "check_names", "decode_references", "match", "name_speakers"]

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

THRESHOLD = 0.45
"""The least cosine similarity between a speaker and a recording that are taken for the same person.

Of ECAPA-TDNN, over 27 pairs of one person and 255 of two, from meetings with overlapping speech and a telephone call,
with recordings of 2 to 8 s: two people reached 0.41 at most; one person was at 0.33 to 0.78 with 2 s, at 0.65 to 0.86
with 4 s or more. So nobody was taken for somebody else, and all were recognised but 4 of the 14 with 2 s. Between two
readings by one person it was 0.68 and more, between readings by two 0.20 and less.
"""

LONGEST = 60.0
"""Seconds of a recording that are used; more tell no more of a voice."""

LABEL = re.compile(r"SPEAKER_\d+", re.IGNORECASE | re.ASCII)


def check_names(names: Mapping[str, object]) -> None:
    """Refuse names that cannot be told from labels, or that subtitles cannot hold.

    Raises:
        InvalidOption: one is empty, looks like the label of an unknown speaker, has several lines or holds an arrow.
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
    """The recordings of the known speakers, at most 60 s of each: float32, shape (samples,), mono, 16 kHz.

    A recording that is longer becomes a warning of the job.

    Raises:
        InvalidAudio: one cannot be decoded.
    """
    return {name: _decoded(ctx, number, source) for number, (name, source) in enumerate(known.items(), start=1)}


def _decoded(ctx: JobContext, number: int, source: AudioInput) -> Floats:
    try:
        audio = decode(source, check=ctx.check, stop_at=LONGEST).audio
    except InvalidAudio as error:
        # By its number, since errors may go to a log, where no name of a person belongs.
        raise InvalidAudio(f"known speaker {number}: {error}") from error
    if len(audio) >= LONGEST * SAMPLE_RATE:
        ctx.warn(f"of the recording of known speaker {number}, the first {LONGEST:g} s were used")
    return audio


def name_speakers(ctx: JobContext, diarization: Diarization, references: Mapping[str, Floats]) -> Diarization:
    """Give the speakers who are recognised their names; the others keep their labels.

    Args:
        ctx: the job. A recording in which nobody speaks becomes a warning of it.
        diarization: who speaks when.
        references: name to a recording of that person alone: float32, shape (samples,), 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: the embedding model cannot be used any more.
        Canceled: the caller canceled.
    """
    voices: dict[str, Floats] = {}
    for name, audio in references.items():
        voice = _voice(ctx, audio, diarization)
        if voice is None:
            ctx.warn(f"{name!r} was not looked for, because nobody can be heard in the recording that was given")
        else:
            voices[name] = voice
    names = match(diarization.embeddings, voices)
    return replace(
        diarization,
        turns=tuple(Turn(turn.start, turn.end, names.get(turn.speaker, turn.speaker)) for turn in diarization.turns),
        embeddings={names.get(label, label): vector for label, vector in diarization.embeddings.items()},
    )


def _voice(ctx: JobContext, audio: Floats, diarization: Diarization) -> Floats | None:
    try:
        return voice_of(ctx, audio, community=diarization.community)
    except (WhisperApiError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # pyannote's pipeline has its own ways to say that a recording is too short for it.
        log.warning("a known speaker's recording cannot be used: %s", error)
        return None


def match(speakers: Mapping[str, Floats], voices: Mapping[str, Floats], threshold: float = THRESHOLD) -> dict[str, str]:
    """Find who is whom, one to one, so that the similarities add up to the most.

    Args:
        speakers: label to embedding, of length 1.
        voices: name to embedding, of length 1.
        threshold: pairs that are less similar are not made.

    Returns:
        Label to name of those who were recognised.
    """
    if not speakers or not voices:
        return {}
    from scipy.optimize import linear_sum_assignment

    similarity = np.stack(list(speakers.values())) @ np.stack(list(voices.values())).T
    # What is below counts nothing, so that no pair above it is given up for two below.
    gain = np.where(similarity >= threshold, similarity, 0.0)
    labels, names = list(speakers), list(voices)
    return {
        labels[row]: names[column]
        for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True)
        if similarity[row, column] >= threshold
    }
