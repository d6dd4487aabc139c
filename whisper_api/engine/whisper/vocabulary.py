"""Long lists of names and terms: for each window, the few that sound like its first text.

The decoder's prompt has room for about 60 names, and names that nobody says distract it. So a window is first decoded
without the terms. Only where some of its words sound like terms, it is decoded again with these terms in the prompt,
and the second text counts if it has one of them. The model itself judges whether the term or its first text is right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from whisper_api.engine.whisper.resemblance import Sounds, plain_words

__all__ = ["LOGPROB_MARGIN", "Vocabulary", "has_term"]

# A term is put into the prompt if it sounds so much like improbable words of the first text, or so much like any of its
# words; and so many terms at most.
TERM_LIKENESS, SURE_LIKENESS = 0.5, 0.8
DOUBTFUL_LOGPROB = math.log(0.6)
TERMS_OF_A_WINDOW = 24
# The second text counts unless its tokens are so much less probable in the mean.
LOGPROB_MARGIN = 0.3
TERMS_IN_WARNING = 10


class Vocabulary:
    """The terms of a job.

    Args:
        terms: names and other terms, each of a few words.
        fits: whether the decoder's prompt has room for a term.

    Attributes:
        terms: those that can be used, each once.
    """

    def __init__(self, terms: Sequence[str], fits: Callable[[str], bool]) -> None:
        usable = {term: bool(plain_words(term)) and fits(term) for term in terms}
        self.terms = tuple(term for term in usable if usable[term])
        self._unusable = tuple(term for term in usable if not usable[term])
        self._sounds = Sounds(self.terms)

    @property
    def warning(self) -> str | None:
        """A sentence about the terms that cannot be used; None if there are none."""
        if not self._unusable:
            return None
        named = ", ".join(self._unusable[:TERMS_IN_WARNING])
        more = len(self._unusable) - TERMS_IN_WARNING
        return (
            "terms of the vocabulary without letters, or too long for the model's prompt, were not used: "
            f"{named}{f' and {more} more' if more > 0 else ''}"
        )

    def like(self, words: Sequence[str], logprobs: Sequence[float]) -> list[str]:
        """The terms that sound like doubtful words of a text, or nearly equal to any of its words; the best first.

        Args:
            words: the words of a window's first text.
            logprobs: the logarithm of the least probable token of each word.

        Returns:
            Terms that the text does not have.
        """
        text = " ".join(words)
        if not self.terms or not text.strip():
            return []
        likeness = self._sounds.likeness(text)
        likeness[likeness < SURE_LIKENESS] = 0.0
        for place in _doubtful(words, logprobs):
            likeness = np.maximum(likeness, self._sounds.likeness(place))
        order = np.argsort(-likeness, kind="stable")
        found = [self.terms[index] for index in order[likeness[order] >= TERM_LIKENESS]]
        return [term for term in found if not has_term(text, term)][:TERMS_OF_A_WINDOW]


def _doubtful(words: Sequence[str], logprobs: Sequence[float]) -> list[str]:
    """The places of improbable words, each with its neighbours: names are often torn into several words."""
    near = np.zeros(len(words) + 2, np.bool_)
    for index, logprob in enumerate(logprobs):
        near[index + 1] |= logprob < DOUBTFUL_LOGPROB
    near[1:-1] |= near[:-2] | near[2:]
    places = itertools.groupby(range(len(words)), key=lambda index: bool(near[index + 1]))
    return [" ".join(words[index] for index in indices) for doubtful, indices in places if doubtful]


def has_term(text: str, term: str) -> bool:
    """Whether a text has a term as whole words, apart from capitals, accents and punctuation."""
    return f" {' '.join(plain_words(term))} " in f" {' '.join(plain_words(text))} "
