"""The speakers of a job: diarization runs during recognition, and its result becomes names, turns and embeddings."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whisper_api.engine.context import JobContext
from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.errors import InvalidAudio
from whisper_api.schema import Segment, Turn

if TYPE_CHECKING:
    from whisper_api.engine.audio.decode import AudioInput
    from whisper_api.engine.diarize.pipeline import Diarization
    from whisper_api.voices import VoiceEmbedding

__all__ = ["Diarizing", "diarizing", "found_in", "known_voices", "speakers_in_order"]

# How often the job's thread reports the progress of diarization.
PROGRESS_SECONDS = 0.2


class Diarizing(BackgroundTask["Diarization"]):
    """Diarization in a thread of its own, since it needs no text, with names for the known speakers."""

    def __init__(self, ctx: JobContext, audio: Any, references: Mapping[str, Any]) -> None:
        self.ctx = ctx
        # A partial, not a lambda: the frame of a lambda would keep the audio after the work is done.
        super().__init__("diarize", functools.partial(self._diarize, audio, references))

    def awaited(self, job: JobContext) -> Diarization:
        """Wait for the result, and report the progress as that of the job. The job gets the warnings."""
        try:
            while not self.wait(PROGRESS_SECONDS):
                job.progress(self.ctx.stage_done)
            return self.result()
        finally:
            for warning in self.ctx.warnings:
                job.warn(warning)

    def _diarize(self, audio: Any, references: Mapping[str, Any]) -> Diarization:
        from whisper_api.engine.diarize.pipeline import diarize

        found = diarize(self.ctx, audio)
        if references:
            from whisper_api.engine.diarize.enrollment import name_speakers

            try:
                found = name_speakers(self.ctx, audio, found, references)
            except Exception as error:
                self.ctx.continue_without("the known speakers were not looked for", error)
        return found


@contextlib.contextmanager
def diarizing(ctx: JobContext, audio: Any, references: Mapping[str, Any]) -> Iterator[Diarizing]:
    """Diarize in the background; the end of the ``with`` stops it.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.
        references: from :func:`known_voices`.
    """
    stop = threading.Event()
    task = Diarizing(ctx.subcontext(stop), audio, references)
    try:
        yield task
    finally:
        stop.set()
        task.join()


def known_voices(ctx: JobContext, known: Mapping[str, AudioInput | VoiceEmbedding]) -> dict[str, Any]:
    """Name to the voice, or to the samples of the recording, of each known speaker; empty if they are not needed.

    Args:
        ctx: the job. What cannot be looked for becomes a warning.
        known: name to voice or recording.

    Raises:
        InvalidAudio: a recording cannot be decoded.
    """
    options = ctx.options
    if not known:
        if options.identify:
            ctx.warn("identify: nobody was looked for, since no voice is known; enrol voices first (POST /speakers)")
        return {}
    if options.diarize is False or options.task == "detect_language":
        ctx.warn("the known speakers were not looked for, since the speakers were not to be told apart")
        return {}
    from whisper_api.engine.diarize.enrollment import decode_references

    try:
        return decode_references(ctx, known)
    except InvalidAudio:
        raise
    except Exception as error:
        ctx.continue_without("the known speakers were not looked for", error)
        return {}


def found_in(ctx: JobContext, diarization: Diarization | None) -> dict[str, Any]:
    """The fields of a transcript that a diarization fills; empty without diarization."""
    if diarization is None:
        return {}
    turns = (Turn(round(turn.start, 3), round(turn.end, 3), turn.speaker) for turn in diarization.turns)
    return {
        "turns": tuple(turn for turn in turns if turn.start < turn.end),
        "speaker_embeddings": _embeddings(diarization) if ctx.options.speaker_embeddings else None,
        "speaker_scores": diarization.scores,
        "diarization_model": diarization.model,
    }


def speakers_in_order(segments: Sequence[Segment]) -> tuple[str, ...]:
    """Speakers in order of appearance, speakers of single words included."""
    found: dict[str, None] = {}
    for segment in segments:
        for speaker in (*(word.speaker for word in segment.words), segment.speaker):
            if speaker is not None:
                found.setdefault(speaker)
    return tuple(found)


def _embeddings(diarization: Diarization) -> dict[str, tuple[float, ...]]:
    return {speaker: tuple(float(x) for x in vector) for speaker, vector in diarization.embeddings.items()}
