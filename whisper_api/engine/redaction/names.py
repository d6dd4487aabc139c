"""Finds names of persons by capital letters, lists of names and the words before a name; there is no model."""

from __future__ import annotations

import functools
import pkgutil
import re
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import NamedTuple

from whisper_api.engine.redaction import vocabulary
from whisper_api.engine.redaction.findings import Finding
from whisper_api.engine.redaction.vocabulary import PARTICLES, TITLES

WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
SENTENCE_END = re.compile(r"(?:^|[.!?…:;]|\s[-–—])[\s\"'«»“”‘’(\[¿¡-]*$")
# Words after which a name follows: "my name is ...".
INTRODUCTIONS = re.compile(
    r"(?:\bmy name(?:['’]s| is)|\bname is|\bnamed|\bi['’]m called|\bje m['’]appelle|\b(?:il|elle|qui) s['’]appelle|"
    r"\bmon nom (?:est|c['’]est)|\bmon prénom (?:est|c['’]est)|\bau nom de|\bich hei(?:ß|ss)e|\bmein name ist|"
    r"\bme llamo|\bmi nombre es|\bmi chiamo|\bme chamo|\bmeu nome é|\bik heet|\bmijn naam is)[\s,:]+$",
    re.IGNORECASE,
)
LONGEST_INTRODUCTION = 40
SAINTS = ("saint", "sainte", "st")
# Titles and initials have a full stop behind them, which ends no sentence.
GAP = re.compile(r" (?:d['’])?|-|['’]")
INITIAL_GAP = re.compile(r"\.? ")
MOST_WORDS = 7
# A name that is spelled: D-U-P-O-N-T.
SPELLED = re.compile(r"\b[^\W\d_a-zß-ÿ](?:[-.,\s]{1,2}[^\W\d_a-zß-ÿ]\b){3,}")
# A part of a name that is looked for in the whole text has at least so many letters.
LEAST_LETTERS = 3
# Letters before an apostrophe are no part of the name: d'Emma.
ELIDED = re.compile(r"(?:\b[dljnsctm]|\bqu|\blorsqu|\bpuisqu|\bjusqu)['’]$", re.IGNORECASE)


def plain(word: str) -> str:
    """A word in lower case without accents, as the lists have it."""
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(each for each in decomposed if not unicodedata.combining(each))


NOT_ALONE = frozenset(plain(word) for word in vocabulary.NOT_ALONE)
PLAIN_TITLES = frozenset(map(plain, TITLES))


@functools.lru_cache(maxsize=16)
def given_names(language: str | None) -> frozenset[str]:
    """Given names of the countries of a language, or of all countries that write in Latin letters.

    Args:
        language: code of a language; None for all.
    """
    return frozenset(_names("person", "first_names", language) | _names("person", "first_names_", language))


@functools.lru_cache(maxsize=16)
def surnames(language: str | None) -> frozenset[str]:
    """Surnames of the countries of a language; None for all languages."""
    return frozenset(_names("person", "last_names", language))


@functools.lru_cache(maxsize=16)
def common_words(language: str) -> frozenset[str]:
    """Words of a language that begin sentences, although some are names too."""
    return frozenset({plain(word) for word in vocabulary.STARTS} | NOT_ALONE | _names("lorem", "word_list", language))


def _names(provider: str, attribute: str, language: str | None) -> set[str]:
    """The values of an attribute, or of all attributes whose name begins so, of a provider's countries."""
    found: set[str] = set()
    package = import_module(f"faker.providers.{provider}")
    for module in pkgutil.iter_modules(package.__path__):
        if language is None or module.name.split("_")[0] == language:
            country = import_module(f"{package.__name__}.{module.name}").Provider
            for values in (getattr(country, name) for name in dir(country) if name.startswith(attribute)):
                for value in values if isinstance(values, (tuple, list, dict)) else ():
                    found |= {plain(part) for part in str(value).replace("-", " ").split() if len(part) > 1}
    return found


class _Word(NamedTuple):
    """A word of a text.

    Attributes:
        start, end: characters of the text.
        text: the word.
        key: the word as the lists of names have it.
        first: whether it begins a sentence.
    """

    start: int
    end: int
    text: str
    key: str
    first: bool

    @property
    def capital(self) -> bool:
        return self.text[0].isupper()


class _Lists(NamedTuple):
    given: frozenset[str]
    foreign: frozenset[str]
    surnames: frozenset[str]
    foreign_surnames: frozenset[str]
    common: frozenset[str]
    nouns_capital: bool

    def is_given(self, word: _Word) -> bool:
        """Whether a capitalised word is a given name by itself."""
        if word.key in NOT_ALONE or len(word.text) < 2:
            return False
        if word.first or self.nouns_capital:
            return self._listed(word.key, self.given) and word.key not in self.common
        return self._listed(word.key, self.given) or self._listed(word.key, self.foreign)

    def is_surname(self, word: _Word) -> bool:
        """Whether a capitalised word is a surname by itself."""
        known = len(word.text) > 1 and self._listed(word.key, self.surnames) and word.key not in self.common
        return known and not word.first and not self.nouns_capital

    def may_be_surname(self, word: _Word) -> bool:
        """Whether a capitalised word in a row of them tells that the row is a name."""
        return word.key not in NOT_ALONE | PARTICLES and self._listed(word.key, self.foreign_surnames)

    def may_be_given(self, word: _Word) -> bool:
        return self._listed(word.key, self.given) or self._listed(word.key, self.foreign)

    @staticmethod
    def _listed(key: str, names: frozenset[str]) -> bool:
        return key in names or ("-" in key and not key.startswith(SAINTS) and key.split("-")[0] in names)


