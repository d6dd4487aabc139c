"""The output formats srt, vtt, txt, tsv, json and aud. A function for each format renders a Transcript.

Without options, the text (as UTF-8) has the same bytes as the output of whisperx 3.8 for the same segments, json
included. The output differs in these cases, in which whisperx fails:

- The spaces between words are those of the segment's text. whisperx joins Latin words in a Chinese or Japanese text
  without a space, and has no words for a translation or for Burmese, Cantonese, Lao and Thai.
- Every word, segment and subtitle lasts at least a millisecond and does not overlap another.
- A segment without words among segments with words becomes a subtitle with the segment's text and times.
- A line of more than 1000 characters is not broken.
- For the task ``detect_language``, txt is one line with the code and the probability of the language.

:mod:`whisper_api.subtitles` describes the effect of the options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from msgspec.structs import asdict, replace

from whisper_api.errors import InvalidOption
from whisper_api.schema import RenderOptions, Segment, Transcript, Word
from whisper_api.subtitles import Cue, Subtitle, speaker_label, subtitles
from whisper_api.time_order import in_order

__all__ = [
    "FORMATS",
    "Format",
    "RenderOptions",
    "Rendered",
    "SubtitleFormat",
    "has_subtitles",
    "option_warnings",
    "render",
    "rendered",
    "to_whisperx",
]

PLAIN = RenderOptions()


class Format(NamedTuple):
    """An output format that shows the whole transcript.

    Attributes:
        name: the name in requests and flags.
        extension: the file extension, without the dot.
        media_type: the media type, without parameters; the text is UTF-8.
        write: the function that returns the text.
    """

    name: str
    extension: str
    media_type: str
    write: Callable[[Transcript], str]


class SubtitleFormat(NamedTuple):
    """An output format that shows the subtitles of a transcript.

    Attributes:
        name, extension, media_type: as in :class:`Format`.
        write: the function that returns the text.
    """

    name: str
    extension: str
    media_type: str
    write: Callable[[Sequence[Cue], RenderOptions], str]


class Rendered(NamedTuple):
    """A transcript in a format.

    Attributes:
        text: the content of the file.
        warnings: a sentence for each layout option without effect, and for each rule that does not hold everywhere.
    """

    text: str
    warnings: tuple[str, ...]


def render(transcript: Transcript, format: str, options: RenderOptions = PLAIN) -> str:
    """Write a transcript in a format.

    Args:
        transcript: the transcript to write.
        format: a name in :data:`FORMATS`.
        options: the layout of subtitles.

    Returns:
        The content of the file.

    Raises:
        InvalidOption: there is no such format.
    """
    return rendered(transcript, format, options).text


def rendered(transcript: Transcript, format: str, options: RenderOptions = PLAIN) -> Rendered:
    """As :func:`render`, with the warnings about the layout.

    Args:
        transcript: the transcript to write.
        format: a name in :data:`FORMATS`.
        options: the layout of subtitles.

    Raises:
        InvalidOption: there is no such format.
    """
    try:
        chosen = FORMATS[format]
    except KeyError:
        raise InvalidOption("format", f"unknown format {format!r}; valid are {', '.join(FORMATS)}") from None
    transcript = replace(transcript, segments=in_order(transcript.segments))
    without_effect = option_warnings(options, format)
    if not isinstance(chosen, SubtitleFormat):
        return Rendered(chosen.write(transcript), without_effect)
    cues, broken = subtitles(transcript, options)
    return Rendered(chosen.write(cues, options), (*without_effect, *broken))


def has_subtitles(format: str) -> bool:
    """Whether a format shows subtitles, which the layout options change."""
    return isinstance(FORMATS.get(format), SubtitleFormat)


def option_warnings(options: RenderOptions, format: str) -> tuple[str, ...]:
    """A warning for each layout option that has no effect.

    Args:
        options: the layout options of the request.
        format: a name in :data:`FORMATS`, or a response format of OpenAI.
    """
    names = [name for name, value in asdict(options).items() if value not in (None, False)]
    if names and not has_subtitles(format):
        return (f"{', '.join(names)}: only subtitles have a layout; {format} is without it",)
    if options.max_line_count is not None and options.max_line_width is None and options.subtitle_preset is None:
        return ("max_line_count has no effect without max_line_width",)
    return ()


def to_whisperx(transcript: Transcript) -> dict[str, Any]:
    """The transcript as a dictionary with the keys of whisperx 3.8 in the same order.

    ``words``, ``word_segments``, ``score``, ``speaker``, ``avg_logprob`` and ``speaker_embeddings`` are absent when
    they have no value.
    """
    has_words = transcript.word_times != "none" or any(segment.words for segment in transcript.segments)
    result: dict[str, Any] = {"segments": [_segment_dict(segment, has_words) for segment in transcript.segments]}
    if not has_words:
        result["language"] = transcript.language
    else:
        result["word_segments"] = [_word_dict(word) for word in transcript.words]
    if transcript.speaker_embeddings is not None:
        result["speaker_embeddings"] = {label: list(vector) for label, vector in transcript.speaker_embeddings.items()}
    if has_words:
        result["language"] = transcript.language
    return result


def _segment_dict(segment: Segment, has_words: bool) -> dict[str, Any]:
    times = {"start": segment.start, "end": segment.end}
    text = {"text": segment.text}
    given: dict[str, Any] = times | text if has_words else text | times
    if segment.words:
        given["words"] = [_word_dict(word) for word in segment.words]
    if segment.avg_logprob is not None:
        given["avg_logprob"] = segment.avg_logprob
    if segment.speaker is not None:
        given["speaker"] = segment.speaker
    return given


def _word_dict(word: Word) -> dict[str, Any]:
    given: dict[str, Any] = {"word": word.word, "start": word.start, "end": word.end}
    if word.score is not None:
        given["score"] = word.score
    if word.speaker is not None:
        given["speaker"] = word.speaker
    return given


def _txt(transcript: Transcript) -> str:
    if transcript.language_probabilities is not None:
        # The task detect_language has no text.
        probability = transcript.language_probability
        return f"{transcript.language}\n" if probability is None else f"{transcript.language} {probability:.2f}\n"
    return "".join(f"{speaker_label(segment.speaker)}{segment.text.strip()}\n" for segment in transcript.segments)


def _tsv(transcript: Transcript) -> str:
    rows = ["start\tend\ttext\n"]
    rows += [
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{_without_tabs(segment)}\n"
        for segment in transcript.segments
    ]
    return "".join(rows)


def _aud(transcript: Transcript) -> str:
    return "".join(
        f"{segment.start}\t{segment.end}\t"
        f"{'' if segment.speaker is None else f'[[{segment.speaker}]]'}{_without_tabs(segment)}\n"
        for segment in transcript.segments
    )


def _json(transcript: Transcript) -> str:
    return json.dumps(to_whisperx(transcript), ensure_ascii=False)


def _srt(cues: Sequence[Cue], options: RenderOptions) -> str:
    shown = enumerate(_texts(cues, options), start=1)
    return "".join(f"{n}\n{_srt_time(start)} --> {_srt_time(end)}\n{text}\n\n" for n, (start, end, text) in shown)


def _vtt(cues: Sequence[Cue], options: RenderOptions) -> str:
    shown = _texts(cues, options)
    return "WEBVTT\n\n" + "".join(f"{_vtt_time(start)} --> {_vtt_time(end)}\n{text}\n\n" for start, end, text in shown)


def _texts(cues: Sequence[Cue], options: RenderOptions) -> Iterator[Subtitle]:
    for cue in cues:
        if options.highlight_words:
            yield from cue.highlighted()
        else:
            yield Subtitle(cue.start, cue.end, cue.text())


def _without_tabs(segment: Segment) -> str:
    return segment.text.strip().replace("\t", " ")


def _clock(seconds: float) -> tuple[int, int, int, int]:
    rest, milliseconds = divmod(max(0, round(seconds * 1000.0)), 1000)
    rest, whole_seconds = divmod(rest, 60)
    hours, minutes = divmod(rest, 60)
    return hours, minutes, whole_seconds, milliseconds


def _srt_time(seconds: float) -> str:
    return "{:02d}:{:02d}:{:02d},{:03d}".format(*_clock(seconds))


def _vtt_time(seconds: float) -> str:
    hours, *rest = _clock(seconds)
    return (f"{hours:02d}:" if hours else "") + "{:02d}:{:02d}.{:03d}".format(*rest)


FORMATS: dict[str, Format | SubtitleFormat] = {
    format.name: format
    for format in (
        SubtitleFormat("srt", "srt", "application/x-subrip", _srt),
        SubtitleFormat("vtt", "vtt", "text/vtt", _vtt),
        Format("txt", "txt", "text/plain", _txt),
        Format("tsv", "tsv", "text/tab-separated-values", _tsv),
        Format("json", "json", "application/json", _json),
        Format("aud", "aud", "text/plain", _aud),
    )
}
