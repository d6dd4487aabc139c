"""Hears short stretches of speech alone and decodes them in several languages, to find the one that is spoken.

The encoder's output of a stretch serves the detection of its language, each of the decodings, and the final decoding if
the stretch becomes a window of its own. In the language that is spoken, the text mostly has the highest mean log
probability per token. But Whisper also translates: German speech, decoded as English, may give fluent and probable
English. So the decodings count beside what the detector has heard, and never more than a clear detection.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.detection import LanguageDetector
from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, DecodeSettings, Row
from whisper_api.engine.whisper.window import Window
from whisper_api.engine.worker.fair_queue import BatchOperation

# Longer stretches have a clear language, and decoding them takes time.
TRIAL_SECONDS = 5.0
# Evidence against a language in one stretch is at most this probability.
LEAST_PROBABILITY = 0.003
# Evidence of the decodings: the mean log probability of a token counts so much, and is at most so much.
DECODED_WEIGHT = 4.0
MOST_DECODED = 4.0
# Improbable texts prove nothing: noise and languages that the model hardly knows give some in any language. Text in a
# language that is heard nowhere else in the recording needs a higher probability.
LEAST_LOGPROB, LEAST_NEW_LOGPROB = -0.7, -0.5
# Encodings up to this size are kept.
KEPT_BYTES = 128 << 20

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Alone:
    """A stretch of speech, heard without what is around it.

    Attributes:
        window: its place. That of a short stretch is padded as for decoding, and may have its encoding.
        languages: language code to probability.
    """

    window: Window
    languages: dict[str, float]

    @property
    def is_short(self) -> bool:
        """Whether the stretch may be decoded in several languages."""
        return self.window.span.seconds <= TRIAL_SECONDS

    @property
    def likeliest(self) -> str:
        """Code of the most probable language."""
        return max(self.languages, key=lambda code: self.languages[code])


def heard_alone(detector: LanguageDetector, spans: Sequence[Span]) -> Iterator[Alone]:
    """Hear stretches of speech alone, in order.

    Args:
        detector: detects the languages.
        spans: the stretches.
    """
    windows = []
    for span in spans:
        short = span.seconds <= TRIAL_SECONDS
        frames = detector.batching.padded_frames(span.seconds) if short else detector.frames_alone(span.seconds)
        windows.append(Window(span, frames, voiced=span.seconds))
    kept = 0
    for window, detected in zip(windows, detector.windows(windows), strict=True):
        alone = Alone(window, detected.languages)
        if alone.is_short and kept + detected.encoded.nbytes <= KEPT_BYTES:
            kept += detected.encoded.nbytes
            alone = replace(alone, window=replace(window, encoded=detected.encoded))
        yield alone


def logprobs_in(
    detector: LanguageDetector, trials: Sequence[tuple[Window, Sequence[str]]]
) -> Iterator[dict[str, float]]:
    """Decode each window in several languages.

    Args:
        detector: the detector, with the job and the model.
        trials: windows, and the codes of the languages to decode each in.

    Yields:
        For each window, language code to the mean log probability of a token.
    """
    items = (_item(detector, window, code) for window, codes in trials for code in codes)
    decoded = detector.ctx.run(items, window=detector.batching.window)
    for _, codes in trials:
        yield {code: next(decoded).avg_logprob for code in codes}


def _item(detector: LanguageDetector, window: Window, code: str) -> tuple[BatchOperation, Row, float]:
    """The work item that decodes a window in a language: no beams and no prompt, since only probabilities count."""
    whisper = detector.whisper
    tokenizer = whisper.tokenizer(code)
    prompt = (*tokenizer.sot_sequence, tokenizer.no_timestamps)
    settings = DecodeSettings(
        window.frames,
        prompt_length=len(prompt),
        beam_size=1,
        temperature=0.0,
        suppress=whisper.non_speech_tokens,
        encoded=window.encoded is not None,
    )
    value = window.encoded if window.encoded is not None else detector.audio[window.span.start : window.span.end]
    operation = whisper.decode(settings, detector.batching.max_items, detector.batching.max_cost)
    row = Row(value, prompt, math.ceil(window.span.seconds * FRAMES_PER_SECOND))
    return operation, row, window.frames / FRAMES_PER_SECOND


def is_meaningful(logprobs: Mapping[str, float], spoken: Collection[str]) -> bool:
    """Whether the most probable text is so probable that the decodings tell the language.

    Args:
        logprobs: language code to the mean log probability of a token.
        spoken: codes of the languages that are heard in the recording.
    """
    best = max(logprobs, key=lambda code: logprobs[code])
    return logprobs[best] >= (LEAST_LOGPROB if best in spoken else LEAST_NEW_LOGPROB)


def decoded_evidence(alone: Scores, logprobs: Mapping[int, float]) -> Scores:
    """Log probability of each language in a stretch that was decoded in some of them.

    Args:
        alone: probability of each language, heard alone.
        logprobs: index of each language of the decodings to the mean log probability of a token.
    """
    best = max(logprobs.values())
    scores = np.full(len(alone), math.log(LEAST_PROBABILITY) - MOST_DECODED)
    for language, logprob in logprobs.items():
        text = max(DECODED_WEIGHT * (logprob - best), -MOST_DECODED)
        scores[language] = math.log(max(float(alone[language]), LEAST_PROBABILITY)) + text
    return scores
