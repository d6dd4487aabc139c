"""The formats a transcript can be written in: srt, vtt, txt, tsv, json and aud, each a function of a Transcript.

The text is byte for byte (as UTF-8) what the writers of whisperx 3.8 give for the same segments, json included. Where
those writers fail, this is given instead:

- A segment without words among segments with words is a subtitle of its own, with the segment's text and times.
- A time before zero counts as zero in subtitles.
- The words of a translation, which are English, have spaces between them whatever language is spoken, and those of
  Burmese, Cantonese, Lao and Thai have none: whisperx has no words for these.
- Where only the language was asked for, txt is one line: its code and its probability.

One thing of theirs is worth knowing: when the first segment has no words, every segment is one subtitle, and the
options for lines and highlighting have no effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from whisper_api.errors import InvalidOption
from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment, Transcript, Word

__all__ = ["FORMATS", "Format", "RenderOptions", "render", "to_whisperx"]

UNBOUNDED_LINE = 1000  # characters; whisperx's bound where none is asked for
LONG_PAUSE = 3.0  # seconds after which a subtitle ends, when lines are counted


class RenderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How subtitles (srt, vtt) are laid out. All three need word times and have no effect without them.

    Attributes:
        max_line_width: characters in a line; longer lines are broken between words.
        max_line_count: lines in a subtitle. With ``max_line_width``, subtitles no longer end where segments do.
        highlight_words: one subtitle for each word, which is underlined in it.
    """

    max_line_width: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="most characters in a line of subtitles")
    ] = None
    max_line_count: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="most lines in a subtitle; needs max_line_width")
    ] = None
    highlight_words: Annotated[bool, Meta(description="underline each word of the subtitles as it is spoken")] = False


PLAIN = RenderOptions()


class Format(NamedTuple):
    """One output format.

    Attributes:
        name: the word that asks for it.
        extension: of its files, without the dot.
        media_type: without parameters; the text is UTF-8.
        render: gives the text.
    """

    name: str
    extension: str
    media_type: str
    render: Callable[[Transcript, RenderOptions], str]


def render(transcript: Transcript, format: str, options: RenderOptions = PLAIN) -> str:
    """Write a transcript in a format.

    Args:
        transcript: what a transcription gave.
        format: a name in :data:`FORMATS`.
        options: the layout of subtitles.

    Raises:
        InvalidOption: there is no such format.
    """
    try:
        chosen = FORMATS[format]
    except KeyError:
        raise InvalidOption("format", f"unknown format {format!r}; valid are {', '.join(FORMATS)}") from None
    return chosen.render(transcript, options)


