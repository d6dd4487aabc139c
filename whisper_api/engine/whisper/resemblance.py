"""How much words sound alike, from their spelling.

A text becomes a row of sounds by rules that are coarse enough for all languages in Latin letters; a letter of another
script is a sound of its own. The distance of two rows is a weighted edit distance: vowels and related consonants
(voiced and unvoiced) replace each other at a low cost. Sellers' algorithm ("The theory and computation of evolutionary
distances: pattern recognition", Journal of Algorithms, 1980) searches all terms in a text at once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Spellings of one sound or of several, longest first. S is sh, C is ch, J is the sound of "judge".
SPELLINGS = {
    **{"tsch": "C", "sch": "S", "tch": "C", "chr": "kr", "dge": "J", "ph": "f", "ck": "k", "sh": "S", "ch": "C"},
    **{"th": "t", "wh": "w", "kn": "n", "qu": "kw", "gh": "g", "tz": "ts", "ce": "se", "ci": "si", "cy": "si"},
    **{"x": "ks", "c": "k", "q": "k", "j": "J", "y": "i", "ß": "s", "æ": "e", "ø": "o", "œ": "e", "ł": "l"},
}
_SPELLING = re.compile("|".join(SPELLINGS))
VOWELS = "aeiou"
# Consonants that are mistaken for each other.
RELATED = ("pb", "td", "kg", "fvw", "szSCJ", "mn", "lr", "kC")
VOWEL_COST, ASPIRATE_COST, CONSONANT_COST = 0.5, 0.3, 1.0
VOWEL_CHANGE, RELATED_CHANGE = 0.3, 0.4
# More than any alignment of a term costs.
NEVER = np.float32(1e6)

Costs = NDArray[np.float32]


def plain_words(text: str) -> list[str]:
    """The words of a text without capitals, accents and punctuation; in a script without spaces, its characters."""
    letters = "".join(
        each for each in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(each)
    )
    words = re.findall(r"[^\W_]+", letters)
    return [part for word in words for part in (re.findall(r"[⺀-鿿぀-ヿ]|[^⺀-鿿぀-ヿ]+", word))]


def sounds_of(word: str) -> str:
    """The sounds of a plain word; of a doubled sound only one."""
    spelled = _SPELLING.sub(lambda match: SPELLINGS[match.group()], word)
    return re.sub(r"(.)\1+", r"\1", spelled)


class Sounds:
    """Terms that are searched in texts by their sounds.

    Args:
        terms: each a word or a few words.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        rows = ["".join(sounds_of(word) for word in plain_words(term)) for term in terms]
        self._alphabet = {sound: number for number, sound in enumerate(sorted(set("".join(rows))))}
        self._lengths = np.array([len(row) for row in rows], np.int64)
        longest = max(1, *self._lengths.tolist()) if rows else 1
        self._rows = np.zeros((len(rows), longest), np.int64)
        costs = np.zeros((len(rows), longest + 1), np.float32)
        for number, row in enumerate(rows):
            self._rows[number, : len(row)] = [self._alphabet[sound] for sound in row]
            costs[number, 1 : len(row) + 1] = [_cost(sound) for sound in row]
        # The cost of leaving out the first sounds of each term.
        self._omitted = np.cumsum(costs, axis=1)

    def likeness(self, text: str) -> Costs:
        """How much each term sounds like the words of a text that resemble it most.

        Args:
            text: any text.

        Returns:
            float32, shape (terms,): 1 for the same sounds, 0 for nothing in common. A term without letters has 0.
        """
        count = len(self._lengths)
        whole = self._omitted[np.arange(count), self._lengths]
        best = whole.copy()
        if not count:
            return best
        column = self._omitted.copy()
        for word in plain_words(text):
            column[:, 0] = 0.0
            sounds = sounds_of(word)
            for sound in sounds:
                changes = self._changes(sound)[self._rows]
                after = np.empty_like(column)
                after[:, 0] = NEVER
                np.minimum(column[:, :-1] + changes, column[:, 1:] + np.float32(_cost(sound)), out=after[:, 1:])
                column = np.minimum.accumulate(after - self._omitted, axis=1) + self._omitted
            best = np.minimum(best, column[np.arange(count), self._lengths])
        return np.where(whole > 0, 1 - best / np.maximum(whole, 1e-6), 0).astype(np.float32)

    def _changes(self, sound: str) -> Costs:
        return np.array([_change(sound, other) for other in self._alphabet] or [0.0], np.float32)


def likeness(term: str, text: str) -> float:
    """How much a term sounds like the words of a text that resemble it most, from 0 to 1."""
    return float(Sounds([term]).likeness(text)[0])


def _cost(sound: str) -> float:
    return VOWEL_COST if sound in VOWELS else ASPIRATE_COST if sound == "h" else CONSONANT_COST


def _change(sound: str, other: str) -> float:
    if sound == other:
        return 0.0
    if sound in VOWELS and other in VOWELS:
        return VOWEL_CHANGE
    if any(sound in group and other in group for group in RELATED):
        return RELATED_CHANGE
    return max(_cost(sound), _cost(other))
