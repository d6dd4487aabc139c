"""The subtitle formats: SubRip (srt), WebVTT (vtt), Advanced SubStation Alpha (ass), and JSON for programs (cues)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from whisper_api.options import RenderOptions
from whisper_api.subtitles.cue import Cue, Line, Subtitle
from whisper_api.subtitles.rules import needs_layout

# The colours by which broadcasters tell speakers apart, in the order of blue, green and red that the format has.
ASS_COLOURS = ("FFFFFF", "00FFFF", "FFFF00", "00FF00")
ASS_HEAD = """[Script Info]
ScriptType: v4.00+
PlayResX: 1920
PlayResY: 1080
WrapStyle: 0
ScaledBorderAndShadow: yes

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
"""
ASS_STYLE = (
    "Style: {name},Arial,60,&H00{colour},&H00808080,&H00000000,&H80000000,0,0,0,0,100,100,0,0,1,3,1,2,90,90,60,1\n"
)
ASS_EVENTS = """
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def clock(seconds: float) -> tuple[int, int, int, int]:
    """Hours, minutes, seconds and milliseconds; a time before zero counts as zero."""
    rest, milliseconds = divmod(max(0, round(seconds * 1000.0)), 1000)
    rest, whole_seconds = divmod(rest, 60)
    hours, minutes = divmod(rest, 60)
    return hours, minutes, whole_seconds, milliseconds


def srt(cues: Sequence[Cue], options: RenderOptions) -> str:
    """The text of a SubRip file; ``options`` asks for highlighting."""
    shown = enumerate(_texts(cues, options), start=1)
    return "".join(f"{n}\n{_srt_time(start)} --> {_srt_time(end)}\n{text}\n\n" for n, (start, end, text) in shown)


def cues_json(cues: Sequence[Cue], options: RenderOptions) -> str:
    """The subtitles as JSON, for programs that show or edit them.

    Args:
        cues: the subtitles.
        options: has no effect; every word has its times.

    Returns:
        An object whose ``cues`` have ``start`` and ``end`` in seconds, ``lines``, ``speakers``, ``broken`` (names of
        the rules that do not hold) and, with separate channels, ``channel``. A line has a ``mark`` (the label or the
        dash) and ``words``; a word has ``text``, ``space`` (whether one precedes), ``start``, ``end``, and its
        ``segment`` and ``word`` in the transcript.
    """
    return json.dumps({"cues": [_cue_dict(cue) for cue in cues]}, ensure_ascii=False)


def _cue_dict(cue: Cue) -> dict[str, Any]:
    lines = [
        {
            "mark": line.mark,
            "words": [
                {
                    "text": word.text.strip(),
                    "space": word.space or word.text[:1].isspace(),
                    "start": round(word.start, 3),
                    "end": round(word.end, 3),
                    **word.source._asdict(),
                }
                for word in line.words
            ],
        }
        for line in cue.lines
    ]
    return {
        "start": round(cue.start, 3),
        "end": round(cue.end, 3),
        "lines": lines,
        "speakers": cue.speakers,
        "broken": cue.broken,
        **({} if cue.channel is None else {"channel": cue.channel}),
    }


def vtt(cues: Sequence[Cue], options: RenderOptions) -> str:
    """The text of a WebVTT file (https://www.w3.org/TR/webvtt1/).

    Args:
        cues: the subtitles.
        options: ask for highlighting, for times inside a subtitle and for voices. With any option, characters with a
            meaning in WebVTT are escaped; without, the text is that of whisperx.
    """
    if needs_layout(options):
        cues = [_vtt_escaped_cue(cue) for cue in cues]
    if options.karaoke or options.speakers == "voice":
        shown: Iterator[Subtitle] = (_vtt_cue(cue, options) for cue in cues)
    else:
        shown = _texts(cues, options)
    return "WEBVTT\n\n" + "".join(f"{_vtt_time(start)} --> {_vtt_time(end)}\n{text}\n\n" for start, end, text in shown)


