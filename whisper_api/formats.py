"""The output formats. A function for each format renders a Transcript. Formats are texts; documents are bytes.

Without options, srt, vtt, txt, tsv, json and aud (as UTF-8) have the same bytes as the output of whisperx 3.8 for the
same segments. The output differs in these cases, in which whisperx fails:

- The spaces between words are those of the segment's text. whisperx joins Latin words in a Chinese or Japanese text
  without a space, and has no words for a translation or for Burmese, Cantonese, Lao and Thai.
- Every word, segment and subtitle lasts at least a millisecond and does not overlap another of the same channel.
- A segment without words among segments with words becomes a subtitle with the segment's text and times.
- A line of more than 1000 characters is not broken.
- With the option ``language`` as ``multi``, the segments of json have a ``language``.
- For the task ``detect_language``, txt is one line with the code and the probability of the language.
- For the task ``diarize``, txt and md have a line for each turn, json has the key ``turns``, and the text of the other
  formats is the labels of those who speak.

:mod:`whisper_api.subtitles` describes the effect of the options.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgspec import to_builtins
from msgspec.structs import asdict, replace

from whisper_api.errors import InvalidOption
from whisper_api.options import RenderOptions
from whisper_api.reading import docx, markdown
from whisper_api.schema import HALLUCINATION, Segment, Transcript, Turn, Word
from whisper_api.speaker_turns import rttm, turn_lines, turn_segments
from whisper_api.subtitles import Cue, ass, cues_json, speaker_label, srt, subtitles, vtt
from whisper_api.subtitles.rules import rules_of
from whisper_api.time_order import in_order

PLAIN = RenderOptions()
# Formats with tags for speakers and for the times of words.
TAGGED = ("vtt", "ass")
# Formats that show the turns themselves for the task diarize.
TURN_FORMATS = frozenset(("json", "md", "rttm", "txt"))
TURN_PAUSE = 0.5  # seconds of silence that do not end a turn of RTTM


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


class Document(NamedTuple):
    """An output format whose file is not text.

    Attributes:
        name, extension, media_type: as in :class:`Format`.
        write: the function that returns the bytes of the file.
    """

    name: str
    extension: str
    media_type: str
    write: Callable[[Transcript], bytes]


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
        if format in DOCUMENTS:
            raise InvalidOption("format", f"{format} is a file that is no text: document() writes it") from None
        raise InvalidOption("format", f"unknown format {format!r}; valid are {', '.join(FORMATS)}") from None
    of_turns = transcript.options.task == "diarize" and format not in TURN_FORMATS
    segments = turn_segments(transcript.turns) if of_turns else transcript.segments
    transcript = replace(transcript, segments=in_order(segments))
    warnings = option_warnings(options, format)
    if not isinstance(chosen, SubtitleFormat):
        text = chosen.write(transcript)
        if format == "rttm" and not text:
            warnings = (*warnings, "rttm is empty, since no speakers were told apart")
        return Rendered(text, warnings)
    options = _for_format(options, format)
    cues, broken = subtitles(transcript, options)
    return Rendered(chosen.write(cues, options), (*warnings, *broken))


def document(transcript: Transcript, format: str = "docx") -> bytes:
    """Write a transcript as a document.

    Args:
        transcript: the transcript to write.
        format: a name in :data:`DOCUMENTS`.

    Returns:
        The bytes of the file.

    Raises:
        InvalidOption: there is no such document.
    """
    if format not in DOCUMENTS:
        raise InvalidOption("format", f"unknown document {format!r}; valid are {', '.join(DOCUMENTS)}")
    segments = turn_segments(transcript.turns) if transcript.options.task == "diarize" else transcript.segments
    return DOCUMENTS[format].write(replace(transcript, segments=in_order(segments)))


def _for_format(options: RenderOptions, format: str) -> RenderOptions:
    """The options with the marks of speakers that the format has."""
    if format not in TAGGED and options.speakers == "voice":
        return replace(options, speakers="label")
    if format == "ass" and options.speakers is None and options.subtitle_preset is None:
        return replace(options, speakers="voice")
    return options


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
    warnings = []
    if options.max_line_count is not None and options.max_line_width is None and options.subtitle_preset is None:
        warnings.append("max_line_count has no effect without max_line_width")
    if options.speakers == "dash" and has_subtitles(format) and not rules_of(options, "").two_speakers:
        warnings.append("speakers: dash has no effect without max_line_width and a max_line_count of 2 or more")
    if has_subtitles(format) and format not in TAGGED:
        if options.karaoke:
            warnings.append(f"karaoke: {format} has no times inside a subtitle; {' and '.join(TAGGED)} have")
        if options.speakers == "voice":
            warnings.append(f"speakers: {format} has no voices, but labels; {' and '.join(TAGGED)} have")
    return tuple(warnings)


def to_whisperx(transcript: Transcript) -> dict[str, Any]:
    """The transcript as a dictionary with the keys of whisperx 3.8 in the same order.

    ``words``, ``word_segments``, ``score``, ``speaker``, ``avg_logprob`` and ``speaker_embeddings`` are absent when
    they have no value; so is ``channel``, which whisperx does not have. ``flags``, which it does not have either, is
    only in segments that are flagged as invented. Only the task ``diarize`` has ``turns``.
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
    if transcript.options.task == "diarize":
        result["turns"] = [to_builtins(turn) for turn in transcript.turns]
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
    if segment.channel is not None:
        given["channel"] = segment.channel
    if HALLUCINATION in segment.flags:
        given["flags"] = list(segment.flags)
    if segment.language is not None:
        given["language"] = segment.language
    return given


