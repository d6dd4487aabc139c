"""The speakers of a job: diarization runs during recognition, and its result becomes names and embeddings.

Each separate channel is one speaker, without diarization. Only known speakers and embeddings need a model then.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from whisper_api.engine.context import JobContext
from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.schema import Segment

if TYPE_CHECKING:
    from whisper_api.engine.diarize.pipeline import Diarization
    from whisper_api.engine.hearing import Heard

__all__ = ["Diarizing", "speaker_embeddings", "speakers_in_order"]


# Seconds of speech from which the embedding of a channel's speaker is made.
VOICE_SECONDS = 60.0


class Diarizing(BackgroundTask["Diarization"]):
    """Diarization in a thread of its own, since it needs no text, with names for the known speakers."""

    def __init__(self, ctx: JobContext, heard: Heard, references: Mapping[str, Any]) -> None:
        self.ctx = ctx
        # A partial, not a lambda: the frame of a lambda would keep the audio after the work is done.
        super().__init__("diarize", functools.partial(self._diarize, heard, references))

    def _diarize(self, heard: Heard, references: Mapping[str, Any]) -> Diarization:
        from whisper_api.engine.diarize.pipeline import diarize

        found = self._by_channel(heard, references) if heard.channels else diarize(self.ctx, heard.audio)
        if references and found.embeddings:
            from whisper_api.engine.diarize.enrollment import name_speakers

            try:
                found = name_speakers(self.ctx, found, references)
            except Exception as error:
                self.ctx.continue_without("the known speakers were not looked for", error)
        return found

    def _by_channel(self, heard: Heard, references: Mapping[str, Any]) -> Diarization:
        """A speaker for each channel, whose turn is the whole channel; with embeddings only where they are needed."""
        from whisper_api.engine.diarize.assignment import Turn
        from whisper_api.engine.diarize.pipeline import Diarization, embed_speaker

        options = self.ctx.options
        if options.num_speakers or options.min_speakers or options.max_speakers:
            self.ctx.warn("the number of speakers was not used: each of the separate channels is one speaker")
        turns = tuple(
            Turn(place * heard.spacing, (place + 1) * heard.spacing, _label(channel))
            for place, channel in enumerate(heard.channels)
        )
        found = Diarization(turns, {}, "", turns)
        if not (references or options.speaker_embeddings):
            return found
        try:
            from whisper_api.engine.diarize.open_models import open_models

            voiceprint = open_models(self.ctx).voiceprint
            vectors = {
                _label(channel): embed_speaker(self.ctx, audio, community=False)
                for channel, audio in heard.voices(VOICE_SECONDS).items()
            }
        except Exception as error:
            lost = "the known speakers were not looked for" if references else "there are no speaker embeddings"
            self.ctx.continue_without(lost, error)
            return found
        embeddings = {label: vector for label, vector in vectors.items() if vector is not None}
        return replace(found, embeddings=embeddings, model=voiceprint.name, same_person=voiceprint.same_person)


def _label(channel: int) -> str:
    return f"SPEAKER_{channel:02d}"


def speakers_in_order(segments: Sequence[Segment]) -> tuple[str, ...]:
    """Speakers in order of appearance, speakers of single words included."""
    found: dict[str, None] = {}
    for segment in segments:
        for speaker in (*(word.speaker for word in segment.words), segment.speaker):
            if speaker is not None:
                found.setdefault(speaker)
    return tuple(found)


def speaker_embeddings(diarization: Diarization | None) -> dict[str, tuple[float, ...]] | None:
    """Each speaker's embedding; None without diarization."""
    if diarization is None:
        return None
    return {speaker: tuple(float(x) for x in vector) for speaker, vector in diarization.embeddings.items()}
