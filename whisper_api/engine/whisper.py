"""The resident Whisper model, and the operations that run it: judge the language, decode, time the words.

Decoding is CTranslate2's; a batch may mix languages, tasks and prompts as long as ``<|startoftranscript|>`` stands at
the same index in every row, so the prompt's length is part of what makes two operations equal.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from whisper_api.errors import ModelCorrupt

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

__all__ = ["Attention", "DecodeOperation", "Decoded", "ListenOperation", "Row", "Whisper", "WhisperSource"]

SAMPLE_RATE = 16_000
FRAMES_PER_SECOND = 100
MAX_FRAMES = 3000
# Half of Whisper's text context: what one decoding may generate. The other half is for the prompt.
MAX_NEW_TOKENS = 224
# The fastest speech in the most token-hungry scripts stays below this; more means that the decoder goes in circles.
MAX_TOKENS_PER_SECOND = 15
SPARE_TOKENS = 30
BEST_OF = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class WhisperSource:
    """Which Whisper model, and how it computes.

    Attributes:
        path: a directory in CTranslate2's format.
        device, device_index: ``cpu`` or ``cuda``, and which one.
        compute_type: as CTranslate2 names them: int8, float16 ...
        threads: for the CPU.
    """

    path: str
    device: str
    device_index: int
    compute_type: str
    threads: int

    def estimated_bytes(self) -> int:
        size = (Path(self.path) / "model.bin").stat().st_size
        # Published files hold float16: weights in int8 are half of that, in float32 twice as much.
        return size * 2 if self.compute_type == "float32" else size // 2 if "int8" in self.compute_type else size

    def load(self) -> Whisper:
        from faster_whisper import WhisperModel

        try:
            model = WhisperModel(
                self.path,
                device=self.device,
                device_index=self.device_index,
                compute_type=self.compute_type,
                cpu_threads=self.threads,
            )
        except (RuntimeError, ValueError, OSError) as error:
            if "CUDA" in str(error) or "memory" in str(error).lower():
                raise
            raise ModelCorrupt(f"{self.path} cannot be loaded as a Whisper model: {error}") from error
        return Whisper(model)

    def unload(self, model: Whisper) -> None:
        model.ct2.unload_model()


class Whisper:
    """A loaded model. Holds nothing of any request; its tables are computed once and never change."""

    def __init__(self, model: Any) -> None:
        self.ct2 = model.model
        self._tokenizers = model.hf_tokenizer
        self._features = model.feature_extractor
        self.multilingual: bool = bool(model.model.is_multilingual)
        self.mels: int = int(model.model.n_mels)

    @functools.cached_property
    def languages(self) -> frozenset[str]:
        """Codes of the languages the model knows."""
        from faster_whisper.tokenizer import _LANGUAGE_CODES

        if not self.multilingual:
            return frozenset({"en"})
        return frozenset(c for c in _LANGUAGE_CODES if self._tokenizers.token_to_id(f"<|{c}|>") is not None)

    def tokenizer(self, language: str, task: str = "transcribe") -> Tokenizer:
        """A tokenizer for one language and task."""
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._tokenizers, self.multilingual, task=task, language=language)

    @functools.cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens that are never sampled: symbols nobody speaks, and the task tokens."""
        from faster_whisper.transcribe import get_suppressed_tokens

        return tuple(get_suppressed_tokens(self.tokenizer("en"), [-1]))

    @functools.cached_property
    def numeral_tokens(self) -> tuple[int, ...]:
        """Tokens with a digit, a percent or a currency sign in them."""
        end = self.tokenizer("en").eot
        texts = self._tokenizers.decode_batch([[token] for token in range(end)], skip_special_tokens=False)
        signs = frozenset("0123456789%$£€")
        return tuple(token for token, text in enumerate(texts) if not signs.isdisjoint(text))

    def features(self, audio: Floats, frames: int) -> Floats:
        """Log-mel features of a piece of audio, padded with silence.

        Args:
            audio: float32, shape (samples,), 16 kHz.
            frames: how many to give, 100 a second; longer audio is cut.

        Returns:
            float32, shape (mels, frames).
        """
        samples = frames * (SAMPLE_RATE // FRAMES_PER_SECOND)
        audio = np.pad(audio[:samples], (0, max(0, samples - len(audio))))
        return np.ascontiguousarray(self._features(audio, padding=0)[:, :frames], dtype=np.float32)


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One row of a batch.

    Attributes:
        input: features (mels, frames), or, where the operation says so, the encoder's output (positions, width).
        prompt: tokens up to and including ``<|notimestamps|>``.
        speech_frames: frames of audio before the padding begins.
    """

    input: NDArray[Any]
    prompt: tuple[int, ...]
    speech_frames: int


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
class Decoded:
    """What one decoding gave.

    Attributes:
        tokens: text tokens, without special ones.
        avg_logprob: mean log probability per token, the end of text included.
        no_speech_prob: probability that the window holds no speech.
        capped: whether it ended at the token cap instead of by itself.
        attention: where the tokens are heard, when the operation asks for it.
    """

    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    capped: bool
    attention: Attention | None


@dataclass(frozen=True)
class _WhisperOperation:
    whisper: Whisper
    frames: int
    max_items: int
    max_cost: float

    @property
    def memory_key(self) -> Hashable:
        return (type(self).__name__, id(self.whisper), self.frames)

    def _encode(self, features: Sequence[NDArray[Any]]) -> Any:
        import ctranslate2

        return self.whisper.ct2.encode(ctranslate2.StorageView.from_array(np.stack(features)))


@dataclass(frozen=True)
class ListenOperation(_WhisperOperation):
    """Encode windows, and judge each one's language from the encoder's output, which is kept for decoding.

    Takes features of shape (mels, frames); gives the encoder's output of shape (positions, width) and the probability
    of each language.
    """

    def run(self, inputs: Sequence[Floats]) -> list[tuple[NDArray[Any], dict[str, float]]]:
        encoded = self._encode(inputs)
        judged = self.whisper.ct2.detect_language(encoded)
        rows = _to_numpy(encoded)
        return [
            (row, {token[2:-2]: float(probability) for token, probability in languages})
            for row, languages in zip(rows, judged, strict=True)
        ]


@dataclass(frozen=True)
class DecodeOperation(_WhisperOperation):
    """Decode windows into text tokens, by beam search or, above temperature 0, by sampling.

    Attributes:
        prompt_length: of every row.
        beam_size: for temperature 0.
        temperature: for sampling.
        suppress: tokens that are never sampled.
        encoded: whether the rows hold the encoder's output instead of features.
        align_from: the start sequence for word times from cross-attention, None for no word times. It must be the same
            in all rows, so rows in different languages share a batch only without it.
    """

    prompt_length: int
    beam_size: int
    temperature: float
    suppress: tuple[int, ...]
    encoded: bool = False
    align_from: tuple[int, ...] | None = None

    # Whisper's own, which faster-whisper uses as well: frames over which the attention is smoothed.
    median_filter_width: ClassVar[int] = 7

    @property
    def token_cap(self) -> int:
        """The most tokens that one row may give."""
        seconds = self.frames / FRAMES_PER_SECOND
        return min(MAX_NEW_TOKENS, int(seconds * MAX_TOKENS_PER_SECOND) + SPARE_TOKENS)

    def run(self, inputs: Sequence[Row]) -> list[Decoded]:
        if self.encoded:
            encoder_output = _from_numpy(np.stack([row.input for row in inputs]))
        else:
            encoder_output = self._encode([row.input for row in inputs])
        search: dict[str, Any] = (
            {"beam_size": self.beam_size, "patience": 1.0}
            if self.temperature == 0
            else {
                "beam_size": 1,
                "num_hypotheses": BEST_OF,
                "sampling_topk": 0,
                "sampling_temperature": self.temperature,
            }
        )
        cap = self.token_cap
        results = self.whisper.ct2.generate(
            encoder_output,
            [list(row.prompt) for row in inputs],
            # CTranslate2 generates at most half of max_length, or what the prompt but for its last token leaves of it.
            max_length=max(2 * cap, cap + self.prompt_length - 1),
            suppress_blank=True,
            suppress_tokens=list(self.suppress),
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )
        end = self.whisper.tokenizer("en").eot
        texts = [tuple(token for token in result.sequences_ids[0] if token < end) for result in results]
        timed = self._align(encoder_output, texts, inputs)
        decoded = []
        for result, tokens, attention in zip(results, texts, timed, strict=True):
            length = len(result.sequences_ids[0])
            # The score is normalised by length; the end-of-text token counts in the mean but not in the length.
            logprob = float(result.scores[0]) * length / (length + 1)
            decoded.append(Decoded(tokens, logprob, float(result.no_speech_prob), length >= cap, attention))
        return decoded

    def _align(
        self, encoder_output: Any, texts: Sequence[tuple[int, ...]], inputs: Sequence[Row]
    ) -> list[Attention | None]:
        if self.align_from is None or not any(texts):
            return [None] * len(texts)
        results = self.whisper.ct2.align(
            encoder_output,
            list(self.align_from),
            [list(tokens) for tokens in texts],
            [max(2, min(row.speech_frames, self.frames)) for row in inputs],
            median_filter_width=self.median_filter_width,
        )
        return [
            Attention(
                np.array([pair[0] for pair in result.alignments], np.int64),
                np.array([pair[1] for pair in result.alignments], np.int64),
                np.array(result.text_token_probs, np.float64),
            )
            for result in results
        ]


def _to_numpy(view: Any) -> NDArray[Any]:
    import ctranslate2

    if view.device != "cpu":
        view = view.to_device(ctranslate2.Device.cpu)
    if view.dtype == ctranslate2.DataType.bfloat16:  # NumPy has no such type
        view = view.to(ctranslate2.DataType.float32)
    # A copy: the view's memory belongs to the batch.
    return np.array(view)


def _from_numpy(array: NDArray[Any]) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))
