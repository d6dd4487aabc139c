"""One decoding of a window, and whether its text is good."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from whisper_api.engine.whisper.model import DecodedTokens

__all__ = ["MAX_COMPRESSION_RATIO", "PROMPT_LEAK", "Attempt", "compression_ratio"]

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
