"""Finds the sentences of recognised text, and splits segments into sentences."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from msgspec.structs import replace

from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment
from whisper_api.word_spacing import joined, word_spans

log = logging.getLogger(__name__)

# sentencex treats non-ASCII white space as a single byte, and fails on a lone surrogate. Replacing one character by one
# character keeps the positions. U+3000 is the last white space of Unicode.
_SPACE = {code: " " for code in range(0x3001) if chr(code).isspace()}
_PLAIN = _SPACE | dict.fromkeys(range(0xD800, 0xE000), "-")

# Abbreviations before a name or inside a sentence, where sentencex ends the sentence. Abbreviations that are also words
# (no, art, max ...) are left out.
_ABBREVIATIONS = {
    language: frozenset(words.split())
    for language, words in {
        "de": "abb bzw ca dr evtl fr frl ggf hl hr hrn inkl ing mrd nr prof st str tel vgl z",
        "en": "capt col dr gen gov hon lt messrs mr mrs ms mt prof rep rev sen sgt st vs",
        "es": "d dña dr dra ee gral ing lic núm pág pp prof profa sr sra srta sta sto ud uds",
        "fr": "av bd cf dr m me mgr mlle mlles mm mme mmes mr pr prof st ste",
        "it": "arch avv cap dott dott.ssa dr egr gent geom ing on pag prof prof.ssa rag sig sig.na sig.ra sigg",
        "nl": "bijv blz ca dhr dr drs ir jhr mej mevr mr mw nl o.a prof st t.a.v vgl",
        "pl": "dr inż m.in mgr np nr pl płk prof pt ul św tj tzn tzw woj",
        "pt": "d dr dra drs exmo ilmo núm pág pp prof profa sr sra srta sta sto",
        "ru": "акад г гр д илл кв напр обл пл пр проф пос св см ср т т.е т.к ул",
    }.items()
}
# Abbreviations before a number, in any language.
_BEFORE_NUMBER = {"abb", "art", "ca", "cap", "ch", "chap", "fig", "no", "nr", "núm", "p", "pag", "pp", "pág", "vol"}
# Nouns after an ordinal, which German writes as a number with a full stop.
_AFTER_ORDINAL = ("Jahrhundert", "Jahrtausend")
# The answer "no", which sentencex reads as the abbreviation of "number" even without a number.
_NO = re.compile(r"\bno\.\s+(?=[^\W\d_]|[¿¡«“\"])", re.IGNORECASE)
_CLOSING = frozenset("»”’」』）)]\"'")
_OPENING = "([{«“„‘'\"¿¡-–—’"
# First characters of a continued sentence after quoted speech in Japanese: "と言った", "って".
_QUOTATIVE = frozenset("とっ")


def spans(text: str, language: str) -> list[tuple[int, int]]:
    """Split a text into sentences.

    In a language that puts spaces between words, a sentence ends before a space only.

    Args:
        text: any text.
        language: code of the text's language; an unknown language has general rules.

    Returns:
        (start, end) of each sentence in the text, without surrounding white space, in order. Every visible character is
        in exactly one sentence.
    """
    sentences: list[tuple[int, int]] = []
    for end in [*_ends(text, language), len(text)]:
        start = sentences[-1][1] if sentences else 0
        piece = text[start:end]
        if stripped := piece.strip():
            start += piece.index(stripped)
            sentences.append((start, start + len(stripped)))
    return sentences


def _ends(text: str, language: str) -> list[int]:
    """Positions inside the text where one sentence ends and another begins."""
    spaced = language not in LANGUAGES_WITHOUT_SPACES
    ends = []
    start = 0
    for end in sorted({*_library_ends(text, language), *(match.end() for match in _NO.finditer(text))}):
        before = text[start:end].rstrip()
        after = text[end:].lstrip()
        if before and after and not (spaced and not _space_at(text, end)) and not _continues(before, after, language):
            ends.append(end)
            start = end
    return ends


def _library_ends(text: str, language: str) -> list[int]:
    import sentencex

    if not text.strip():
        return []
    try:
        found = sentencex.get_sentence_boundaries(language, text.translate(_PLAIN))
        return [end for boundary in found if 0 < (end := int(boundary["end_index"])) < len(text)]
    except BaseException as error:
        # A panic of sentencex's native code is a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        log.warning("a text of %d characters was not split into sentences: %s", len(text), error)
        return []


def _space_at(text: str, position: int) -> bool:
    return text[position - 1].isspace() or text[position].isspace()


def _continues(before: str, after: str, language: str) -> bool:
    """Whether ``after`` continues the sentence of ``before``."""
    if after[0] in _CLOSING and language in LANGUAGES_WITHOUT_SPACES:
        return True
    if before[-1] in _CLOSING:
        return language == "ja" and after[0] in _QUOTATIVE
    if before[-1] not in ".…":
        return False
    if after[0].islower():
        return True
    if before[-1] == "…":
        return False
    token = before.split()[-1].lstrip(_OPENING)[:-1].lower()
    # French and Italian join an article to its noun with an apostrophe.
    token = token.replace("’", "'").rpartition("'")[2]
    if after[0].isdigit():
        return token in _BEFORE_NUMBER
    if language == "de" and token.isdecimal():
        return after.startswith(_AFTER_ORDINAL)
    return token in _ABBREVIATIONS.get(language, ())


def split_sentences(segments: Sequence[Segment], language: str) -> tuple[Segment, ...]:
    """Split segments with word times into sentences.

    A sentence starts with its first word and ends with its last word, so transcripts get the same shape as after
    alignment with a CTC model.

    Args:
        segments: segments with words and text; a segment without words is not split.
        language: code of the text's language.

    Returns:
        One segment for each sentence, with new ids; the other fields are those of the source segment.
    """
    cut: list[Segment] = []
    for segment in segments:
        cut.extend(_split(segment, language) if segment.words else [segment])
    return tuple(replace(segment, id=index) for index, segment in enumerate(cut))


def _split(segment: Segment, language: str) -> list[Segment]:
    text, starts = _locate(segment, language)
    sentences: list[Segment] = []
    borders = [end for _, end in spans(text, language)]
    first = border = 0
    for last in range(1, len(starts) + 1):
        while border < len(borders) and borders[border] <= starts[last - 1]:
            border += 1
        if last < len(starts) and (border == len(borders) or starts[last] < borders[border]):
            continue
        words = segment.words[first:last]
        begin = starts[first] if first else 0
        stop = starts[last] if last < len(starts) else len(text)
        sentences.append(
            replace(
                segment,
                start=min(word.start for word in words),
                end=max(word.end for word in words),
                text=text[begin:stop].strip(),
                words=words,
            )
        )
        first = last
    return sentences


def _locate(segment: Segment, language: str) -> tuple[str, list[int]]:
    """The segment's text and the start of each word in it. When the text lacks the words, the text is rebuilt."""
    words = [word.word for word in segment.words]
    text = segment.text
    found = word_spans(text, words)
    if found is None or "".join("".join(words).split()) != "".join(text.split()):
        text = joined(words) if language in LANGUAGES_WITHOUT_SPACES else " ".join(words)
        found = word_spans(text, words) or []
    return text, [start for start, _ in found]
