"""Forced alignment: finds the times of the recognised words with a CTC model of the language.

With the same model, the words, starts, ends and scores are those of ``whisperx.align`` (Bain et al., "WhisperX", 2023),
with two exceptions: after a character that becomes two in lower case (Turkish "İ"), the characters keep their own times
instead of their neighbours' times; and words that the model cannot spell, such as numbers, have times from Whisper's
cross-attention, if the segment brings some. Words without times in WhisperX get interpolated times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from whisper_api.engine.align import ctc
from whisper_api.engine.align.ahead import EmissionsAhead, emissions_of, operation_of, samples_of
from whisper_api.engine.align.models import AlignmentModel, AlignmentSource, EmissionInput, Emissions, model_id
from whisper_api.engine.align.numbers import attention_times
from whisper_api.engine.context import JobContext
from whisper_api.engine.models.catalog import HUB_ALIGNMENT, TORCHAUDIO_ALIGNMENT
from whisper_api.engine.sentences import spans
from whisper_api.engine.worker.device import has_bfloat16
from whisper_api.schema import SAMPLE_RATE, Segment, Word
from whisper_api.word_spacing import joined

# Number of consecutive segments that are sorted by length, so that a batch has little padding.
LOOK_AHEAD = 64
# Languages in which WhisperX treats every character as a word.
CHARACTER_LANGUAGES = frozenset({"ja", "zh"})
# Label of a character that is not in the model's dictionary.
WILDCARD = -1


@dataclass(frozen=True)
class AlignedSegments:
    """The result of alignment.

    Attributes:
        segments: one segment for each sentence; every word has a start and an end.
        model: bundle name or hub id of the alignment model.
    """

    segments: tuple[Segment, ...]
    model: str


def has_model(language: str) -> bool:
    """Whether the catalogue has an alignment model for a language."""
    return language in TORCHAUDIO_ALIGNMENT or language in HUB_ALIGNMENT


def alignment_source(ctx: JobContext, language: str) -> AlignmentSource:
    """The source of a language's alignment model. Downloads missing files.

    Args:
        ctx: the job.
        language: code of the text's language.

    Raises:
        UnknownModel: the catalogue has no alignment model for the language.
        ModelUnavailable: the model is not on this machine and cannot be downloaded.
    """
    model_id(language)
    local = ctx.fetch_model(f"align-{language}")
    half = "float16" if ctx.device.kind == "cuda" else "bfloat16" if has_bfloat16(ctx.device) else "float32"
    return AlignmentSource(language, local.path, ctx.device.torch_name, half)


def align(
    ctx: JobContext,
    audio: npt.NDArray[np.float32],
    segments: Sequence[Segment],
    language: str,
    on_aligned: Callable[[int, Sequence[Segment]], None] | None = None,
    ahead: EmissionsAhead | None = None,
) -> AlignedSegments:
    """Find the time of every word.

    Args:
        ctx: the job.
        audio: float32, shape (samples,), mono, 16 kHz.
        segments: recognised text with approximate times, in seconds from the start of the audio. Words, if any, have
            times from cross-attention.
        language: code of the text's language.
        on_aligned: called with the index of a segment and the segment's sentences, as soon as they have their times;
            not in order of time.
        ahead: what the model has heard already.

    Returns:
        The sentences of the segments, with words.

    Raises:
        UnknownModel: the catalogue has no alignment model for the language.
        ModelUnavailable: the model is not on this machine and cannot be downloaded.
        Exception: no segment could be aligned. If some segments were aligned, an error becomes a warning, and the
            remaining segments keep their text.
    """
    name = model_id(language)
    source = alignment_source(ctx, language)
    with ctx.lease(source) as model:
        operation = operation_of(ctx, source, model)
        found: list[list[Segment]] = [[] for _ in segments]
        try:
            _align_all(ctx, operation, audio, segments, language, on_aligned, ahead, found)
        except Exception as error:
            if not any(found):
                raise
            ctx.continue_without("not every segment was aligned", error)
    failed = sum(
        not sentences and bool(segment.text.strip()) for segment, sentences in zip(segments, found, strict=True)
    )
    if failed:
        ctx.warn(
            f"{failed} of {len(segments)} segments could not be aligned; the times of their words are interpolated."
        )
    cut: list[Segment] = []
    for index, (segment, sentences) in enumerate(zip(segments, found, strict=True)):
        cut.extend(sentences or [_unaligned(segment, language)])
        if not sentences and on_aligned is not None:
            on_aligned(index, cut[-1:])
    return AlignedSegments(tuple(replace(segment, id=index) for index, segment in enumerate(cut)), name)


def _align_all(
    ctx: JobContext,
    operation: Emissions,
    audio: npt.NDArray[np.float32],
    segments: Sequence[Segment],
    language: str,
    on_aligned: Callable[[int, Sequence[Segment]], None] | None,
    ahead: EmissionsAhead | None,
    found: list[list[Segment]],
) -> None:
    """Put the sentences of each segment into ``found``. The item of a segment that cannot be aligned stays empty."""

    def inputs() -> Iterator[tuple[tuple[int, _Labels], Segment, EmissionInput]]:
        for index in _by_length(segments):
            segment = segments[index]
            labels = _label(segment.text, language, operation.model)
            if labels is not None and segment.start < len(audio) / SAMPLE_RATE:
                samples = samples_of(audio, segment.start, segment.end)
                yield (index, labels), segment, EmissionInput(samples, labels.columns, labels.wildcard)

    total = sum(segment.end - segment.start for segment in segments)
    done = 0.0
    with closing(emissions_of(ctx, operation, inputs(), ahead)) as emissions:
        for (index, labels), emission in emissions:
            segment = segments[index]
            times = _character_times(segment, labels, emission)
            if times is not None:
                if segment.words:
                    _use_attention(segment, labels, times)
                found[index] = _sentences(segment, times, language)
                if on_aligned is not None:
                    on_aligned(index, found[index])
            done += segment.end - segment.start
            ctx.progress(done / total if total > 0 else 1.0)


def _by_length(segments: Sequence[Segment]) -> Iterator[int]:
    for first in range(0, len(segments), LOOK_AHEAD):
        indices = range(first, min(first + LOOK_AHEAD, len(segments)))
        yield from sorted(indices, key=lambda index: segments[index].end - segments[index].start)


@dataclass(frozen=True)
class _Labels:
    """A text in the labels of a model.

    Attributes:
        columns: int64: the labels of the text, and the blank.
        tokens: int64, shape (tokens,): indices into ``columns``; ``len(columns)`` is a character that the model does
            not know.
        blank: index of the blank in ``columns``.
        wildcard: whether the text has a character that the model does not know.
        owners: for each aligned character, its position in the text, its first token and the token after its last.
    """

    columns: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    blank: int
    wildcard: bool
    owners: list[tuple[int, int, int]]


def _label(text: str, language: str, model: AlignmentModel) -> _Labels | None:
    """The labels of a text; None when the text has no character to align."""
    labels: list[int] = []
    owners = []
    for position in range(len(text) - len(text.lstrip()), len(text.rstrip())):
        character = text[position].lower()
        if character == " " and language not in CHARACTER_LANGUAGES:
            character = "|"
        if character in model.dictionary or character not in (" ", "|"):
            first = len(labels)
            labels.extend(model.dictionary.get(part, WILDCARD) for part in character)
            owners.append((position, first, len(labels)))
    if not labels:
        return None
    tokens = np.array(labels)
    unknown = tokens == WILDCARD
    columns = np.union1d(tokens[~unknown], [model.blank])
    indices = np.where(unknown, len(columns), np.searchsorted(columns, tokens))
    blank = int(np.searchsorted(columns, model.blank))
    return _Labels(columns, indices, blank, bool(unknown.any()), owners)


@dataclass(frozen=True, slots=True)
class _Time:
    start: float
    end: float
    score: float
    attention: bool = False


def _character_times(segment: Segment, labels: _Labels, emission: npt.NDArray[np.float32]) -> list[_Time | None] | None:
    """The time of each character of a segment's text; None when the text has more characters than frames."""
    path = ctc.best_path(emission, labels.tokens, labels.blank)
    if path is None:
        return None
    starts, ends, scores = path.start.tolist(), path.end.tolist(), ctc.mean_scores(path)
    ratio = (segment.end - segment.start) / len(emission)
    times: list[_Time | None] = [None] * len(segment.text)
    for position, first, after in labels.owners:
        times[position] = _Time(
            round(starts[first] * ratio + segment.start, 3),
            round(ends[after - 1] * ratio + segment.start, 3),
            round(sum(scores[first:after]) / (after - first), 3),
        )
    return times


