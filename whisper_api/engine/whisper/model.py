"""The interface of a resident Whisper model, with the values and tables that its two implementations share.

CTranslate2 runs the model on a GPU (``ctranslate2.py``), and our own ONNX graphs run it on a CPU (``onnx/``). The model
is that of Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022).
"""

from __future__ import annotations

import functools
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.languages import CODES
from whisper_api.engine.whisper.tokens import token_bytes
from whisper_api.errors import ModelCorrupt

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

    from whisper_api.engine.worker.fair_queue import BatchOperation

FRAMES_PER_SECOND = 100
# Positions of the encoder's output.
POSITIONS_PER_SECOND = 50
MAX_FRAMES = 3000
# Most tokens that one decoding generates: half of Whisper's text context. The other half is for the prompt.
MAX_NEW_TOKENS = 224
# The fastest speech in the scripts with the most tokens stays below this rate; a higher rate means a repetition loop.
MAX_TOKENS_PER_SECOND = 15
EXTRA_TOKENS = 30
# Number of texts that sampling draws for a window, as in OpenAI's code.
BEST_OF = 5
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One window for the decoder.

    Attributes:
        input: float32, shape (samples,), 16 kHz, at most as long as the padded window; or the encoder's output of
            :class:`Detected`, with :attr:`DecodeSettings.encoded`.
        prompt: tokens up to and including ``<|notimestamps|>``.
        speech_frames: frames of audio before the padding, 100 a second.
        following: number of later windows of the same recording.
        alone: whether to decode the window at once and in its own batch, because a caller waits for its text.
        restarted: whether an earlier attempt ended with an error.
    """

    input: Any
    prompt: tuple[int, ...]
    speech_frames: int
    following: int = 0
    alone: bool = False
    restarted: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class DetectionInput:
    """One window whose language is to be detected.

    Attributes:
        samples: float32, shape (samples,), 16 kHz, at most as long as the padded window.
        parts: first position and position after the last, 50 a second, of parts of the window whose languages are
            detected too.
    """

    samples: NDArray[np.float32]
    parts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Detected:
    """The languages of a window.

    Attributes:
        encoded: the encoder's output, shape (positions, width); on a GPU a tensor, which stays there until the
            decoding.
        languages: language code to probability, in the whole window.
        parts: the same in each part. The encoder has heard the whole window, so the language of a part is clearer than
            in the part alone, but what is around the part has some influence.
    """

    encoded: Any
    languages: dict[str, float]
    parts: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """The times of tokens, from dynamic time warping (DTW) over the decoder's cross-attention.

    Attributes:
        tokens, frames: int64, shape (path,): token and frame of each step of the path; a frame lasts 20 ms.
        probabilities: float64, shape (tokens,): probability of each text token, given the tokens before.
    """

    tokens: NDArray[np.int64]
    frames: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class DecodedTokens:
    """The decoded text of one window.

    Attributes:
        tokens: text tokens, without special tokens.
        avg_logprob: mean log probability per token, including the end of text.
        no_speech_prob: probability that the window contains no speech.
        capped: whether the token cap ended the text.
        attention: times of the tokens; None unless the settings request them and the model can give them.
        logprobs: natural logarithm of each token's probability; empty as for ``attention``. On a CPU, the
            search computes them, given the prompt and among the allowed tokens. CTranslate2 does not return them, so on
            a GPU the text is fed once more, without the prompt, and the probabilities are among all text tokens.
        languages: language code to probability; empty where the decoder does not tell (CTranslate2, English-only
            models).
        encoded: the encoder's output, for another decoding of the window; None unless the settings keep it.
    """

    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    capped: bool
    attention: Attention | None
    logprobs: tuple[float, ...] = ()
    languages: dict[str, float] = field(default_factory=dict)
    encoded: Any = None


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of a decoding: beam search at temperature 0, sampling above.

    Attributes:
        frames: length of a padded window, 100 a second.
        prompt_length: number of tokens in every row's prompt.
        beam_size: number of beams at temperature 0.
        temperature: divisor of the logits in sampling.
        suppress: tokens that are never generated.
        encoded: whether the rows contain the encoder's output instead of samples.
        align_from: the start sequence for word times from cross-attention; None for no word times.
        align_tokens: only texts with one of these tokens get word times; None for all texts.
        logprobs_from: the start sequence for log probabilities; None for no log probabilities.
        keep_encoded: whether to return the encoder's output. Only where :attr:`Whisper.keeps_encoded` says so.
    """

    frames: int
    prompt_length: int
    beam_size: int
    temperature: float
    suppress: tuple[int, ...]
    encoded: bool = False
    align_from: tuple[int, ...] | None = None
    align_tokens: frozenset[int] | None = None
    logprobs_from: tuple[int, ...] | None = None
    keep_encoded: bool = False

    def aligns(self, tokens: tuple[int, ...]) -> bool:
        """Whether a text gets word times from cross-attention."""
        wanted = self.align_tokens is None or not self.align_tokens.isdisjoint(tokens)
        return self.align_from is not None and bool(tokens) and wanted


