"""The resident Whisper model: what all ways to run it share.

There are two. On a GPU CTranslate2 runs it (``ctranslate2.py``), on a CPU our own graphs do (``onnx/``).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.languages import CODES
from whisper_api.engine.whisper.tokens import token_bytes
from whisper_api.errors import ModelCorrupt

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

    from whisper_api.engine.worker.worker import BatchOperation

__all__ = ["Attention", "DecodeSettings", "DecodedTokens", "Row", "Whisper", "token_cap"]

FRAMES_PER_SECOND = 100
MAX_FRAMES = 3000
# Half of Whisper's text context: what one decoding may generate. The other half is for the prompt.
MAX_NEW_TOKENS = 224
# The fastest speech in the most token-hungry scripts stays below this; more means that the decoder goes in circles.
MAX_TOKENS_PER_SECOND = 15
SPARE_TOKENS = 30
BEST_OF = 5
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One window to be decoded.

    Attributes:
        input: samples at 16 kHz, as many as the window has with its padding or fewer; or, where the settings say so,
            the encoder's output (positions, width).
        prompt: tokens up to and including ``<|notimestamps|>``.
        speech_frames: frames of audio before the padding begins.
        following: windows of the same recording that come after it.
        alone: whether to decode it at once and by itself, because its text is waited for.
        restarted: whether it was begun before and left half way by an error.
    """

    input: NDArray[Any]
    prompt: tuple[int, ...]
    speech_frames: int
    following: int = 0
    alone: bool = False
    restarted: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """Which token is heard when, from dynamic time warping over the cross-attention.

    Attributes:
        tokens, frames: int64, shape (path,): the path's steps; frames are 20 ms.
        probabilities: float64, shape (tokens,): of each text token, given those before it.
    """

    tokens: NDArray[np.int64]
    frames: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class DecodedTokens:
    """What one decoding gave.

    Attributes:
        tokens: text tokens, without special ones.
        avg_logprob: mean log probability per token, the end of text included.
        no_speech_prob: probability that the window holds no speech.
        capped: whether it ended at the token cap instead of by itself.
        attention: where the tokens are heard, when the operation asks for it.
        logprobs: natural logarithm of each token's probability, when the operation asks for it. On a CPU it is the
            search's own, given the prompt too and among the tokens that it may take; CTranslate2 does not tell that, so
            on a GPU it comes from feeding the text once more, without the prompt and among all text tokens.
    """

    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    capped: bool
    attention: Attention | None
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class DecodeSettings:
    """How windows are decoded: by beam search or, above temperature 0, by sampling.

    Attributes:
        frames: that a window is padded to.
        prompt_length: of every row.
        beam_size: for temperature 0.
        temperature: for sampling.
        suppress: tokens that are never sampled.
        encoded: whether the rows hold the encoder's output instead of samples.
        align_from: the start sequence for word times from cross-attention, None for no word times.
        logprobs_from: the start sequence for the log probabilities of tokens, None for none.
    """

    frames: int
    prompt_length: int
    beam_size: int
    temperature: float
    suppress: tuple[int, ...]
    encoded: bool = False
    align_from: tuple[int, ...] | None = None
    logprobs_from: tuple[int, ...] | None = None


def token_cap(frames: int) -> int:
    """The most tokens that a window of so many frames may give."""
    return min(MAX_NEW_TOKENS, int(frames / FRAMES_PER_SECOND * MAX_TOKENS_PER_SECOND) + SPARE_TOKENS)


class Whisper(ABC):
    """A loaded model. Holds nothing of any request; its tables are computed once and never change.

    Args:
        directory: the model's files.
        mels: mel bands it takes.
        multilingual: whether it knows more than English.
        offline: whether nothing may be fetched for it.
    """

    def __init__(self, directory: Path, mels: int, *, multilingual: bool, offline: bool = False) -> None:
        self.mels = mels
        self.multilingual = multilingual
        self._tokenizers = load_tokenizer(directory, multilingual=multilingual, offline=offline)

    @abstractmethod
    def encode_and_detect(self, frames: int, max_items: int, max_cost: float) -> BatchOperation:
        """The operation that encodes windows and judges their languages.

        It takes samples; it gives the encoder's output of shape (positions, width), kept for decoding, and the
        probability of each language.
        """

    @abstractmethod
    def decode(self, settings: DecodeSettings, max_items: int, max_cost: float) -> BatchOperation:
        """The operation that decodes windows: :class:`Row` to :class:`DecodedTokens`."""

    @abstractmethod
    def unload(self) -> None:
        """Give the memory back. Nobody uses the model any more."""

    @functools.cached_property
    def languages(self) -> frozenset[str]:
        """Codes of the languages the model knows."""
        return frozenset(self.language_tokens) if self.multilingual else frozenset({"en"})

    @functools.cached_property
    def language_tokens(self) -> dict[str, int]:
        """Code to token of each language that the tokenizer has."""
        tokens = {code: self._tokenizers.token_to_id(f"<|{code}|>") for code in CODES}
        return {code: token for code, token in tokens.items() if token is not None}

    def tokenizer(self, language: str, task: str = "transcribe") -> Tokenizer:
        """A tokenizer for one language and task."""
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._tokenizers, self.multilingual, task=task, language=language)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 that a text token stands for; it may be a part of a character."""
        return token_bytes(self._tokenizers.id_to_token(token) or "")

    @functools.cached_property
    def end_of_text(self) -> int:
        """The token ``<|endoftext|>``; text tokens are below it."""
        return int(self._tokenizers.token_to_id("<|endoftext|>"))

    @functools.cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens that are never sampled: symbols nobody speaks, and the task tokens."""
        from faster_whisper.transcribe import get_suppressed_tokens

        return tuple(get_suppressed_tokens(self.tokenizer("en"), [-1]))

    @functools.cached_property
    def numeral_tokens(self) -> tuple[int, ...]:
        """Tokens with a digit, a percent or a currency sign in them."""
        texts = self._tokenizers.decode_batch([[token] for token in range(self.end_of_text)], skip_special_tokens=False)
        signs = frozenset("0123456789%$£€")
        return tuple(token for token, text in enumerate(texts) if not signs.isdisjoint(text))


def load_tokenizer(directory: Path, *, multilingual: bool, offline: bool = False) -> Any:
    """The model's tokenizer; that of OpenAI's models where the directory has none.

    Args:
        directory: the model's files.
        multilingual: whether the model knows more than English.
        offline: whether the model hub must not be asked. What is in its cache on this machine is used all the same.

    Raises:
        ModelCorrupt: the file is not a tokenizer, or there is none and it cannot be fetched; says what to do.
    """
    import tokenizers

    from whisper_api.engine.models.entry import HubSource
    from whisper_api.engine.models.hub import cached_snapshot, hub_is_offline

    repository = "openai/whisper-tiny" + ("" if multilingual else ".en")
    file = directory / TOKENIZER
    if not file.is_file():
        cached = cached_snapshot(HubSource(repository), (TOKENIZER,))
        if cached is not None:
            file = cached / TOKENIZER
        elif offline or hub_is_offline():
            raise ModelCorrupt(
                f"{directory} has no {TOKENIZER}, and downloads are switched off: copy the file there from the model "
                f"that this one was made from, or from {repository}"
            )
    try:
        if file.is_file():
            return tokenizers.Tokenizer.from_file(str(file))
        return tokenizers.Tokenizer.from_pretrained(repository)
    except Exception as error:
        raise ModelCorrupt(f"{directory} has no tokenizer that can be read: {error}") from error
