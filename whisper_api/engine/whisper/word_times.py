"""Word times from Whisper's cross-attention, for languages without an alignment model.

Some of the decoder's attention heads follow the audio of the token that is decoded. Dynamic time warping (DTW) over
their attention gives each token a time, as in OpenAI Whisper's ``timing.py``. The Whisper model computes that path, and
this module converts the path to words. It reduces two errors of such times: the attention leads or lags the voice by an
amount that depends on the model, and the pause before a word is counted as part of the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, SAMPLE_RATE, Word
from whisper_api.time_order import fitted

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

    from whisper_api.engine.whisper.model import Attention

SECONDS_PER_POSITION = 0.02
OPENING = frozenset("\"'“¿¡([{-«‹„")
CLOSING = frozenset("\"'.。,，!！?？:：”)]}、…»›;")

# Seconds by which a model's attention leads the voice: the median over 44 words of read English with times from forced
# alignment. Other models have not been measured and count as 0.
LEAD_SECONDS = {"base": 0.02, "tiny.en": -0.11}

HOP = 160
ENERGY_WINDOW = 400
# Shortest pause.
PAUSE_SECONDS = 0.08
# Loudest pause, as a fraction of the range in dB from the quiet to the loud parts of the window.
PAUSE_LEVEL = 0.35
# A pause before a word begins at most this late after the word's start; a later one may be a stop consonant.
PAUSE_BEGINS_WITHIN = 0.15
# In a window with a smaller range, loudness does not indicate pauses.
MIN_DYNAMICS_DB = 10.0

Floats = NDArray[np.float32]
Times = NDArray[np.float64]


def words_of(
    attention: Attention,
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    audio: Floats,
    *,
    offset: float = 0.0,
    lead: float = 0.0,
) -> list[Word]:
    """Words with times.

    Args:
        attention: the path of the tokens through the window.
        tokens: the window's text tokens.
        tokenizer: tokenizer of the text's language, which divides the tokens into words.
        audio: float32, shape (samples,), 16 kHz: the window without padding.
        offset: start of the window in the recording, in seconds.
        lead: seconds by which the model's attention leads the voice.

    Returns:
        Words inside the window, in the order of :func:`~whisper_api.time_order.fitted`.
    """
    if not tokens:
        return []
    texts, pieces = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
    ends = np.cumsum([len(piece) for piece in pieces[:-1]])
    begins = np.r_[0, ends[:-1]]
    duration = len(audio) / SAMPLE_RATE
    moments = np.clip(token_times(attention, len(tokens)) + lead, 0.0, duration)
    scores = [float(np.mean(attention.probabilities[a:b])) for a, b in zip(begins, ends, strict=True)]
    spaced = tokenizer.language_code not in LANGUAGES_WITHOUT_SPACES
    spoken = _words(texts[:-1], moments[begins], moments[ends], scores, spaced=spaced)
    starts, stops = _without_pauses([word.start for word in spoken], [word.end for word in spoken], audio)
    times = [(round(offset + a, 3), round(offset + b, 3)) for a, b in zip(starts, stops, strict=True)]
    return [
        Word(word=" ".join(word.text.split()), start=start, end=end, score=round(float(np.mean(word.scores)), 3))
        for word, (start, end) in zip(spoken, fitted(times, offset, offset + duration), strict=True)
    ]


def token_times(attention: Attention, count: int) -> Times:
    """The start of each token and the end of the last token.

    Args:
        attention: the path of the tokens through the window.
        count: number of tokens.

    Returns:
        float64, shape (count + 1,): seconds from the window's start.
    """
    first = np.searchsorted(attention.tokens, np.arange(count + 1), side="left")
    last = len(attention.frames) - 1
    return np.asarray(attention.frames[np.minimum(first, last)] * SECONDS_PER_POSITION, np.float64)


@dataclass(slots=True)
class _Spoken:
    """A word that is assembled from pieces; its text includes the space before the word."""

    text: str
    start: float
    end: float
    scores: list[float]


def _words(
    texts: Sequence[str], starts: Times, stops: Times, scores: Sequence[float], *, spaced: bool
) -> list[_Spoken]:
    """Join the tokenizer's pieces to words. The tokenizer splits at every mark inside a word ("l'été", "est-il").

    Args:
        texts: the text of each piece.
        starts: the start of each piece, in seconds.
        stops: the end of each piece, in seconds.
        scores: the probability of each piece.
        spaced: whether the language writes spaces between words.
    """
    words: list[_Spoken] = []
    opening = ""
    for text, start, stop, score in zip(texts, starts.tolist(), stops.tolist(), scores, strict=True):
        mark = text.strip()
        continues = bool(words) and not opening and not text.startswith(" ")
        if words and not opening and (not mark or CLOSING.issuperset(mark)):
            # Attention places a full stop in the pause after the word, so the mark's time does not count.
            words[-1].text += text
        elif mark and OPENING.issuperset(mark) and not continues:
            opening += text
        elif continues and spaced:
            words[-1].text += text
            words[-1].end = stop
            words[-1].scores.append(score)
        elif mark:
            words.append(_Spoken(opening + text, start, stop, [score]))
            opening = ""
    if opening and words:
        words[-1].text += opening
    return words


def _without_pauses(starts: list[float], stops: list[float], audio: Floats) -> tuple[list[float], list[float]]:
    """Move each word's start behind a pause at its beginning, and the previous word's end before that pause."""
    quiet = _quiet_runs(audio)
    if not len(quiet):
        return starts, stops
    starts, stops = list(starts), list(stops)
    for index in range(len(starts)):
        start, stop = starts[index], stops[index]
        # Pauses that end inside the word and begin before, or shortly after, its start.
        inside = (quiet[:, 1] > start) & (quiet[:, 1] < stop) & (quiet[:, 0] <= start + PAUSE_BEGINS_WITHIN)
        if not inside.any():
            continue
        begin, end = quiet[np.flatnonzero(inside)[-1]].tolist()
        starts[index] = end
        if index and stops[index - 1] > begin:
            stops[index - 1] = max(starts[index - 1] + SECONDS_PER_POSITION, begin)
    return starts, stops


def _quiet_runs(audio: Floats) -> Times:
    """Pauses, found by loudness: float64, shape (pauses, 2), start and end in seconds."""
    frames = len(audio) // HOP
    if frames < 2:
        return np.empty((0, 2))
    power = np.r_[0.0, np.cumsum(np.square(audio, dtype=np.float64))]
    centres = np.arange(frames) * HOP + HOP // 2
    low = np.maximum(centres - ENERGY_WINDOW // 2, 0)
    high = np.minimum(centres + ENERGY_WINDOW // 2, len(audio))
    decibels = 10 * np.log10((power[high] - power[low]) / (high - low) + 1e-10)
    floor, peak = np.percentile(decibels, (10, 90))
    if peak - floor < MIN_DYNAMICS_DB:
        return np.empty((0, 2))
    quiet = np.r_[False, decibels < floor + PAUSE_LEVEL * (peak - floor), False]
    edges = np.flatnonzero(np.diff(quiet.astype(np.int8))).reshape(-1, 2)
    runs = edges[np.diff(edges, axis=1)[:, 0] * HOP >= PAUSE_SECONDS * SAMPLE_RATE]
    return np.asarray(runs * (HOP / SAMPLE_RATE), np.float64)