def find_names(text: str, language: str, known: Iterable[str] = ()) -> list[Finding]:
    """The names of persons in a text.

    A name is what follows a title or an introduction, a known given name with the capitalised words after it, a surname
    in the middle of a sentence, and what is spelled with capitals. Each word of a name is then found wherever it stands
    with a capital.

    Args:
        text: any text.
        language: code of the text's language.
        known: names of persons that are known beforehand.
    """
    lists = _Lists(
        given_names(language),
        given_names(None),
        surnames(language),
        surnames(None),
        common_words(language),
        language == "de",
    )
    words = _words(text)
    taken: list[tuple[int, int]] = []
    index = 0
    while index < len(words):
        end = _end_of_name(text, words, index, lists)
        if end > index:
            taken.append((index, end))
        index = max(end, index + 1)
    parts = {part for name in known for part in _keys(name)}
    parts |= {word.key for start, end in taken for word in words[start:end] if _tells(word, lists)}
    found = [Finding(words[start].start, words[end - 1].end, "names") for start, end in taken]
    found += [Finding(word.start, word.end, "names") for word in words if word.capital and word.key in parts]
    found += [Finding(*match.span(), "names") for match in SPELLED.finditer(text)]
    return found


def _words(text: str) -> list[_Word]:
    words: list[_Word] = []
    for match in WORD.finditer(text):
        before = text[max(match.start() - 12, 0) : match.start()]
        elided = ELIDED.search(before)
        if text[match.end() : match.end() + 1] in ("'", "’") and ELIDED.search(match[0] + "'"):
            continue
        # A full stop after a title or an initial ends no sentence.
        first = bool(SENTENCE_END.search(before)) and not (words and _abbreviated(text, words[-1], match.start()))
        words.append(_Word(match.start(), match.end(), match[0], plain(match[0]), first and not elided))
    return words


def _abbreviated(text: str, word: _Word, position: int) -> bool:
    return text[word.end : position].strip() == "." and (len(word.text) == 1 or word.key in PLAIN_TITLES)


def _end_of_name(text: str, words: Sequence[_Word], index: int, lists: _Lists) -> int:
    """The word after the name that begins at a word; the word itself when no name begins there."""
    word = words[index]
    end = _extended(text, words, index, lists)
    follows_title = _follows_title(text, words, index)
    if not word.capital and not (follows_title and word.key in PARTICLES and end > index + 1):
        return index
    if word.key in PLAIN_TITLES or (index and words[index - 1].key in SAINTS):
        return index
    introduced = INTRODUCTIONS.search(text[max(word.start - LONGEST_INTRODUCTION, 0) : word.start])
    if follows_title or introduced or lists.is_given(word) or lists.is_surname(word):
        return end
    if end - index < 2 or word.key in NOT_ALONE:
        return index
    # A listed part tells that the words around it are a name too.
    given, common = lists.may_be_given(word), word.key in lists.common
    if any(map(lists.may_be_surname, words[index + 1 : end])):
        return end if given or not common else index
    return end if word.first and given else index


def _follows_title(text: str, words: Sequence[_Word], index: int) -> bool:
    if index == 0 or words[index - 1].key not in PLAIN_TITLES:
        return False
    return bool(INITIAL_GAP.fullmatch(text[words[index - 1].end : words[index].start]))


def _extended(text: str, words: Sequence[_Word], index: int, lists: _Lists) -> int:
    """The word after the capitalised words and particles that follow a word directly."""
    end = position = index + 1
    while position < len(words) and position - index < MOST_WORDS:
        before, word = words[position - 1], words[position]
        gap = text[before.end : word.start]
        if not (GAP.fullmatch(gap) or (len(before.text) == 1 and INITIAL_GAP.fullmatch(gap))):
            break
        if word.key in PLAIN_TITLES:
            break
        if word.capital and word.text != "I" and (word.key not in NOT_ALONE or word.key in PARTICLES):
            end = position + 1
        elif word.key not in PARTICLES:
            break
        position += 1
    return end


def _tells(word: _Word, lists: _Lists) -> bool:
    """Whether a word of a name is looked for in the whole text."""
    return (
        word.capital
        and len(word.text) >= LEAST_LETTERS
        and word.key not in lists.common
        and word.key not in PARTICLES
        and word.key not in PLAIN_TITLES
    )


def _keys(name: str) -> set[str]:
    return {plain(part[0]) for part in WORD.finditer(name) if len(part[0]) >= LEAST_LETTERS}
