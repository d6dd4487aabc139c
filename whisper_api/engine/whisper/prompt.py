"""The tokens before a window, which tell the decoder about the text, and whether a text only repeats them.

The decoder's prompt has room for about 60 names, and names that nobody says distract it. So a window is first decoded
without the terms of a vocabulary. Only where some of its words sound like terms, it is decoded again with these terms
in the prompt, and the second text counts if it has one of them. The model itself judges whether the term or its first
text is right.

In noise, laughter and unclear speech, Whisper writes the words of its prompt: they are so probable after the prompt
that the mean log probability does not show the error, and a high ``no_speech`` counts only beside a low probability. A
text that copies much of the prompt is therefore compared with what the window gives without a prompt: words that are
said sound alike there, even when the names are misspelled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from whisper_api.engine.whisper.model import DecodedTokens
from whisper_api.engine.whisper.resemblance import Sounds, likeness, plain_words

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

# Hotwords and prompt fill at most half of the 448 tokens of context, less the start of the text.
PROMPT_TOKENS = 448 // 2 - 5

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


class Prompts:
    """The prompts with which a job's windows are decoded.

    Args:
        tokenizer: the tokenizer of the language.
        prompt: text that precedes the audio.
        hotwords: words to expect.
        terms: the terms of the job's vocabulary.

    Attributes:
        job: the prompt with the job's text and hotwords.
        bare: the prompt with neither.
        words: the words of the hotwords and of the text.
        vocabulary: the usable terms.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: str | None = None, hotwords: str | None = None, terms: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._hotwords = hotwords
        self.job = prompt_tokens(tokenizer, prompt, hotwords)
        self.bare = prompt_tokens(tokenizer, None, None)
        # The empty word is in no text, so no copied run goes from the hotwords into the prompt.
        self.words = [*plain_words(hotwords or ""), "", *plain_words(prompt or "")]
        self.vocabulary = Vocabulary(terms, self._fits)

    def terms_like(self, decoded: DecodedTokens) -> list[str]:
        """The terms of the vocabulary that sound like a decoded text; the best first."""
        if not self.vocabulary.terms:
            return []
        words, pieces = self._tokenizer.split_to_word_tokens([*decoded.tokens, self._tokenizer.eot])
        logprobs = iter(decoded.logprobs)
        # Without probabilities, which a window of only special tokens lacks, every word counts as doubtful.
        least = [min(itertools.islice(logprobs, len(piece)), default=-math.inf) for piece in pieces[:-1]]
        return self.vocabulary.like(words[:-1], least)

    def with_terms(self, terms: Sequence[str], *, alone: bool) -> tuple[int, ...]:
        """The job's prompt with as many terms as have room.

        Args:
            terms: the best first.
            alone: leave out the job's text and hotwords.
        """
        fitting: list[str] = []
        for term in terms:
            if self._fits(", ".join((*fitting, term))):
                fitting.append(term)
        if alone:
            return prompt_tokens(self._tokenizer, None, ", ".join(fitting))
        return prompt_tokens(self._tokenizer, self._prompt, ", ".join(filter(None, (*fitting, self._hotwords))))

    def _fits(self, terms: str) -> bool:
        return len(self._tokenizer.encode(f" {terms}")) <= PROMPT_TOKENS // 2


def prompt_tokens(tokenizer: Tokenizer, prompt: str | None, hotwords: str | None) -> tuple[int, ...]:
    """The prompt of the decoder: hotwords, the end of the prompt, then the task.

    Hotwords and prompt fill at most half of the 448 tokens of context.

    Args:
        tokenizer: the tokenizer of the language.
        prompt: text that precedes the audio.
        hotwords: words to expect.
    """
    room = PROMPT_TOKENS
    before: list[int] = []
    if hotwords and hotwords.strip():
        before = tokenizer.encode(" " + hotwords.strip())[: room // 2 if prompt else room]
    if prompt and prompt.strip():
        before += tokenizer.encode(" " + prompt.strip())[-(room - len(before)) :]
    start = [tokenizer.sot_prev, *before] if before else []
    return (*start, *tokenizer.sot_sequence, tokenizer.no_timestamps)


# So many words in the order of the prompt are suspicious in any text, and so is a text with this share of copied words.
LONG_RUN = 4
COPIED_SHARE = 0.5
# Above this probability of no speech, any copied word is suspicious.
NO_SPEECH_PROB = 0.6
# A copied run is heard if it sounds so much like a place of the text without the prompt, which chance does not reach.
HEARD_LIKENESS = 0.6
# The same for a single word. Chance finds a place for a single word more easily.
HEARD_WORD_LIKENESS = 0.65
# Single words of the prompt occur in any text; only longer ones count as copied.
LETTERS_OF_A_WORD = 5

Run = tuple[str, ...]


def copied_runs(text: str, prompt: Sequence[str]) -> list[Run]:
    """The words of a text that occur in the same order in the prompt, as runs without overlap.

    Args:
        text: the decoded text.
        prompt: the words of the prompt, as :func:`plain_words` gives them.
    """
    words, runs, index = plain_words(text), [], 0
    places: dict[str, list[int]] = {}
    for place, word in enumerate(prompt):
        places.setdefault(word, []).append(place)
    while index < len(words):
        length = max((_common(words, index, prompt, place) for place in places.get(words[index], ())), default=0)
        if length > 1 or (length == 1 and len(words[index]) >= LETTERS_OF_A_WORD):
            runs.append(tuple(words[index : index + length]))
        index += max(1, length)
    return runs


def may_be_leaked(text: str, runs: Sequence[Run], no_speech_prob: float) -> bool:
    """Whether so much of a text is copied that it must be compared with a decoding without the prompt.

    Args:
        text: the decoded text.
        runs: its copied runs.
        no_speech_prob: probability that the window holds no speech.
    """
    if not runs:
        return False
    copied = sum(map(len, runs))
    return (
        no_speech_prob > NO_SPEECH_PROB
        or max(map(len, runs)) >= LONG_RUN
        or copied >= COPIED_SHARE * len(plain_words(text))
    )


def is_heard(runs: Sequence[Run], plain: str) -> bool:
    """Whether most of the copied words sound like the text that the window has without a prompt.

    Args:
        runs: the copied runs.
        plain: the text without a prompt.
    """
    heard = sum(len(run) for run in runs if likeness(" ".join(run), plain) >= HEARD_LIKENESS or _by_word(run, plain))
    return 2 * heard >= sum(map(len, runs))


def _by_word(run: Run, plain: str) -> bool:
    """Whether at least half of the longer words are heard each for itself: abbreviations differ from what is heard."""
    long = [word for word in run if len(word) >= LETTERS_OF_A_WORD]
    return bool(long) and 2 * int((Sounds(long).likeness(plain) >= HEARD_WORD_LIKENESS).sum()) >= len(long)


def _common(words: Sequence[str], index: int, prompt: Sequence[str], place: int) -> int:
    """The number of equal words from two places on."""
    pairs = zip(words[index:], prompt[place:], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
