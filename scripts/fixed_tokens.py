"""Makes every window decode the same number of tokens, in this project and its peers, so that times are comparable.

A randomly initialised Whisper never ends a text by itself, or ends all of them at once. Here the end of text is
suppressed and the length set, on both sides. The tokens that come out are counted and then replaced by made-up words of
four letters, which a forced alignment can work on.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from random_models import SHORT_WORDS

from whisper_api.engine.whisper.model import FRAMES_PER_SECOND, DecodedTokens, DecodeSettings, Row
from whisper_api.engine.worker.fair_queue import Again

__all__ = ["FixedOperation", "FixedWhisper", "Tally", "our_tokens_fixed", "words"]

# The vocabulary of random models begins with the bytes.
FIRST_WORD = 256
WORDS_PER_SECOND = 4
LIKELY = -0.3


class Tally:
    """Counts decoded windows and tokens; any thread may call the methods."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows = self._tokens = 0

    def add(self, windows: int, tokens: int) -> None:
        """Count windows and their tokens."""
        with self._lock:
            self._windows += windows
            self._tokens += tokens

    def take(self) -> dict[str, float]:
        """Windows and tokens since the last call."""
        with self._lock:
            found = {"windows": float(self._windows), "tokens": float(self._tokens)}
            self._windows = self._tokens = 0
        return found


def words(count: int) -> list[int]:
    """Tokens of a number of different short words."""
    return [FIRST_WORD + 7919 * number % (SHORT_WORDS - 1) for number in range(count)]


@dataclass(frozen=True)
class _Result:
    """CTranslate2's result for a window."""

    sequences_ids: list[list[int]]
    scores: Sequence[float]
    no_speech_prob: float


class FixedWhisper:
    """Replaces a peer's ``ctranslate2.models.Whisper``. Only the length of the generated text is not the model's own.

    Args:
        model: the model.
        end: the token that ends a text.
        tokens: how many each window shall have.
        tally: what counts them.
    """

    def __init__(self, model: Any, end: int, tokens: int, tally: Tally) -> None:
        self._model = model
        self._end = end
        self._tokens = tokens
        self._tally = tally

    def generate(self, features: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[_Result]:
        options["suppress_tokens"] = [*(options.get("suppress_tokens") or []), self._end]
        # CTranslate2 generates at most half of this number, or the rest of it after the prompt without its last token.
        options["max_length"] = max(2 * self._tokens, self._tokens + len(prompts[0]) - 1)
        found = self._model.generate(features, prompts, **options)
        self._tally.add(len(found), sum(len(result.sequences_ids[0]) for result in found))
        return [_Result([words(len(r.sequences_ids[0]))], [LIKELY], 0.0) for r in found]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True)
class FixedOperation:
    """This project's decoding with counted and replaced results.

    Attributes:
        inner: the operation that decodes.
        tally: what counts.
    """

    inner: Any
    tally: Tally

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def merged(self, other: object) -> FixedOperation | None:
        """The operation for the windows of both; None when the two cannot be merged."""
        if not isinstance(other, FixedOperation) or not hasattr(self.inner, "merged"):
            return None
        inner = self.inner.merged(other.inner)
        return None if inner is None else FixedOperation(inner, self.tally)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """A result for each window. The continuation of an unfinished window is counted and replaced too."""
        results = self.inner.run(inputs)
        return [self._passed(result, value) for result, value in zip(results, inputs, strict=True)]

    def _passed(self, result: Any, value: Any) -> Any:
        if isinstance(result, Again):
            return dataclasses.replace(result, operation=FixedOperation(result.operation or self.inner, self.tally))
        return self._settled(result, getattr(value, "row", value))

    def _settled(self, result: DecodedTokens, row: Row) -> DecodedTokens:
        """The result with words for its tokens, and with figures that make no second decoding necessary."""
        self.tally.add(1, len(result.tokens))
        most = max(1, int(row.speech_frames / FRAMES_PER_SECOND * WORDS_PER_SECOND))
        said = tuple(words(min(most, len(result.tokens))))
        return dataclasses.replace(
            result, tokens=said, avg_logprob=LIKELY, no_speech_prob=0.0, capped=False, attention=None
        )


@contextmanager
def our_tokens_fixed(tokens: int, tally: Tally) -> Iterator[None]:
    """While open, this project's models decode a fixed number of tokens for each window.

    Args:
        tokens: how many.
        tally: what counts them.
    """
    from whisper_api.engine.whisper import ctranslate2 as whisper_ct2
    from whisper_api.engine.whisper.onnx import model as whisper_onnx

    modules: tuple[Any, ...] = (whisper_ct2, whisper_onnx)
    models: tuple[Any, ...] = (whisper_ct2.Ct2Whisper, whisper_onnx.OnnxWhisper)
    caps, decodes = [module.token_cap for module in modules], [model.decode for model in models]
    try:
        for module in modules:
            module.token_cap = lambda frames: tokens
        for model in models:
            _fix(model, tally)
        yield
    finally:
        for module, cap in zip(modules, caps, strict=True):
            module.token_cap = cap
        for model, decode in zip(models, decodes, strict=True):
            model.decode = decode


def _fix(model: type[Any], tally: Tally) -> None:
    decode = model.decode

    def fixed(self: Any, settings: DecodeSettings, max_items: int, max_cost: float) -> FixedOperation:
        suppress = tuple(sorted({*settings.suppress, self.end_of_text}))
        return FixedOperation(
            decode(self, dataclasses.replace(settings, suppress=suppress), max_items, max_cost), tally
        )

    model.decode = fixed
