"""Replaces findings in segments, so that text and words stay in step, and tells what redaction cannot find."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from msgspec.structs import replace

from whisper_api.engine.redaction.emails import find_emails
from whisper_api.engine.redaction.findings import Finding, merged
from whisper_api.engine.redaction.names import find_names, given_names
from whisper_api.engine.redaction.numbers import LANGUAGES, NUMBER_KINDS, find_numbers
from whisper_api.errors import ExtraMissing
from whisper_api.options import RedactKind
from whisper_api.schema import Redaction, Segment, Word
from whisper_api.word_spacing import word_spans

MARKERS: dict[RedactKind, str] = {
    "names": "[NAME]",
    "emails": "[EMAIL]",
    "phones": "[PHONE]",
    "cards": "[CARD]",
    "accounts": "[ACCOUNT]",
    "ids": "[ID]",
    "numbers": "[NUMBER]",
}


class Redacted(NamedTuple):
    """Segments without personal data.

    Attributes:
        segments: the segments, with a marker for each finding.
        redactions: kinds and times of what was replaced.
    """

    segments: list[Segment]
    redactions: tuple[Redaction, ...]


class _Piece(NamedTuple):
    """A segment with the places of its words in its text."""

    segment: Segment
    spans: list[tuple[int, int]]


def redact(
    segments: Sequence[Segment], kinds: Collection[RedactKind], language: str, names: Iterable[str] = ()
) -> Redacted:
    """Replace personal data by markers.

    The words of a finding become one word, the marker, with the times of the first and the last of them and no score.
    A window of the decoder in which something was replaced loses its tokens and their probabilities, because they spell
    the whole text of the window.

    Args:
        segments: all segments of a transcript, in order: a number may be cut between two of them.
        kinds: the kinds of personal data.
        language: code of the text's language.
        names: names of persons that are known beforehand.
    """
    pieces = [_located(segment) for segment in segments]
    whole = " ".join(piece.segment.text for piece in pieces)
    findings = find(whole, kinds, language, names)
    done: list[Segment] = []
    redactions: list[Redaction] = []
    position = first = 0
    for original, piece in zip(segments, pieces, strict=True):
        end = position + len(piece.segment.text)
        while first < len(findings) and findings[first].end <= position:
            first += 1
        inside = []
        for finding in findings[first:]:
            if finding.start >= end:
                break
            start, stop = max(finding.start - position, 0), min(finding.end, end) - position
            if piece.segment.text[start:stop].strip():
                inside.append(Finding(start, stop, finding.kind))
        if inside:
            segment, places = _redacted(piece, inside)
            done.append(segment)
            redactions += places
        else:
            done.append(original)
        position = end + 1
    return Redacted(_without_tokens(segments, done), tuple(redactions))


def find(text: str, kinds: Collection[RedactKind], language: str, names: Iterable[str] = ()) -> list[Finding]:
    """The personal data of a text, in order, without overlaps.

    Args:
        text: any text.
        kinds: the kinds to find.
        language: code of the text's language.
        names: names of persons that are known beforehand.
    """
    # Numbers and emails are told apart before names, so that no part of an address is taken for a name.
    found = find_emails(text) if "emails" in kinds else []
    found += find_numbers(text, language, kinds)
    if "names" in kinds:
        found += find_names(text, language, names)
    return merged(found)


def _located(segment: Segment) -> _Piece:
    """A segment with its words found in its text; a text that lacks them is made from them."""
    words = [word.word for word in segment.words]
    spans = word_spans(segment.text, words)
    if spans is None:
        text = " ".join(words)
        segment, spans = replace(segment, text=text), word_spans(text, words) or []
    return _Piece(segment, spans)


def _redacted(piece: _Piece, findings: Sequence[Finding]) -> tuple[Segment, list[Redaction]]:
    """A segment with its findings replaced, and their times."""
    segment, spans = piece
    # The first and the last word of each group of words that findings join.
    groups: list[tuple[int, int]] = []
    for finding in findings:
        touched = [number for number, (begin, end) in enumerate(spans) if finding.start < end and finding.end > begin]
        if touched and groups and touched[0] <= groups[-1][1]:
            groups[-1] = groups[-1][0], touched[-1]
        elif touched:
            groups.append((touched[0], touched[-1]))
    words: list[Word] = []
    redactions: list[Redaction] = []
    after = 0
    for first, last in groups:
        begin, end = spans[first][0], spans[last][1]
        joined = replace(
            segment.words[first],
            word=_replaced(segment.text, findings, begin, end),
            end=segment.words[last].end,
            score=None,
            interpolated=any(word.interpolated for word in segment.words[first : last + 1]),
        )
        words += [*segment.words[after:first], joined]
        after = last + 1
        touching = (each for each in findings if each.start < end and each.end > begin)
        redactions += [Redaction(kind=each.kind, start=joined.start, end=joined.end) for each in touching]
    words += segment.words[after:]
    if not segment.words:
        redactions = [Redaction(kind=each.kind, start=segment.start, end=segment.end) for each in findings]
    text = _replaced(segment.text, findings, 0, len(segment.text))
    return replace(segment, text=text, words=tuple(words)), redactions


def _replaced(text: str, findings: Sequence[Finding], begin: int, end: int) -> str:
    """A part of a text with a marker for each finding that touches the part."""
    parts = []
    position = begin
    for finding in findings:
        if finding.start < end and finding.end > begin:
            parts += [text[position : max(finding.start, position)], MARKERS[finding.kind]]
            position = max(finding.end, position)
    return "".join([*parts, text[position:end]])


def _without_tokens(before: Sequence[Segment], after: Sequence[Segment]) -> list[Segment]:
    """The segments, without the tokens of the windows in which a segment changed."""
    changed = {old.seek for old, new in zip(before, after, strict=True) if old is not new}
    return [replace(each, tokens=(), logprobs=()) if each.seek in changed else each for each in after]


def limits(segments: Sequence[Segment], kinds: Collection[RedactKind], language: str) -> list[str]:
    """A sentence for each kind that is found less well in this text than the documentation says.

    Args:
        segments: the text.
        kinds: the kinds of personal data that are asked for.
        language: code of the text's language.
    """
    warnings = []
    if language not in LANGUAGES and not NUMBER_KINDS.isdisjoint(kinds):
        warnings.append(f"redact: numbers that are written as words are not found in the language {language}")
    if "names" in kinds:
        if not any(map(str.isupper, (letter for segment in segments for letter in segment.text))):
            warnings.append("redact: names are not found in this text, since it has no capital letters")
        elif not given_names(language):
            warnings.append(
                f"redact: names are found less well, since there is no list of names of the language {language}"
            )
    return warnings


# The module of each library, and the name under which an index has the library.
LIBRARIES = {"faker": "faker", "phonenumbers": "phonenumberslite", "stdnum": "python-stdnum", "text_to_num": "text2num"}


def check_installed() -> None:
    """Refuse redaction without its libraries.

    Raises:
        ExtraMissing: a library is not installed.
    """
    missing = [name for module, name in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ExtraMissing(
            f"redact: {', '.join(missing)} cannot be imported here; `pip install 'whisper-api[redact]'` installs it"
        )
