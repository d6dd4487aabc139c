"""The options of one job with every default filled in, made once when the job starts."""

from __future__ import annotations

import msgspec

from whisper_api.engine.languages import language_or_auto
from whisper_api.errors import InvalidOption
from whisper_api.options import VAD_ONSET, TranscriptionOptions, VadMethod

DEFAULT_BEAM_SIZE = 5
# Padding and minimum silence were chosen on speech with reference texts: 0.3 s each gave the fewest word errors with
# Whisper base; without padding, first consonants are lost.
VAD_OFFSET: dict[VadMethod, float] = {"silero": 0.35, "pyannote": 0.363, "none": 0.363}
VAD_PADDING_SECONDS: dict[VadMethod, float] = {"silero": 0.3, "pyannote": 0.2, "none": 0.0}
VAD_MIN_SILENCE_SECONDS = 0.3


class ResolvedOptions(TranscriptionOptions, frozen=True, kw_only=True, omit_defaults=True):
    """Options whose every default is filled in. The stages of a job read these.

    Attributes:
        model: a name of the catalogue, a directory or a hub id.
        language: a code that Whisper knows, ``auto`` or ``multi``.
        beam_size: beams of the first attempt.
        vad_onset, vad_offset: probabilities from 0 to 1; the offset is not above the onset.
        vad_min_silence, vad_padding: seconds.
        vocabulary: names and terms, not the name of a stored vocabulary.
    """

    model: str
    language: str
    beam_size: int
    vad_onset: float
    vad_offset: float
    vad_min_silence: float
    vad_padding: float
    vocabulary: tuple[str, ...] | None = None

    def for_transcript(self) -> TranscriptionOptions:
        """The same values as the type that transcripts are stored and sent with.

        With ``redact``, prompt, hotwords and vocabulary are left out: they may have the names that the text lost.
        """
        values = msgspec.structs.asdict(self)
        return TranscriptionOptions(
            **values | ({"prompt": None, "hotwords": None, "vocabulary": None} if self.redact else {})
        )


def resolve(options: TranscriptionOptions, *, model: str, language: str) -> ResolvedOptions:
    """Fill in every default.

    Args:
        options: the caller's options.
        model: the model that ``options.model`` means on this engine; the engine's default model for None.
        language: the language of jobs that name no language: a code, a name or ``auto``.

    Raises:
        InvalidOption: the language is unknown, or the options name a stored vocabulary, which only a server has.
    """
    if isinstance(options.vocabulary, str):
        raise InvalidOption("vocabulary", "expected a list of terms: only a server stores vocabularies by name")
    onset = VAD_ONSET if options.vad_onset is None else options.vad_onset
    # A low onset lowers the default offset: speech must not end before it begins.
    offset = min(VAD_OFFSET[options.vad], onset) if options.vad_offset is None else options.vad_offset
    padding = VAD_PADDING_SECONDS[options.vad] if options.vad_padding is None else options.vad_padding
    resolved = {
        "model": model,
        "language": language_or_auto(options.language or language),
        "beam_size": options.beam_size or DEFAULT_BEAM_SIZE,
        "vad_onset": onset,
        "vad_offset": offset,
        "vad_min_silence": VAD_MIN_SILENCE_SECONDS if options.vad_min_silence is None else options.vad_min_silence,
        "vad_padding": padding,
    }
    return ResolvedOptions(**{**msgspec.structs.asdict(options), **resolved})
