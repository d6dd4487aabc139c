"""The subtitles of a transcript, and the warnings about rules that do not hold."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from whisper_api.options import RenderOptions
from whisper_api.schema import Segment, Transcript
from whisper_api.subtitles.cells import cells_of, display_width
from whisper_api.subtitles.cue import Cue, CueWord, Line, Source
from whisper_api.subtitles.layout import lay_out, speaker_label
from whisper_api.subtitles.rules import Rules, needs_layout, rules_of
from whisper_api.word_spacing import pieces

# A time in milliseconds may be rounded up or down.
ROUNDING = 1


class LaidOut(NamedTuple):
    """The subtitles of a transcript.

    Attributes:
        cues: in order of their start; those of one channel do not overlap, and each lasts at least a millisecond.
        warnings: a sentence for each rule that does not hold everywhere.
    """

    cues: list[Cue]
    warnings: tuple[str, ...]


def subtitles(transcript: Transcript, options: RenderOptions) -> LaidOut:
    """Lay out a transcript.

    Args:
        transcript: with or without word times; its segments come from :func:`~whisper_api.time_order.in_order`.
        options: the layout.
    """
    language = transcript.options.written_language(transcript.language)
    segments = transcript.segments
    channels = list(dict.fromkeys(segment.channel for segment in segments))
    if not needs_layout(options):
        plain = list(_plain(segments, language))
        # A segment may begin before its first word.
        return LaidOut(sorted(plain, key=lambda cue: cue.start) if len(channels) > 1 else plain, ())
    rules = rules_of(options, language)
    cues: list[Cue] = []
    for channel in channels:
        own = [segment for segment in segments if segment.channel == channel]
        laid_out = lay_out(cells_of(own, language, _room(own, rules)), rules, language, transcript.duration)
        cues += [cue._replace(channel=channel) for cue in laid_out]
    if len(channels) > 1:
        cues = list(_merged(cues, rules))
    cues, warnings = _judged(cues, rules)
    if (options.highlight_words or options.karaoke or rules.splits) and any(not segment.words for segment in segments):
        warnings.append(
            "the subtitles' times are estimated from the length of the words, since there are no word times"
        )
    return LaidOut(cues, tuple(warnings))


def _room(segments: Sequence[Segment], rules: Rules) -> int | None:
    """The printed characters of a line beside the longest label; None for any number."""
    if rules.width is None or rules.speakers != "label":
        return rules.width
    return rules.width - max((display_width(speaker_label(segment.speaker)) for segment in segments), default=0)


def _plain(segments: Sequence[Segment], language: str) -> Iterator[Cue]:
    # whisperx, too, decides by the first segment whether the transcript has words.
    worded = bool(segments and segments[0].words)
    for segment in segments:
        if worded and segment.words:
            texts = pieces(segment, segment.language or language)
            words = tuple(
                CueWord(text, False, word.start, word.end, Source(segment.id, index))
                for index, (text, word) in enumerate(zip(texts, segment.words, strict=True))
            )
        else:
            text = segment.text.strip().replace("-->", "->")
            words = (CueWord(text, False, segment.start, segment.end, Source(segment.id, None)),)
        line = Line(speaker_label(segment.speaker), words)
        yield Cue(words[0].start, words[-1].end, (line,), (segment.speaker,), channel=segment.channel)


def _merged(cues: Sequence[Cue], rules: Rules) -> Iterator[Cue]:
    """The subtitles of several channels in order. A subtitle is prolonged only until somebody else speaks."""
    ordered = sorted(cues, key=lambda cue: (cue.start, -1 if cue.channel is None else cue.channel))
    starts = [cue.start for cue in ordered]
    for cue in ordered:
        spoken = max((word.end for line in cue.lines for word in line.words), default=cue.end)
        following = bisect_left(starts, min(spoken, cue.end))
        if following < len(starts):
            latest = max(spoken, starts[following] - rules.gap / 1000)
            cue = cue._replace(end=min(cue.end, latest))
        yield cue


def _judged(cues: Sequence[Cue], rules: Rules) -> tuple[list[Cue], list[str]]:
    """The subtitles with the names of the rules that they break.

    Returns:
        The subtitles, and a sentence for each rule that does not hold everywhere: the rule, the number of subtitles,
        and the first.
    """
    judged: list[Cue] = []
    broken: dict[str, list[Cue]] = {}
    for cue, following in pairwise([*cues, None]):
        if cue is None:
            break
        sentences = list(_broken_by(cue, following, rules))
        names = dict.fromkeys(sentence.split(":")[0].replace(" ", "_") for sentence in sentences)
        judged.append(cue._replace(broken=tuple(names)) if names else cue)
        for sentence in sentences:
            broken.setdefault(sentence, []).append(cue)
    warnings = []
    for sentence, found in broken.items():
        minutes, seconds = divmod(found[0].start, 60)
        warnings.append(f"{sentence} in {len(found)} of {len(cues)} subtitles, first at {int(minutes)}:{seconds:06.3f}")
    return judged, warnings


def _broken_by(cue: Cue, following: Cue | None, rules: Rules) -> Iterator[str]:
    texts = [line.text() for line in cue.lines]
    length = round(1000 * cue.end) - round(1000 * cue.start)
    if rules.width is not None and any(display_width(text) > rules.width for text in texts):
        yield f"max_line_width: a word or a label is wider than {rules.width} characters"
    if rules.lines is not None and len(texts) > rules.lines:
        yield f"max_line_count: there are more than {rules.lines} lines"
    if length < rules.min_duration - ROUNDING:
        yield f"min_duration: the next speech comes before {rules.min_duration / 1000:g} seconds"
    if rules.max_duration is not None and length > rules.max_duration + ROUNDING:
        yield f"max_duration: more than {rules.max_duration / 1000:g} seconds"
    if rules.gap and following is not None and round(1000 * (following.start - cue.end)) < rules.gap - ROUNDING:
        yield f"min_gap: the next speech comes before {rules.gap / 1000:g} seconds"
    speed = rules.characters_per_second
    if speed is not None and 1000 * sum(map(display_width, texts)) > speed * (length + ROUNDING):
        yield f"max_characters_per_second: the speech is faster than {speed:g} characters a second"
    if rules.typography and cue.cut:
        yield "line breaks: a name, a number or an article is separated from its word"
    if rules.typography and cue.lonely:
        yield "line breaks: the last line has a single word"