def _use_attention(segment: Segment, labels: _Labels, times: list[_Time | None]) -> None:
    """Replace the times of the words that the model cannot spell."""
    spelled = {position for position, first, _ in labels.owners if labels.tokens[first] < len(labels.columns)}
    heard = attention_times(segment, spelled, [None if time is None else (time.start, time.end) for time in times])
    for word in heard:
        for position in range(word.first, word.after):
            if segment.text[position] != " ":
                times[position] = _Time(word.start, word.end, word.score, attention=True)


@dataclass(slots=True)
class _Piece:
    """A word or sentence whose time may still be unknown."""

    text: str
    start: float | None
    end: float | None
    score: float | None = None
    interpolated: bool = False
    attention: bool = False


def _sentences(segment: Segment, times: list[_Time | None], language: str) -> list[Segment]:
    text = segment.text
    found = spans(text, language)
    pieces = []
    for index, (first, last) in enumerate(found):
        # As in WhisperX, the space after a sentence belongs to the sentence.
        after = last if index + 1 < len(found) and found[index + 1][0] == last else min(last + 1, len(text))
        words = _words(text, times, first, after, language)
        _copy_nearest_times(words)
        known = [time for time in times[first:after] if time is not None]
        spoken = [time for i, time in enumerate(times[first:after], first) if time is not None and text[i] != " "]
        start = min((time.start for time in known), default=None)
        pieces.append((_Piece(text[first:last], start, max((time.end for time in spoken), default=None)), words))
    _copy_nearest_times([piece for piece, _ in pieces])
    join = joined if language in CHARACTER_LANGUAGES else " ".join
    sentences = []
    timed = [
        (
            segment.start if piece.start is None else piece.start,
            segment.end if piece.end is None else piece.end,
            piece.text,
            words,
        )
        for piece, words in pieces
    ]
    for (start, end), group in groupby(sorted(timed, key=lambda item: item[:2]), key=lambda item: item[:2]):
        members = list(group)
        words = [word for *_, member_words in members for word in member_words]
        sentences.append(
            replace(
                segment,
                start=start,
                end=end,
                text=join(member_text for _, _, member_text, _ in members),
                words=_timed_words(words, start, end),
            )
        )
    return sentences


