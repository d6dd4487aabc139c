"""The speakers of a job: diarization runs during recognition, and its result becomes names, turns and embeddings.

Each separate channel is one speaker, without diarization. Only known speakers and embeddings need a model then.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_api.engine.context import JobContext
from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.errors import InvalidAudio
from whisper_api.schema import SAMPLE_RATE, Segment, Turn

if TYPE_CHECKING:
    from whisper_api.engine.audio.decode import AudioInput
    from whisper_api.engine.diarize.pipeline import Diarization
    from whisper_api.engine.hearing import Heard
    from whisper_api.voices import VoiceEmbedding

# How often the job's thread reports the progress of diarization.
PROGRESS_SECONDS = 0.2


# Seconds of speech from which the embedding of a channel's speaker is made.
VOICE_SECONDS = 60.0


class Diarizing(BackgroundTask["Diarization"]):
    """Diarization in a thread of its own, since it needs no text, with names for the known speakers."""

    def __init__(self, ctx: JobContext, heard: Heard, references: Mapping[str, Any]) -> None:
        self.ctx = ctx
        # A partial, not a lambda: the frame of a lambda would keep the audio after the work is done.
        super().__init__("diarize", functools.partial(self._diarize, heard, references))

    def awaited(self, job: JobContext) -> Diarization:
        """Wait for the diarization. Its progress and its warnings become those of the job."""
        try:
            while not self.wait(PROGRESS_SECONDS):
                job.progress(self.ctx.stage_done)
            return self.result()
        finally:
            for warning in self.ctx.warnings:
                job.warn(warning)

    def _diarize(self, heard: Heard, references: Mapping[str, Any]) -> Diarization:
        from whisper_api.engine.diarize.pipeline import diarize

        found = self._by_channel(heard, references) if heard.channels else diarize(self.ctx, heard.audio)
        if references and found.embeddings:
            from whisper_api.engine.diarize.enrollment import name_speakers

            try:
                found = name_speakers(self.ctx, heard.audio, found, references)
            except Exception as error:
                self.ctx.continue_without("the known speakers were not looked for", error)
        return found

    def _by_channel(self, heard: Heard, references: Mapping[str, Any]) -> Diarization:
        """A speaker for each channel, who has all of its words; with embeddings only where they are needed."""
        from whisper_api.engine.diarize.embed_speaker import sample_of
        from whisper_api.engine.diarize.open_models import CAMPPLUS, VoiceModel, open_models
        from whisper_api.engine.diarize.pipeline import Diarization

        options = self.ctx.options
        if options.num_speakers or options.min_speakers or options.max_speakers:
            self.ctx.warn("the number of speakers was not used: each of the separate channels is one speaker")
        labels = [_label(channel) for channel in heard.channels]
        turns = (
            Turn(
                span.start / SAMPLE_RATE, span.end / SAMPLE_RATE, labels[int(span.start / SAMPLE_RATE // heard.spacing)]
            )
            for span in heard.speech or heard.windows
        )
        whole = (Turn(place * heard.spacing, (place + 1) * heard.spacing, label) for place, label in enumerate(labels))
        unknown = VoiceModel("", None, CAMPPLUS.same_person)
        found = Diarization(tuple(turns), {}, "", tuple(whole), unknown)
        if not (references or options.speaker_embeddings):
            return found
        try:
            models = open_models(self.ctx)
            samples = {
                _label(channel): sample_of(self.ctx, audio, models.voice_model)
                for channel, audio in heard.voices(VOICE_SECONDS).items()
            }
        except Exception as error:
            lost = "the known speakers were not looked for" if references else "there are no speaker embeddings"
            self.ctx.continue_without(lost, error)
            return found
        embeddings = {
            label: np.asarray(sample.vector, np.float32) for label, sample in samples.items() if sample is not None
        }
        return replace(found, embeddings=embeddings, model=models.voiceprint.name, voice_model=models.voice_model)


def _label(channel: int) -> str:
    return f"SPEAKER_{channel:02d}"


@contextlib.contextmanager
def diarizing(ctx: JobContext, heard: Heard, references: Mapping[str, Any]) -> Iterator[Diarizing]:
    """Diarize in the background; the end of the ``with`` stops it.

    Args:
        ctx: the job.
        heard: the audio.
        references: from :func:`known_voices`.
    """
    stop = threading.Event()
    task = Diarizing(ctx.subcontext(stop), heard, references)
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


def found_in(ctx: JobContext, heard: Heard, diarization: Diarization | None) -> dict[str, Any]:
    """The fields of a transcript that a diarization fills; empty without diarization.

    Args:
        ctx: the job.
        heard: the audio that was diarized.
        diarization: of this audio.
    """
    if diarization is None:
        return {}
    placed = heard.placed_turns(diarization.turns)
    turns = (Turn(round(turn.start, 3), round(turn.end, 3), turn.speaker, turn.channel) for turn in placed)
    return {
        "turns": tuple(turn for turn in turns if turn.start < turn.end),
        "speaker_embeddings": _embeddings(diarization) if ctx.options.speaker_embeddings else None,
        "speaker_scores": diarization.scores,
        "diarization_model": diarization.model or None,
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
