"""The text of a job as it grows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from whisper_api.engine.hearing import Heard
from whisper_api.engine.invented import InventedText
from whisper_api.engine.voicing import Voicing, bounded_segments
from whisper_api.engine.whisper.recognizer import Recognizer
from whisper_api.engine.whisper.tokens import hand_out_tokens
from whisper_api.schema import Segment, WordTimes


@dataclass
class Text:
    """The text of a job as it grows. Times are those in ``heard.audio``.

    Attributes:
        recognizer: decodes the windows.
        judge: finds invented text.
        heard: the audio and its windows of speech.
        language: code of the spoken language, the one with most speech; empty before it is resolved.
        languages: all spoken languages.
        windows: the segments of each window that has text, in order.
        word_times: where the word times come from.
        aligned: the languages whose word times come from an alignment model; those of the others are Whisper's.
        alignment_model: names of the alignment models that gave word times.
    """

    recognizer: Recognizer
    judge: InventedText
    heard: Heard
    language: str = ""
    languages: Sequence[str] = ()
    windows: list[Sequence[Segment]] = field(default_factory=list)
    word_times: WordTimes = "none"
    aligned: frozenset[str] = frozenset()
    alignment_model: str | None = None

    @property
    def segments(self) -> list[Segment]:
        """The segments of all windows."""
        return [segment for window in self.windows for segment in window]

    def take(self, segments: Sequence[Segment]) -> None:
        """Replace each segment by another one, in order."""
        rest = iter(segments)
        self.windows = [list(itertools.islice(rest, len(window))) for window in self.windows]

    def language_of(self, index: int) -> str:
        """The language of one window."""
        return self.windows[index][0].language or self.language

    def windows_in(self, language: str) -> list[int]:
        """The indices of the windows in one language."""
        return [index for index in range(len(self.windows)) if self.language_of(index) == language]

    def seconds_in(self, language: str) -> float:
        """The length of the windows in one language, which are not split into sentences yet."""
        return sum(self.windows[index][0].end - self.windows[index][0].start for index in self.windows_in(language))

    @functools.cached_property
    def voicing(self) -> Voicing | None:
        """Where a voice is heard; None if that is not known."""
        frames = self.heard.frames
        return None if frames is None else Voicing.of(frames, self.recognizer.ctx.options.vad_offset)

    def bounded(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """The segments with words that keep within the voice; see :func:`~whisper_api.engine.voicing.bounded`."""
        return segments if self.voicing is None else bounded_segments(segments, self.voicing)

    def placed(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        """Segments of this text with their own tokens, their channel and their time in the recording."""
        return self.heard.placed(hand_out_tokens(segments, self.recognizer.whisper.token_bytes))

    def shown(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        """The segments as the transcript will show them: without those that are left out as invented."""
        return self.judge.kept(self.placed(segments))


def untimed(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The segments without words: those of some windows have times that are not final."""
    return tuple(replace(segment, words=()) for segment in segments)
