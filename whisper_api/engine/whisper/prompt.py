"""The tokens before a window: what the decoder is told about the text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whisper_api.engine.whisper.model import DecodedTokens
from whisper_api.engine.whisper.resemblance import plain_words
from whisper_api.engine.whisper.vocabulary import Vocabulary

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

__all__ = ["Prompts", "prompt_tokens"]

# Hotwords and prompt fill at most half of the 448 tokens of context, less the start of the text.
PROMPT_TOKENS = 448 // 2 - 5


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
        self,
        tokenizer: Tokenizer,
        prompt: str | None = None,
        hotwords: str | None = None,
        terms: Sequence[str] = (),
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