def to_whisperx(transcript: Transcript) -> dict[str, Any]:
    """The transcript as the dictionary that whisperx 3.8 makes, with its keys in its order.

    ``words``, ``word_segments``, ``score``, ``speaker``, ``avg_logprob`` and ``speaker_embeddings`` are left out where
    there are none.
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


def _txt(transcript: Transcript, options: RenderOptions) -> str:
    if transcript.language_probabilities is not None:
        # Of a recording whose language alone was asked for, there is nothing else to say.
        probability = transcript.language_probability
        return f"{transcript.language}\n" if probability is None else f"{transcript.language} {probability:.2f}\n"
    return "".join(f"{_prefix(segment.speaker)}{segment.text.strip()}\n" for segment in transcript.segments)


def _tsv(transcript: Transcript, options: RenderOptions) -> str:
    rows = ["start\tend\ttext\n"]
    rows += [
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{_without_tabs(segment)}\n"
        for segment in transcript.segments
    ]
    return "".join(rows)


def _aud(transcript: Transcript, options: RenderOptions) -> str:
    return "".join(
        f"{segment.start}\t{segment.end}\t"
        f"{'' if segment.speaker is None else f'[[{segment.speaker}]]'}{_without_tabs(segment)}\n"
        for segment in transcript.segments
    )


def _json(transcript: Transcript, options: RenderOptions) -> str:
    return json.dumps(to_whisperx(transcript), ensure_ascii=False)


def _srt(transcript: Transcript, options: RenderOptions) -> str:
    cues = enumerate(_subtitles(transcript, options, _srt_time), start=1)
    return "".join(f"{number}\n{start} --> {end}\n{text}\n\n" for number, (start, end, text) in cues)


def _vtt(transcript: Transcript, options: RenderOptions) -> str:
    cues = _subtitles(transcript, options, _vtt_time)
    return "WEBVTT\n\n" + "".join(f"{start} --> {end}\n{text}\n\n" for start, end, text in cues)


def _prefix(speaker: str | None) -> str:
    return "" if speaker is None else f"[{speaker}]: "


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


class _Cue(NamedTuple):
    """Words that stand in one subtitle: each as it is shown, with the time it is spoken."""

    speaker: str | None
    pieces: list[str]
    words: list[Word]


def _subtitles(
    transcript: Transcript, options: RenderOptions, time: Callable[[float], str]
) -> Iterator[tuple[str, str, str]]:
    """Start, end and text of each subtitle."""
    segments = transcript.segments
    if not segments or not segments[0].words:
        for segment in segments:
            yield _whole(segment, time)
        return
    written = transcript.options.written_language(transcript.language)
    space = "" if written in LANGUAGES_WITHOUT_SPACES else " "
    for cue in _cues(segments, options):
        if isinstance(cue, Segment):
            yield _whole(cue, time)
            continue
        prefix = _prefix(cue.speaker)
        text = prefix + space.join(cue.pieces)
        if not options.highlight_words:
            yield time(min(word.start for word in cue.words)), time(max(word.end for word in cue.words)), text
            continue
        until = time(min(word.start for word in cue.words))
        for index, word in enumerate(cue.words):
            start, end = time(word.start), time(word.end)
            if until != start:
                yield until, start, text
            marked = [*cue.pieces[:index], _underlined(cue.pieces[index]), *cue.pieces[index + 1 :]]
            yield start, end, prefix + " ".join(marked)
            until = end


def _whole(segment: Segment, time: Callable[[float], str]) -> tuple[str, str, str]:
    text = segment.text.strip().replace("-->", "->")
    return time(segment.start), time(segment.end), _prefix(segment.speaker) + text


def _cues(segments: tuple[Segment, ...], options: RenderOptions) -> Iterator[_Cue | Segment]:
    """Words gathered into subtitles; a segment without words as it is."""
    width = options.max_line_width or UNBOUNDED_LINE
    across_segments = options.max_line_width is not None and options.max_line_count is not None
    cue: _Cue | None = None
    length, lines = 0, 1
    before = segments[0].start
    for segment in segments:
        if not segment.words:
            if cue:
                yield cue
            yield segment
            cue, length, lines = None, 0, 1
            before = segment.end
        for index, word in enumerate(segment.words):
            pause = across_segments and word.start - before > LONG_PAUSE
            ends = cue is not None and index == 0 and not across_segments
            before = word.start
            piece = word.word
            if length > 0 and length + len(piece) <= width and not pause and not ends:
                length += len(piece)
            else:
                piece = piece.strip()
                full = options.max_line_count is not None and (pause or lines >= options.max_line_count)
                if cue and (ends or full):
                    yield cue
                    cue, lines = None, 1
                elif length > 0:
                    lines += 1
                    piece = "\n" + piece
                length = len(piece.strip())
            if cue is None:
                cue = _Cue(segment.speaker, [], [])
            cue.pieces.append(piece)
            cue.words.append(word)
    if cue:
        yield cue


def _underlined(piece: str) -> str:
    # A piece with a line break inside is left as it is, one that begins with one is not.
    return re.sub(r"\A(\s*)(.*)$", r"\1<u>\2</u>", piece)


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format("srt", "srt", "application/x-subrip", _srt),
        Format("vtt", "vtt", "text/vtt", _vtt),
        Format("txt", "txt", "text/plain", _txt),
        Format("tsv", "tsv", "text/tab-separated-values", _tsv),
        Format("json", "json", "application/json", _json),
        Format("aud", "aud", "text/plain", _aud),
    )
}
