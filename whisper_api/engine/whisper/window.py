"""A window of speech as it is decoded, the attempts on it and whether their text is good, and the sizes of batches."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

from whisper_api.engine.vad import WINDOW_SECONDS, Span
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, MAX_FRAMES, DecodedTokens

# A window is padded to its length plus a margin, not to 30 s, because the encoder's time grows faster than the length.
# Without a margin the decoder does not find the end and repeats itself (in 7 of 7 clips; with 3 s in none). With 5 s
# there are as many word errors as with padding to 30 s.
MARGIN_SECONDS = 5.0

# A window with fewer tokens in a second of voice is cut at its pauses into pieces and decoded again. The slowest of
# 30 windows of read, spoken and sung text has 1.7.
SPARSE_TOKENS = 1.0
SPARSE_VOICED_SECONDS = 4.0
SPARSE_PIECE_SECONDS = 6.0

# A decoding counts as failed by the thresholds of OpenAI's Whisper.
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
NO_SPEECH_PROB = 0.6
# Text of what is likely noise needs a higher probability.
CERTAIN_AVG_LOGPROB = -0.7

# The flag of text that is decoded without the prompt, because the prompt's words came out without being heard.
PROMPT_LEAK = "prompt_leak"


@dataclass(frozen=True, eq=False)
class Attempt:
    """What one decoding of a window gave, as text and figures.

    Attributes:
        decoded: the decoded tokens.
        text: their text.
        compression_ratio: of the text.
        temperature: temperature of the decoding.
        sparse: whether there is too little text for the window's speech.
        leaked: whether the prompt's words came out before, without being heard; this text is decoded without a prompt.
    """

    decoded: DecodedTokens
    text: str
    compression_ratio: float
    temperature: float
    sparse: bool = False
    leaked: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Reasons to doubt this text."""
        flags = []
        if self.compression_ratio > MAX_COMPRESSION_RATIO:
            flags.append("repetitive")
        if self.decoded.avg_logprob < MIN_AVG_LOGPROB or self.sparse:
            flags.append("low_confidence")
        if self.decoded.capped:
            flags.append("truncated")
        if self.leaked:
            flags.append(PROMPT_LEAK)
        return tuple(flags)

    @property
    def is_silence(self) -> bool:
        """Whether the window is silent: the decoder says so, and gives its own text a low probability."""
        return self.decoded.no_speech_prob > NO_SPEECH_PROB and self.decoded.avg_logprob < MIN_AVG_LOGPROB

    @property
    def is_certain(self) -> bool:
        """Whether nothing speaks against this text: it holds where noise is likely, too."""
        certain = self.decoded.avg_logprob >= CERTAIN_AVG_LOGPROB and self.decoded.no_speech_prob <= NO_SPEECH_PROB
        return certain and not self.flags


def compression_ratio(text: str) -> float:
    """Bytes of the text divided by its bytes after zlib: high for text that repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


@dataclass(frozen=True)
class Batching:
    """The size of batches.

    Attributes:
        max_items: most windows in a batch.
        max_cost: most seconds of padded audio in a batch.
        bucket_seconds: padded lengths are rounded up to a multiple of this, since equal lengths batch best.
        lanes: batches that run at once.
    """

    max_items: int
    max_cost: float
    bucket_seconds: float
    lanes: int

    @property
    def window(self) -> int:
        """How many windows of a job are in flight.

        One batch more than the lanes run keeps them busy. With more, the retry of a failed window would wait longer.
        """
        return (self.lanes + 1) * max(1, min(self.max_items, int(min(self.max_cost, 1e6) // WINDOW_SECONDS)))

    def padded_frames(self, seconds: float) -> int:
        """The number of mel frames that a window of this length is padded to."""
        padded = math.ceil((seconds + MARGIN_SECONDS) / self.bucket_seconds) * self.bucket_seconds
        return min(MAX_FRAMES, round(padded * FRAMES_PER_SECOND))


@dataclass(frozen=True, eq=False)
class Window:
    """A window of speech.

    Attributes:
        span: its place.
        frames: what it is padded to.
        encoded: the encoder's output, if it was encoded already.
        voiced: seconds of it in which somebody speaks; 0 where that is not known.
        language: code of its language; None for the language of the recording.
    """

    span: Span
    frames: int
    encoded: Any = None
    voiced: float = 0.0
    language: str | None = None

    @property
    def speech_seconds(self) -> float:
        """Seconds in which somebody speaks; the length where that is not known."""
        return self.voiced or self.span.seconds

    def is_sparse(self, attempt: Attempt) -> bool:
        """Whether an attempt has too little text for what is spoken in the window."""
        return self.voiced >= SPARSE_VOICED_SECONDS and len(attempt.decoded.tokens) < SPARSE_TOKENS * self.voiced
