"""The tokens before a window: what the decoder is told about the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

__all__ = ["PROMPT_TOKENS", "prompt_tokens"]

# Hotwords and prompt fill at most half of the 448 tokens of context, less the start of the text.
PROMPT_TOKENS = 448 // 2 - 5


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
