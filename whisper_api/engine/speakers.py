"""The speakers of a job: diarization runs during recognition, and its result becomes names and embeddings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whisper_api.engine.context import JobContext
from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.schema import Segment

if TYPE_CHECKING:
    from whisper_api.engine.diarize.pipeline import Diarization

__all__ = ["Diarizing", "speaker_embeddings", "speakers_in_order"]


class Diarizing(BackgroundTask["Diarization"]):
    """Diarization in a thread of its own, since it needs no text, with names for the known speakers."""

    def __init__(self, ctx: JobContext, audio: Any, references: Mapping[str, Any]) -> None:
        self.ctx = ctx
        # A partial, not a lambda: the frame of a lambda would keep the audio after the work is done.
        super().__init__("diarize", functools.partial(self._diarize, audio, references))

    def _diarize(self, audio: Any, references: Mapping[str, Any]) -> Diarization:
        from whisper_api.engine.diarize.pipeline import diarize

        found = diarize(self.ctx, audio)
        if references:
            from whisper_api.engine.diarize.enrollment import name_speakers

            try:
                found = name_speakers(self.ctx, found, references)
            except Exception as error:
                self.ctx.continue_without("the known speakers were not looked for", error)
        return found


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