def _words(text: str, times: list[_Time | None], first: int, after: int, language: str) -> list[_Piece]:
    """The words of ``text[first:after]``; a word without an aligned character has no time yet."""
    words = []
    every = language in CHARACTER_LANGUAGES
    borders = [first, *(i for i in range(first + 1, after) if every or text[i] == " ")]
    for begin, stop in zip(borders, [*borders[1:], after], strict=True):
        word = text[begin:stop].strip()
        if not word:
            continue
        parts = [times[position] for position in range(begin, stop) if text[position] != " "]
        known = [part for part in parts if part is not None]
        if not known:
            words.append(_Piece(word, None, None))
            continue
        # Summed and rounded as pandas and NumPy do, because a score may be halfway between two rounded values.
        total = np.array([0.0 if part is None else part.score for part in parts]).sum()
        score = float(np.round(total / len(known), 3))
        start, end = min(part.start for part in known), max(part.end for part in known)
        words.append(_Piece(word, start, end, score, attention=any(part.attention for part in known)))
    return words


def _copy_nearest_times(pieces: list[_Piece]) -> None:
    """Give each piece without a time the time of the nearest piece, the earlier of two."""
    known = [index for index, piece in enumerate(pieces) if piece.start is not None]
    if not known or len(known) == len(pieces):
        return
    for index, piece in enumerate(pieces):
        if piece.start is None:
            nearest = pieces[min(known, key=lambda other: (abs(other - index), other))]
            piece.start, piece.end, piece.interpolated = nearest.start, nearest.end, True


def _timed_words(pieces: list[_Piece], start: float, end: float) -> tuple[Word, ...]:
    """Convert pieces to words. Adjacent pieces without a time divide the gap between their neighbours by length."""
    words: list[Word] = []
    index = 0
    while index < len(pieces):
        piece = pieces[index]
        if piece.start is not None and piece.end is not None:
            word = _word(piece.text, piece.start, piece.end, piece.score, piece.interpolated)
            words.append(replace(word, timing="attention") if piece.attention else word)
            index += 1
            continue
        run = [piece]
        while index + len(run) < len(pieces) and pieces[index + len(run)].start is None:
            run.append(pieces[index + len(run)])
        index += len(run)
        left = words[-1].end if words else start
        following = pieces[index].start if index < len(pieces) else None
        words.extend(_spread(run, left, max(left, end if following is None else following)))
    return tuple(words)


def _spread(pieces: list[_Piece], left: float, right: float) -> Iterator[Word]:
    total = sum(len(piece.text) for piece in pieces)
    before, begin = 0, left
    for piece in pieces:
        before += len(piece.text)
        border = round(left + (right - left) * before / total, 3)
        stop = right if before == total else min(max(border, left), right)
        yield _word(piece.text, begin, stop, None, True)
        begin = stop


def _word(text: str, start: float, end: float, score: float | None, interpolated: bool) -> Word:
    return Word(word=text, start=start, end=end, score=score, interpolated=interpolated)


def _unaligned(segment: Segment, language: str) -> Segment:
    """The unchanged segment, with interpolated word times."""
    words = _words(segment.text, [None] * len(segment.text), 0, len(segment.text), language)
    return replace(segment, text=segment.text.strip(), words=_timed_words(words, segment.start, segment.end))
