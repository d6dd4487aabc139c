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
from whisper_api.word_spacing import word_spans

__all__ = ["applied", "checked"]

T = TypeVar("T")

ARROW = re.compile(r"--+>")
# An error message repeats this much of a wrong label.
SHOWN_CHARACTERS = 80


def checked(transcript: Transcript, corrections: Corrections) -> Corrections:
    """Corrections in the form in which they are stored: one for each word, in order, on one line, without repetitions.

    Args:
        transcript: the recognised transcript.
        corrections: the client's corrections.

    Raises:
        InvalidOption: the corrections name a segment, word or speaker that does not exist, or an empty name.
    """
    segments = {segment.id: segment for segment in transcript.segments}
    words: dict[tuple[int, int], Correction] = {}
    for correction in corrections.words:
        before = _recognised(segments, correction)
        text = _in_one_line(correction.text)
        key = (correction.segment, -1 if correction.word is None else correction.word)
        words.pop(key, None)
        if text != before:
            words[key] = replace(correction, text=text)
    known = _labels(transcript)
    speakers = {}
    for label, name in corrections.speakers.items():
        if label not in known:
            raise InvalidOption("speakers", f"there is no speaker {label[:SHOWN_CHARACTERS]!r} in this transcript")
        if not (text := _in_one_line(name)):
            raise InvalidOption("speakers", f"the name of {label} is empty")
        if text != label:
            speakers[label] = text
    return Corrections(words=tuple(words[key] for key in sorted(words)), speakers=speakers)


def applied(transcript: Transcript, corrections: Corrections) -> Transcript:
    """The transcript with the corrections applied.

    An emptied segment is left out; the others keep their ids. Speakers with the same new name become one speaker, with
    the embedding of the speaker who spoke first.

    Args:
        transcript: the recognised transcript.
        corrections: corrections from :func:`checked` for this transcript.
    """
    by_segment: dict[int, dict[int, str]] = {}
    for each in corrections.words:
        by_segment.setdefault(each.segment, {})[-1 if each.word is None else each.word] = each.text
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


def _recognised(segments: Mapping[int, Segment], correction: Correction) -> str:
    """The recognised text that a correction replaces."""
    number, word = correction.segment, correction.word
    segment = segments.get(number)
    if segment is None:
        raise InvalidOption("words", f"there is no segment {number} in this transcript")
    if word is None:
        if segment.words:
            raise InvalidOption("words", f"segment {number} has words: say which of them, from 0")
        return segment.text
    if word >= len(segment.words):
        raise InvalidOption("words", f"segment {number} has no word {word}; it has {len(segment.words)}")
    return segment.words[word].word


def _in_one_line(text: str) -> str:
    # In subtitles a blank line ends a cue, and an arrow of any length begins one.
    return ARROW.sub("->", " ".join(text.split()))


def _labels(transcript: Transcript) -> set[str]:
    found = {*transcript.speakers, *(segment.speaker for segment in transcript.segments)}
    found |= {turn.speaker for turn in transcript.turns}
    return {label for label in found if label is not None}


def _rewritten(segment: Segment, texts: Mapping[int, str], space: str) -> Segment:
    """A segment with some words replaced.

    Args:
        segment: the recognised segment.
        texts: number of the word to its new text; -1 for the text of a segment without words.
        space: separator of two words of the language.
    """
    if not segment.words:
        return replace(segment, text=texts.get(-1, segment.text))
    words = [
        # The score belongs to the recognised word.
        replace(word, word=texts[index], score=None) if index in texts else word
        for index, word in enumerate(segment.words)
    ]
    text = _respelled(segment, words)
    kept = tuple(word for word in words if word.word)
    return replace(segment, text=space.join(word.word for word in kept) if text is None else text, words=kept)


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
