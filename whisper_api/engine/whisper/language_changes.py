"""Finds where the language of a recording changes, and cuts its windows there.

Each window is heard whole, and each of its stretches of speech by itself. A hidden Markov model then gives each
stretch its language: the evidence of the stretches is weighed against the cost of a change of language (the Viterbi
algorithm), so unclear and short stretches have the language of their neighbours. A language must have evidence that
pays for it, so a recording in one language stays in one language. Short stretches that may have another language than
those beside them are decoded in both languages, and weighed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.vad import MAX_SILENCE_SECONDS, WINDOW_SECONDS, Span
from whisper_api.engine.whisper.detection import LanguageDetector, mean_languages, speech_parts
from whisper_api.engine.whisper.language_trials import (
    KEPT_BYTES,
    LEAST_PROBABILITY,
    Alone,
    decoded_evidence,
    heard_alone,
    is_meaningful,
    logprobs_in,
)
from whisper_api.engine.whisper.window import Window
from whisper_api.schema import SAMPLE_RATE

# Longest stretch of speech whose language is judged as a whole. Speakers who change their language mostly pause.
PART_SECONDS = 8.0
# The numbers below were chosen on 120 recordings made of clips in French, German, Spanish and English, and on 17
# recordings in one language; none are held out. Whisper base does not tell Catalan from Spanish in short stretches.
# Shorter stretches have less weight, in proportion to their length.
FULL_WEIGHT_SECONDS = 3.0
# Costs of a change of language and of another language in the recording, as logarithms of probabilities.
CHANGE_COST = 1.5
LANGUAGE_COST = 2.0
# When the whole window and all its stretches agree so clearly, the stretches are not heard alone.
AGREEMENT = 0.8
# A stretch of fewer seconds may disagree a little.
SHORT_SECONDS = 1.5
LITTLE = 0.1

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Part:
    """A stretch of speech.

    Attributes:
        window: index of its window.
        span: its place.
        probabilities: probability of each language, heard inside the window.
    """

    window: int
    span: Span
    probabilities: Scores


def in_their_languages(
    detector: LanguageDetector, windows: Sequence[Window], speech: Sequence[Span], on_heard: Callable[[float], None]
) -> list[Window]:
    """Give each window its language. A window in which the language changes is cut at a pause.

    Args:
        detector: detects the languages.
        windows: the windows of a recording, in order; at least one.
        speech: the spans in which somebody speaks, in order; empty if that is not known.
        on_heard: called with the fraction of the windows that were heard.

    Returns:
        The windows with their languages. Windows that are not cut may have their encodings.
    """
    codes = sorted(detector.whisper.languages)
    heard = _hear(detector, windows, speech, codes, on_heard)
    chosen, alone = _judge(detector, heard, codes)
    if len(set(chosen)) == 1:
        # What the windows as a whole sound like is surer, and what ``auto`` goes by.
        mean = mean_languages([window.speech_seconds for window in windows], heard.languages)
        chosen = [max(mean, key=lambda code: mean[code])] * len(chosen)
    encodings = {each.window.span: each.window.encoded for each in alone}
    found: list[Window] = []
    cut = False
    in_languages = zip(chosen, heard.parts, strict=True)
    for index, mine in groupby(in_languages, key=lambda each: each[1].window):
        pieces = list(_cut(detector, heard.windows[index], mine, encodings))
        before, cut = cut, len(pieces) > 1
        if found and (cut or before) and (joined := _joined(detector, found[-1], pieces[0])) is not None:
            # Two pieces of cut windows are one, so that the text of each has its context.
            found[-1:] = [joined]
            del pieces[0]
        found.extend(pieces)
    return found


@dataclass(frozen=True, eq=False)
class _Heard:
    """What the windows sound like.

    Attributes:
        windows: the windows with their encodings.
        languages: for each window, language code to probability.
        parts: their stretches of speech.
        unclear: the indices of windows whose stretches do not agree.
    """

    windows: list[Window]
    languages: list[dict[str, float]]
    parts: list[_Part]
    unclear: set[int]


def _hear(
    detector: LanguageDetector,
    windows: Sequence[Window],
    speech: Sequence[Span],
    codes: Sequence[str],
    on_heard: Callable[[float], None],
) -> _Heard:
    spans = [speech_parts(window.span, speech, detector.audio, PART_SECONDS) or [window.span] for window in windows]
    heard = _Heard([], [], [], set())
    kept = 0
    for index, detected in enumerate(detector.windows(windows, spans, ahead=1)):
        whole = _probabilities(detected.languages, codes)
        mine = [
            _Part(index, span, _probabilities(languages, codes))
            for span, languages in zip(spans[index], detected.parts, strict=True)
        ]
        if not _agree(whole, mine):
            heard.unclear.add(index)
        heard.parts.extend(mine)
        kept += detected.encoded.nbytes
        heard.windows.append(replace(windows[index], encoded=detected.encoded if kept <= KEPT_BYTES else None))
        heard.languages.append(detected.languages)
        on_heard((index + 1) / len(windows))
    return heard


def _judge(detector: LanguageDetector, heard: _Heard, codes: Sequence[str]) -> tuple[list[str], list[Alone]]:
    """The language of each stretch, and the stretches that were heard alone."""
    doubtful = [index for index, part in enumerate(heard.parts) if part.window in heard.unclear]
    alone = dict(zip(doubtful, heard_alone(detector, [heard.parts[i].span for i in doubtful]), strict=True))
    apart = {index: _probabilities(each.languages, codes) for index, each in alone.items()}
    scores = np.array(
        [
            evidence(part.probabilities, apart.get(index, part.probabilities), part.span.seconds)
            for index, part in enumerate(heard.parts)
        ]
    )
    chosen = [codes[each] for each in most_likely_languages(scores)]
    spoken = sorted(set(chosen))
    # A short stretch may be in the language that it sounds like, in that of a stretch beside it, or in the likeliest of
    # those that are spoken elsewhere.
    candidates = {
        index: sorted(
            {
                each.likeliest,
                max(spoken, key=lambda code: each.languages[code]),
                *chosen[max(0, index - 1) : index + 2],
            }
        )
        for index, each in alone.items()
        if each.is_short
    }
    trials = {index: tried for index, tried in candidates.items() if len(tried) > 1}
    if trials:
        logprobs = logprobs_in(detector, [(alone[index].window, tried) for index, tried in trials.items()])
        for index, found in zip(trials, logprobs, strict=True):
            if is_meaningful(found, spoken):
                tried = {codes.index(code): logprob for code, logprob in found.items()}
                scores[index] = decoded_evidence(apart[index], tried)
        chosen = [codes[each] for each in most_likely_languages(scores)]
    return chosen, list(alone.values())


def _probabilities(languages: dict[str, float], codes: Sequence[str]) -> Scores:
    return np.array([languages.get(code, 0.0) for code in codes])


def _agree(whole: Scores, parts: Sequence[_Part]) -> bool:
    best = int(whole.argmax())
    least = (LITTLE if part.span.seconds < SHORT_SECONDS else AGREEMENT for part in parts)
    likely = (float(part.probabilities[best]) for part in parts)
    return float(whole[best]) >= AGREEMENT and all(p >= bound for p, bound in zip(likely, least, strict=True))


def evidence(inside: Scores, alone: Scores, seconds: float) -> Scores:
    """Log probability of each language in a stretch.

    Args:
        inside: the probabilities as heard inside the window: better for short stretches.
        alone: the probabilities as heard alone: better where the languages around are others. The more certain of both
            counts more.
        seconds: length of the stretch.
    """
    heard = [inside, alone]
    weights = np.array([float(each.max()) ** 2 for each in heard])
    mean = np.average([np.log(np.maximum(each, LEAST_PROBABILITY**2)) for each in heard], axis=0, weights=weights)
    scores: Scores = min(1.0, seconds / FULL_WEIGHT_SECONDS) * np.maximum(mean, np.log(LEAST_PROBABILITY))
    return scores


def most_likely_languages(evidence: Scores) -> list[int]:
    """The most likely language of each stretch.

    Args:
        evidence: shape (stretches, languages): log probability of each language.

    Returns:
        The index of each stretch's language.
    """
    candidates = np.unique(evidence.argmax(axis=1))
    while True:
        path, score = _viterbi(evidence[:, candidates])
        used = np.unique(path)
        if len(used) == 1:
            break
        worth = {each: score - _viterbi(evidence[:, np.delete(candidates, each)])[1] for each in used.tolist()}
        least = min(worth, key=lambda each: worth[each])
        if worth[least] >= LANGUAGE_COST:
            break
        candidates = np.delete(candidates, least)
    return [int(candidates[each]) for each in path]


def _viterbi(evidence: Scores) -> tuple[NDArray[np.int64], float]:
    """The best sequence of languages when each change has a cost, and its score."""
    count, languages = evidence.shape
    stay = np.arange(languages)
    came_from = np.zeros((count, languages), np.int64)
    scores = evidence[0].copy()
    for index in range(1, count):
        best = int(scores.argmax())
        changed = scores[best] - CHANGE_COST
        came_from[index] = np.where(scores >= changed, stay, best)
        scores = np.maximum(scores, changed) + evidence[index]
    path = np.zeros(count, np.int64)
    path[-1] = scores.argmax()
    for index in range(count - 1, 0, -1):
        path[index - 1] = came_from[index, path[index]]
    return path, float(scores.max())


def _joined(detector: LanguageDetector, window: Window, following: Window) -> Window | None:
    """Two neighbours in one window; None when they have different languages, or would be too long together."""
    span = Span(window.span.start, following.span.end)
    pause = (following.span.start - window.span.end) / SAMPLE_RATE
    if window.language != following.language or span.seconds > WINDOW_SECONDS or pause > MAX_SILENCE_SECONDS:
        return None
    frames = detector.batching.padded_frames(span.seconds)
    return Window(span, frames, voiced=window.voiced + following.voiced, language=window.language)


def _cut(
    detector: LanguageDetector, window: Window, parts: Iterable[tuple[str, _Part]], encodings: Mapping[Span, Any]
) -> Iterator[Window]:
    """The window, or its pieces where the language changes, with their encodings where there are some."""
    runs = [(code, [part.span for _, part in run]) for code, run in groupby(parts, key=lambda each: each[0])]
    if len(runs) == 1:
        yield replace(window, language=runs[0][0])
        return
    for number, (code, spans) in enumerate(runs):
        start = spans[0].start if number else window.span.start
        end = spans[-1].end if number + 1 < len(runs) else window.span.end
        span = Span(start, end)
        voiced = sum(each.seconds for each in spans) if window.voiced else 0.0
        frames = detector.batching.padded_frames(span.seconds)
        yield Window(span, frames, encodings.get(span), voiced, code)
