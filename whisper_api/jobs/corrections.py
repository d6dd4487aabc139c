"""Corrections of transcripts by people: checked against a transcript, and applied to it.

Segments and words keep their numbers of the recognised transcript when corrections remove some, so that a correction
always means the same word. The decoded tokens and their probabilities do not change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from whisper_api.errors import InvalidOption
from whisper_api.job_values import Correction, Corrections
from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment, Transcript, Word
from whisper_api.speaker_turns import joined_turns
from whisper_api.time_order import in_order
from whisper_api.word_spacing import word_spans

T = TypeVar("T")

ARROW = re.compile(r"--+>")
# An error message repeats this much of a wrong label.
SHOWN_CHARACTERS = 80


def checked(transcript: Transcript, corrections: Corrections) -> Corrections:
    """Corrections in the form in which they are stored: one for each word, in order, and only what differs.

    Args:
        transcript: the recognised transcript.
        corrections: the client's corrections.

    Raises:
        InvalidOption: the corrections name a segment, word or speaker that does not exist, or an empty name; or with
            the new times two words would overlap, or a word would end before it begins or after the audio.
    """
    segments = {segment.id: segment for segment in transcript.segments}
    words: dict[tuple[int, int], Correction] = {}
    for correction in corrections.words:
        changed = _changed(_recognised(segments, correction), correction)
        key = (correction.segment, -1 if correction.word is None else correction.word)
        words.pop(key, None)
        if changed is not None:
            words[key] = changed
    known = _labels(transcript)
    speakers = {}
    for label, name in corrections.speakers.items():
        if label not in known:
            raise InvalidOption("speakers", f"there is no speaker {label[:SHOWN_CHARACTERS]!r} in this transcript")
        if not (text := _in_one_line(name)):
            raise InvalidOption("speakers", f"the name of {label} is empty")
        if text != label:
            speakers[label] = text
    found = Corrections(words=tuple(words[key] for key in sorted(words)), speakers=speakers)
    if any(each.start is not None or each.end is not None for each in found.words):
        _check_times(applied(transcript, found))
    return found


def applied(transcript: Transcript, corrections: Corrections) -> Transcript:
    """The transcript with the corrections applied.

    An emptied segment is left out; the others keep their ids. Speakers with the same new name become one speaker, with
    the embedding of the speaker who spoke first.

    Args:
        transcript: the recognised transcript.
        corrections: corrections from :func:`checked` for this transcript.
    """
    by_segment: dict[int, dict[int, Correction]] = {}
    for each in corrections.words:
        by_segment.setdefault(each.segment, {})[-1 if each.word is None else each.word] = each
    names = corrections.speakers
    segments = []
    for segment in transcript.segments:
        changed = segment
        if segment.id in by_segment:
            space = "" if transcript.written_language(segment) in LANGUAGES_WITHOUT_SPACES else " "
            changed = _rewritten(segment, by_segment[segment.id], space)
            if not changed.text:
                continue
        segments.append(_renamed(changed, names) if names else changed)
    embeddings, scores = transcript.speaker_embeddings, transcript.speaker_scores
    turns = (replace(turn, speaker=names.get(turn.speaker, turn.speaker)) for turn in transcript.turns)
    return replace(
        transcript,
        segments=tuple(segments),
        speakers=tuple(dict.fromkeys(names.get(label, label) for label in transcript.speakers)),
        speaker_embeddings=None if embeddings is None else _keyed_anew(embeddings, names),
        speaker_scores=None if scores is None else _keyed_anew(scores, names),
        turns=joined_turns(turns) if names else transcript.turns,
    )


def _recognised(segments: Mapping[int, Segment], correction: Correction) -> Segment | Word:
    """The word, or the segment without words, that is corrected."""
    number, word = correction.segment, correction.word
    segment = segments.get(number)
    if segment is None:
        raise InvalidOption("words", f"there is no segment {number} in this transcript")
    if word is None:
        if segment.words:
            raise InvalidOption("words", f"segment {number} has words: say which of them, from 0")
        return segment
    if word >= len(segment.words):
        raise InvalidOption("words", f"segment {number} has no word {word}; it has {len(segment.words)}")
    return segment.words[word]


def _changed(recognised: Segment | Word, correction: Correction) -> Correction | None:
    """What a correction changes; None when it changes nothing."""
    before = recognised.word if isinstance(recognised, Word) else recognised.text
    text = None if correction.text is None else _in_one_line(correction.text)
    found = replace(
        correction,
        text=None if text == before else text,
        start=None if correction.start == recognised.start else correction.start,
        end=None if correction.end == recognised.end else correction.end,
    )
    return None if (found.text, found.start, found.end) == (None, None, None) else found


def _check_times(transcript: Transcript) -> None:
    """Refuse times that no subtitle could show."""
    latest: dict[int | None, float] = {}
    for segment in transcript.segments:
        for item in segment.words or (segment,):
            times = f"a word of segment {segment.id} would last from {item.start:g} to {item.end:g} s"
            if round(1000 * item.start) >= round(1000 * item.end):
                raise InvalidOption("words", f"{times}: it must end after it begins")
            before = latest.get(segment.channel, 0.0)
            if item.start < before:
                raise InvalidOption("words", f"{times}: the word before it ends at {before:g} s")
            latest[segment.channel] = item.end
    if max(latest.values(), default=0.0) > transcript.duration:
        raise InvalidOption("words", f"a word would end after the audio, which lasts {transcript.duration:g} s")


def _in_one_line(text: str) -> str:
    # In subtitles a blank line ends a cue, and an arrow of any length begins one.
    return ARROW.sub("->", " ".join(text.split()))


def _labels(transcript: Transcript) -> set[str]:
    found = {*transcript.speakers, *(segment.speaker for segment in transcript.segments)}
    found |= {turn.speaker for turn in transcript.turns}
    return {label for label in found if label is not None}


def _rewritten(segment: Segment, corrections: Mapping[int, Correction], space: str) -> Segment:
    """A segment with some words corrected.

    Args:
        segment: the recognised segment.
        corrections: number of the word to its correction; -1 for the text of a segment without words.
        space: separator of two words of the language.
    """
    if not segment.words:
        correction = corrections[-1]
        said = segment.text if correction.text is None else correction.text
        return replace(segment, text=said, **_times(segment, correction))
    words = [
        _corrected(word, corrections[index]) if index in corrections else word
        for index, word in enumerate(segment.words)
    ]
    text = _respelled(segment, words)
    kept = tuple(word for word in words if word.word)
    # A segment may begin before its first word and end after its last, but follows their corrected times.
    first, last = corrections.get(0), corrections.get(len(words) - 1)
    start = words[0].start if first is not None and first.start is not None else segment.start
    end = words[-1].end if last is not None and last.end is not None else segment.end
    return replace(
        segment,
        text=space.join(word.word for word in kept) if text is None else text,
        words=kept,
        start=start,
        end=end,
    )


def _corrected(word: Word, correction: Correction) -> Word:
    if correction.text is not None:
        # The score belongs to the recognised word.
        word = replace(word, word=correction.text, score=None)
    times = _times(word, correction)
    return replace(word, **times, interpolated=False, timing=None) if times else word


def _times(recognised: Segment | Word, correction: Correction) -> dict[str, float]:
    times = {"start": correction.start, "end": correction.end}
    return {name: value for name, value in times.items() if value is not None}


def _respelled(segment: Segment, words: Sequence[Word]) -> str | None:
    """The segment's text with its words replaced; None when its words are not found in the text."""
    spans = word_spans(segment.text, [word.word for word in segment.words])
    if spans is None:
        return None
    found: list[str] = []
    position = 0
    for (begin, end), new in zip(spans, words, strict=True):
        between = segment.text[position:begin]
        # The space before a removed word is removed too.
        found += [between, new.word] if new.word else [between.rstrip()]
        position = end
    return "".join([*found, segment.text[position:]]).strip()


def _renamed(segment: Segment, names: Mapping[str, str]) -> Segment:
    if segment.speaker is None:
        return segment
    words = tuple(
        word if word.speaker is None else replace(word, speaker=names.get(word.speaker, word.speaker))
        for word in segment.words
    )
    return replace(segment, speaker=names.get(segment.speaker, segment.speaker), words=words)


def _keyed_anew(values: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    found: dict[str, T] = {}
    for label, value in values.items():
        found.setdefault(names.get(label, label), value)
    return found


def corrected(transcript: Transcript, corrections: Corrections | None) -> Transcript:
    """A stored transcript with its corrections.

    Args:
        transcript: the recognised transcript.
        corrections: the stored corrections, if any.
    """
    # Older versions have stored words and segments without length.
    transcript = replace(transcript, segments=in_order(transcript.segments))
    return transcript if corrections is None else applied(transcript, corrections)