def _word_dict(word: Word) -> dict[str, Any]:
    given: dict[str, Any] = {"word": word.word, "start": word.start, "end": word.end}
    if word.score is not None:
        given["score"] = word.score
    if word.speaker is not None:
        given["speaker"] = word.speaker
    if word.channel is not None:
        given["channel"] = word.channel
    return given


def _txt(transcript: Transcript) -> str:
    if transcript.language_probabilities is not None:
        # The task detect_language has no text.
        probability = transcript.language_probability
        return f"{transcript.language}\n" if probability is None else f"{transcript.language} {probability:.2f}\n"
    if transcript.options.task == "diarize":
        return turn_lines(transcript.turns)
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


def _without_tabs(segment: Segment) -> str:
    return segment.text.strip().replace("\t", " ")


def _markdown(transcript: Transcript) -> str:
    if transcript.language_probabilities is not None or transcript.options.task == "diarize":
        return _txt(transcript)
    return markdown(transcript)


def _rttm(transcript: Transcript) -> str:
    """The turns of the speakers as SPEAKER lines of NIST's Rich Transcription Time Marked format.

    The file is named ``audio``. Its channels are counted from 1, and the mix is channel 1. A transcript of an older
    version has no turns: words of the same speaker with a short pause between them are one.
    """
    if transcript.turns:
        return rttm(transcript.turns)
    channels = dict.fromkeys(segment.channel for segment in transcript.segments)
    turns = [turn for channel in channels for turn in _turns(transcript.segments, channel)]
    return rttm(sorted(turns, key=lambda turn: turn.start) if len(channels) > 1 else turns)


def _turns(segments: Sequence[Segment], channel: int | None) -> list[Turn]:
    """The turns of the words on a channel."""
    turns: list[Turn] = []
    for segment in segments:
        for item in (segment.words or (segment,)) if segment.channel == channel else ():
            speaker = item.speaker or segment.speaker
            if speaker is None:
                continue
            if turns and turns[-1].speaker == speaker and item.start - turns[-1].end <= TURN_PAUSE:
                turns[-1] = replace(turns[-1], end=item.end)
            else:
                turns.append(Turn(item.start, item.end, speaker, channel))
    return turns


FORMATS: dict[str, Format | SubtitleFormat] = {
    format.name: format
    for format in (
        SubtitleFormat("srt", "srt", "application/x-subrip", srt),
        SubtitleFormat("vtt", "vtt", "text/vtt", vtt),
        Format("txt", "txt", "text/plain", _txt),
        Format("tsv", "tsv", "text/tab-separated-values", _tsv),
        Format("json", "json", "application/json", _json),
        Format("aud", "aud", "text/plain", _aud),
        SubtitleFormat("ass", "ass", "text/x-ssa", ass),
        Format("md", "md", "text/markdown", _markdown),
        SubtitleFormat("cues", "cues.json", "application/json", cues_json),
        Format("rttm", "rttm", "text/plain", _rttm),
    )
}

DOCUMENTS: dict[str, Document] = {
    "docx": Document("docx", "docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", docx),
}