def token_cap(frames: int) -> int:
    """The most tokens that a window of so many frames may generate."""
    return min(MAX_NEW_TOKENS, int(frames / FRAMES_PER_SECOND * MAX_TOKENS_PER_SECOND) + EXTRA_TOKENS)


class Whisper(ABC):
    """A loaded model. It keeps no state of any request; its tables are computed once and never change.

    Args:
        directory: the directory of the model's files.
        mels: number of mel bands of its features.
        multilingual: False for English-only models.
        offline: whether downloads are forbidden.
    """

    tells_language: ClassVar[bool] = False
    """Whether every decoding tells the window's languages, and those of a window's parts take no time."""
    keeps_encoded: ClassVar[bool] = False
    """Whether a decoding can return the encoder's output. On a GPU, its memory is worth more than its time."""

    def __init__(self, directory: Path, mels: int, *, multilingual: bool, offline: bool = False) -> None:
        self.mels = mels
        self.multilingual = multilingual
        self._tokenizers = load_tokenizer(directory, multilingual=multilingual, offline=offline)

    @abstractmethod
    def encode_and_detect(self, frames: int, max_items: int, max_cost: float) -> BatchOperation:
        """The operation that encodes windows and detects their languages: :class:`DetectionInput` to :class:`Detected`.

        Args:
            frames: length of a padded window, 100 a second.
            max_items: largest number of windows in a batch.
            max_cost: largest cost of a batch, in seconds of audio.
        """

    @abstractmethod
    def decode(self, settings: DecodeSettings, max_items: int, max_cost: float) -> BatchOperation:
        """The operation that decodes windows: :class:`Row` to :class:`DecodedTokens`.

        Args:
            settings: settings of the decoding.
            max_items: largest number of windows in a batch.
            max_cost: largest cost of a batch, in seconds of audio.
        """

    @abstractmethod
    def unload(self) -> None:
        """Free the memory. The model cannot be used any more."""

    @functools.cached_property
    def languages(self) -> frozenset[str]:
        """Codes of the languages that the model recognises."""
        return frozenset(self.language_tokens) if self.multilingual else frozenset({"en"})

    @functools.cached_property
    def language_tokens(self) -> dict[str, int]:
        """Language code to token, for every language of the tokenizer."""
        tokens = {code: self._tokenizers.token_to_id(f"<|{code}|>") for code in CODES}
        return {code: token for code, token in tokens.items() if token is not None}

    def tokenizer(self, language: str, task: str = "transcribe") -> Tokenizer:
        """A tokenizer for one language and task.

        Args:
            language: code of the spoken language.
            task: ``transcribe`` or ``translate``.
        """
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._tokenizers, self.multilingual, task=task, language=language)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of a text token; a token may be only a part of a character."""
        return token_bytes(self._tokenizers.id_to_token(token) or "")

    @functools.cached_property
    def end_of_text(self) -> int:
        """The token ``<|endoftext|>``; text tokens have smaller ids."""
        return int(self._tokenizers.token_to_id("<|endoftext|>"))

    @functools.cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens that are never generated: symbols that nobody speaks, and the task tokens."""
        from faster_whisper.transcribe import get_suppressed_tokens

        return tuple(get_suppressed_tokens(self.tokenizer("en"), [-1]))

    @functools.cached_property
    def numeral_tokens(self) -> tuple[int, ...]:
        """Tokens that contain a digit, a percent sign or a currency sign."""
        texts = self._tokenizers.decode_batch([[token] for token in range(self.end_of_text)], skip_special_tokens=False)
        signs = frozenset("0123456789%$£€")
        return tuple(token for token, text in enumerate(texts) if not signs.isdisjoint(text))

    @functools.cached_property
    def unspelled_tokens(self) -> frozenset[int]:
        """Tokens with a digit or a symbol, which is read as words of other letters."""
        texts = self._tokenizers.decode_batch([[token] for token in range(self.end_of_text)], skip_special_tokens=False)
        return frozenset(token for token, text in enumerate(texts) if any(map(is_unspelled, text)))


def is_unspelled(character: str) -> bool:
    """Whether a character is a digit or a symbol, which is read as words of other letters."""
    # U+FFFD is a part of a character.
    symbol = unicodedata.category(character) in ("Nd", "Nl", "No", "Sc", "Sm", "So") and character != "\ufffd"
    return symbol or character in "%&@#"


def load_tokenizer(directory: Path, *, multilingual: bool, offline: bool = False) -> Any:
    """The model's tokenizer, or the tokenizer of OpenAI's models for a directory without one.

    Args:
        directory: the directory of the model's files.
        multilingual: False for English-only models.
        offline: whether requests to the model hub are forbidden. The hub's cache on this machine is still used.

    Raises:
        ModelCorrupt: the file is not a tokenizer, or the tokenizer is missing and cannot be downloaded; the message
            says what to do.
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
                f"{directory} has no {TOKENIZER}, and downloads are switched off: copy the file to that directory from "
                f"the original model or from {repository}"
            )
    try:
        if file.is_file():
            return tokenizers.Tokenizer.from_file(str(file))
        return tokenizers.Tokenizer.from_pretrained(repository)
    except Exception as error:
        raise ModelCorrupt(f"the tokenizer of {directory} cannot be read: {error}") from error
