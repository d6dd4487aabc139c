"""Decodes voice without words again, and puts what it says between the words of the first decoding.

Whisper sometimes ends the text of a window early, begins it late or leaves a sentence out. The words of such a window
tell nothing: they are as many in a second as those of slow speech. Their times do.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from msgspec.structs import replace

from whisper_api.engine.sentences import split_sentences
from whisper_api.engine.text import Text
from whisper_api.engine.vad import Span
from whisper_api.engine.voicing import LOST_APART, Interval, Voicing
from whisper_api.engine.whisper.window import SPARSE_VOICED_SECONDS
from whisper_api.schema import SAMPLE_RATE, Segment, Word
from whisper_api.word_spacing import word_spans

# Seconds of the pauses around a stretch that are decoded with it.
MARGIN = 0.2

# Part of a word's time that is voiced, if the word is where it is said to be.
VOICED_PART = 0.5
# Texts of at least so many words are alike from this ratio of their matching words on.
FEW_WORDS, ALIKE = 4, 0.7


def decode_lost_speech(text: Text) -> None:
    """Decode the stretches of voice without words again, insert the new words, and emit the windows that have some.

    A warning names what stays without text, and the sentence before it gets a flag. A translation stays as it is,
    because its words are not in the order of the speech.

    Args:
        text: the text, with word times.
    """
    voicing, recognizer = text.voicing, text.recognizer
    if voicing is None or text.word_times == "none" or recognizer.ctx.options.task == "translate":
        return
    spans = [(span.start / SAMPLE_RATE, span.end / SAMPLE_RATE) for span in recognizer.with_text]
    by_language: dict[str, list[Interval]] = {}
    for stretch in _lost(text, voicing, spans):
        by_language.setdefault(text.language_of(_window_at(spans, stretch[0])), []).append(stretch)
    lost: list[Interval] = []
    found: list[Segment] = []
    for language, stretches in by_language.items():
        if language in text.aligned:
            stretches = _confirmed(text, voicing, language, stretches)
        if stretches:
            pieces = [Span(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in stretches]
            again = recognizer.transcribe_again(language, pieces)
            lost += stretches
            found += text.judge.marked(text.bounded(_timed(text, language, again))) if again else ()
    if not lost:
        return
    seeks = {segment.seek for segment in text.segments}
    changed = set()
    for segment in found:
        index = _window_at(spans, segment.start)
        # The tokens of a window are found by its start.
        own = replace(segment, language=text.windows[index][0].language)
        if segment.seek is not None and segment.seek in seeks:
            own = replace(own, seek=segment.seek + 1)
        window = inserted(text.windows[index], own, voicing)
        if window is not None:
            text.windows[index] = window
            changed.add(index)
    changed |= _doubt(text, voicing, spans, lost)
    for index in sorted(changed):
        recognizer.ctx.emit_partial(index, text.shown(text.windows[index]), aligned=True)


def _timed(text: Text, language: str, segments: Sequence[Segment]) -> Sequence[Segment]:
    """New segments as sentences, with word times of the same source as the others."""
    from whisper_api.engine.align.align import align

    if language in text.aligned:
        return align(text.recognizer.ctx, text.heard.audio, segments, language).segments
    return split_sentences(segments, language)


def _doubt(text: Text, voicing: Voicing, spans: Sequence[Interval], lost: Sequence[Interval]) -> set[int]:
    """Flag the text before each stretch that still has no words, and warn. Returns the numbers of the windows."""
    changed = set()
    textless = 0.0
    for start, end in _lost(text, voicing, spans):
        seconds = voicing.seconds(start, end)
        if seconds >= SPARSE_VOICED_SECONDS and any(begin < end and stop > start for begin, stop in lost):
            textless += seconds
            index = _window_at(spans, start)
            text.windows[index] = _doubted(text.windows[index], start)
            changed.add(index)
    if textless:
        text.recognizer.warn_of_textless(textless)
    return changed


def _doubted(window: Sequence[Segment], at: float) -> list[Segment]:
    """The sentences of a window, with a flag on the sentence before a stretch without text."""
    before = max((index for index, segment in enumerate(window) if segment.start < at), default=0)
    flags = tuple(dict.fromkeys((*window[before].flags, "low_confidence")))
    return [*window[:before], replace(window[before], flags=flags), *window[before + 1 :]]


def _lost(text: Text, voicing: Voicing, spans: Sequence[Interval]) -> list[Interval]:
    """Stretches of voice without words, with a part of the pauses around them."""
    # The windows of separate channels are in the order of the recording, not of the audio.
    words = sorted((word for segment in text.segments for word in segment.words), key=lambda word: word.start)
    return [
        (max(start - MARGIN, gap_start), min(end + MARGIN, gap_end))
        for (start, end), (gap_start, gap_end) in voicing.lost(words, sorted(spans))
    ]


def _window_at(spans: Sequence[Interval], time: float) -> int:
    """Number of the window in which a time lies, or that ends first after it."""
    return min((index for index, (_, end) in enumerate(spans) if time < end), key=lambda index: spans[index][1])


def _confirmed(text: Text, voicing: Voicing, language: str, lost: Sequence[Interval]) -> list[Interval]:
    """The stretches that have no words by cross-attention either.

    Where forced alignment fails, its words are far from where they are spoken. Their text would then be there twice.
    """
    recognizer = text.recognizer
    spans = recognizer.with_text
    concerned = [
        index
        for index, span in enumerate(spans)
        if any(start * SAMPLE_RATE < span.end and end * SAMPLE_RATE > span.start for start, end in lost)
    ]
    again = recognizer.timed_by_attention(language, [spans[index] for index in concerned])
    empty: list[Interval] = []
    for index, segment in zip(concerned, again, strict=True):
        if segment is not None and _bare(segment.text) == _bare("".join(each.text for each in text.windows[index])):
            (window,) = text.bounded([segment])
            span = (spans[index].start / SAMPLE_RATE, spans[index].end / SAMPLE_RATE)
            empty += [stretch for stretch, _ in voicing.lost(window.words, [span])]
    return [
        (start, end)
        for start, end in lost
        if any(min(end, stop) - max(start, begin) >= LOST_APART for begin, stop in empty)
    ]


def inserted(segments: Sequence[Segment], found: Segment, voicing: Voicing) -> list[Segment] | None:
    """Insert a segment between the words of other segments.

    Words that repeat the neighbouring ones are left out: their sound was cut in two, or a word of the first decoding
    was spoken in the gap and has a wrong time. A true repetition has its own voice under each word.

    Args:
        segments: the sentences of a window, with words, in order of time.
        found: what was decoded in a gap between two of their words, with words.
        voicing: where a voice is heard.

    Returns:
        The sentences; None if nothing of the text is new.
    """
    middle = found.words[len(found.words) // 2].start
    before = [word for segment in segments for word in segment.words if word.start < middle]
    after = [word for segment in segments for word in segment.words if word.start >= middle]
    first, last = 0, len(found.words)
    first += _repeated(before, found.words, voicing)
    last -= _repeated(after[::-1], found.words[::-1], voicing)
    if first >= last:
        return None
    new = part(found, first, last)
    result: list[Segment] = []
    for segment in segments:
        count = sum(word.start < middle for word in segment.words)
        if 0 < count < len(segment.words):
            result += [part(segment, 0, count), new, part(segment, count, len(segment.words))]
        else:
            result.append(segment)
    if new not in result:
        position = sum(bool(segment.words) and segment.words[0].start < middle for segment in segments)
        result.insert(position, new)
    return result


def part(segment: Segment, first: int, last: int) -> Segment:
    """The segment of some of a segment's words.

    Args:
        segment: a segment with words.
        first: number of the first word.
        last: number after the last word.
    """
    words = segment.words[first:last]
    if len(words) == len(segment.words):
        return segment
    places = word_spans(segment.text, [word.word for word in segment.words])
    if places is None:
        text = " ".join(word.word for word in words)
    else:
        begin = places[first][0] if first else 0
        text = segment.text[begin : places[last][0] if last < len(places) else len(segment.text)].strip()
    start = segment.start if first == 0 else words[0].start
    end = segment.end if last == len(segment.words) else words[-1].end
    return replace(segment, start=start, end=end, text=text, words=words)


def _repeated(neighbours: Sequence[Word], words: Sequence[Word], voicing: Voicing) -> int:
    """The number of first words that repeat the last neighbours, and are not spoken twice."""
    texts = [_bare(word.word) for word in words]
    for count in range(min(len(neighbours), len(words)), 0, -1):
        same = neighbours[-count:]
        if _alike([_bare(word.word) for word in same], texts[:count]):
            heard = sum(voicing.seconds(word.start, word.end) for word in same)
            twice = count == len(words) and heard >= VOICED_PART * sum(word.end - word.start for word in same)
            return 0 if twice else count
    return 0


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two texts of equal length are the same; long ones up to some words that were heard differently."""
    if len(one) < FEW_WORDS:
        return one == other
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() >= ALIKE


def _bare(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