def ass(cues: Sequence[Cue], options: RenderOptions) -> str:
    r"""The text of an Advanced SubStation Alpha file, with a style for each speaker and the speaker as Name.

    Args:
        cues: the subtitles.
        options: ask for words that are highlighted as they are spoken (``\k``).
    """
    speakers = dict.fromkeys(speaker for cue in cues for speaker in cue.speakers if speaker is not None)
    styles = {speaker: f"Speaker {number}" for number, speaker in enumerate(speakers, start=1)}
    text = [ASS_HEAD, ASS_STYLE.format(name="Default", colour=ASS_COLOURS[0])]
    for number, style in enumerate(styles.values()):
        text.append(ASS_STYLE.format(name=style, colour=ASS_COLOURS[number % len(ASS_COLOURS)]))
    text.append(ASS_EVENTS)
    ends: dict[int | None, int] = {}
    events: list[tuple[int, str]] = []
    for cue in cues:
        # The format's times are hundredths of a second.
        start = max(ends.get(cue.channel, 0), _hundredths(cue.start))
        until = ends[cue.channel] = max(start + 1, _hundredths(cue.end))
        named = [speaker for speaker in cue.speakers if speaker is not None]
        style = styles[named[0]] if len(named) == 1 else "Default"
        name = " & ".join(" ".join(each.split()) for each in named).replace(",", ";")
        shown = _ass_karaoke(cue, start) if options.karaoke or options.highlight_words else _ass_text(cue.text())
        event = f"Dialogue: 0,{_ass_time(start)},{_ass_time(until)},{style},{name},0,0,0,,{shown}\n"
        events.append((start, event))
    # A subtitle that was moved behind the one before may begin after one of another channel.
    events.sort(key=lambda event: event[0])
    return "".join((*text, *(event for _, event in events)))


def _texts(cues: Sequence[Cue], options: RenderOptions) -> Iterator[Subtitle]:
    if not options.highlight_words:
        texts = (Subtitle(cue.start, cue.end, cue.text()) for cue in cues)
        # Two words may make an arrow, which players take for the times of a subtitle. whisperx writes it.
        if not needs_layout(options):
            return texts
        return (each._replace(text=each.text.replace("-->", "->")) for each in texts)
    highlighted = (subtitle for cue in cues for subtitle in cue.highlighted())
    # The words of people on different channels alternate.
    several = len({cue.channel for cue in cues}) > 1
    return iter(sorted(highlighted, key=lambda subtitle: subtitle.start)) if several else highlighted


def _vtt_cue(cue: Cue, options: RenderOptions) -> Subtitle:
    shown = []
    earlier = round(1000 * cue.start)
    for (before, text), (start, _) in zip(cue.pieces(), cue.word_times(), strict=True):
        # A time inside a cue must be later than the cue's start and every time before.
        timed = options.karaoke and round(1000 * start) > earlier
        earlier = max(earlier, round(1000 * start))
        shown.append(before + (f"<{_vtt_time(start)}>" if timed else "") + text)
    whole = "".join(shown)
    if options.speakers == "voice" and cue.speakers[0] is not None:
        whole = f"<v {_vtt_escaped(' '.join(cue.speakers[0].split()))}>{whole}"
    return Subtitle(cue.start, cue.end, whole)


def _vtt_escaped_cue(cue: Cue) -> Cue:
    lines = [
        Line(_vtt_escaped(line.mark), tuple(word._replace(text=_vtt_escaped(word.text)) for word in line.words))
        for line in cue.lines
    ]
    return cue._replace(lines=tuple(lines))


def _vtt_escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _ass_karaoke(cue: Cue, start: int) -> str:
    shown = []
    until = start
    for (before, text), (begin, end) in zip(cue.pieces(), cue.word_times(), strict=True):
        pause = max(0, _hundredths(begin) - until)
        length = max(0, _hundredths(end) - until - pause)
        until += pause + length
        shown.append((rf"{{\k{pause}}}" if pause else "") + rf"{_ass_text(before)}{{\k{length}}}{_ass_text(text)}")
    return "".join(shown)


def _ass_text(text: str) -> str:
    r"""Escape the braces of tags and the backslash of ``\N``, which a word joiner separates from the next letter."""
    text = text.replace("\\", "\\\u2060").replace("{", r"\{").replace("}", r"\}")
    return text.replace("\n", r"\N")


def _hundredths(seconds: float) -> int:
    return max(0, round(100 * seconds))


def _ass_time(hundredths: int) -> str:
    hours, minutes, seconds, milliseconds = clock(hundredths / 100)
    return f"{hours}:{minutes:02d}:{seconds:02d}.{milliseconds // 10:02d}"


def _srt_time(seconds: float) -> str:
    return "{:02d}:{:02d}:{:02d},{:03d}".format(*clock(seconds))


def _vtt_time(seconds: float) -> str:
    hours, *rest = clock(seconds)
    return (f"{hours:02d}:" if hours else "") + "{:02d}:{:02d}.{:03d}".format(*rest)
