"""Whisper on a GPU: CTranslate2 runs the decoder in batches, and torch or CTranslate2 the encoder.

A batch may mix languages, tasks and prompts when ``<|startoftranscript|>`` has the same index in every row, so only
operations with the same prompt length are equal.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.audio.sample import speech
from whisper_api.engine.whisper.batch_memory import MOST_WINDOWS, BatchMemory
from whisper_api.engine.whisper.ct2_file import read_shapes
from whisper_api.engine.whisper.model import (
    BEST_OF,
    Attention,
    DecodedTokens,
    DecodeSettings,
    Detected,
    DetectionInput,
    Row,
    Whisper,
    token_cap,
)
from whisper_api.engine.whisper.torch_encoder import EncoderChoice, compared, completed, encoder_bytes, load_encoder
from whisper_api.engine.worker.device import release_cached_memory
from whisper_api.engine.worker.device_errors import first_line, kind_of
from whisper_api.errors import ModelCorrupt

if TYPE_CHECKING:
    import torch

    from whisper_api.engine.whisper.onnx.whisper_graphs import Shape

log = logging.getLogger(__name__)

# To share a batch, a window is padded to at most this multiple of its length.
MOST_PADDING = 2

Floats = NDArray[np.float32]
# Length of the windows of speech on which the encoders are compared.
COMPARED_FRAMES = 1000
# The part of a compute type's name that tells the numbers of the encoder's output.
HALVES = ("bfloat16", "float16")


class Ct2Whisper(Whisper):
    """A model that CTranslate2 runs.

    Args:
        directory: the directory of the model's files.
        device: ``cpu`` or ``cuda``.
        device_index: number of the GPU.
        compute_type: a compute type of CTranslate2: int8, float16 ...
        threads: number of CPU threads of one call.
        lanes: number of simultaneous calls.
        offline: whether downloads are forbidden.
        free_memory: returns the free bytes of the device, or None when they are unknown. Of what is free after the
            model was loaded, batches take at most their share.
        encoder: ``torch``, ``ctranslate2``, or ``auto``: on a GPU with numbers of 16 bits, torch's if it fits into the
            memory and agrees with CTranslate2's on speech.

    Attributes:
        encoder: the encoder that was chosen.

    Raises:
        ModelCorrupt: the files do not belong to a Whisper model.
    """

    def __init__(
        self,
        directory: Path,
        *,
        device: str,
        device_index: int,
        compute_type: str,
        threads: int,
        lanes: int = 1,
        offline: bool = False,
        free_memory: Callable[[], int | None] = lambda: None,
        encoder: str = "auto",
    ) -> None:
        import ctranslate2

        try:
            self.ct2 = ctranslate2.models.Whisper(
                str(directory),
                device=device,
                device_index=device_index,
                compute_type=compute_type,
                # Replicas share the weights, and each has its own CUDA stream, so one encodes while another decodes.
                inter_threads=lanes,
                intra_threads=threads,
            )
        except (RuntimeError, ValueError, OSError) as error:
            if kind_of(error) != "other" or any(word in str(error).lower() for word in ("cuda", "cublas", "cudnn")):
                raise
            raise ModelCorrupt(f"{directory} cannot be loaded as a Whisper model: {error}") from error
        self._directory = directory
        # Names this model in what the worker learns; another model may get the id() of this one later.
        self.key = object()
        multilingual = bool(self.ct2.is_multilingual)
        super().__init__(directory, int(self.ct2.n_mels), multilingual=multilingual, offline=offline)
        self._numbers = next((name for name in HALVES if name in self.ct2.compute_type), "float32")
        self._number_bytes = 4 if self._numbers == "float32" else 2
        self._forced = encoder != "auto"
        self.encoder = self._choose_encoder(encoder, free_memory)
        # What torch keeps for later is free as well.
        release_cached_memory()
        self._memory = BatchMemory.of(directory, self.shape, self._number_bytes, free_memory(), lanes)

    def _choose_encoder(self, asked: str, free_memory: Callable[[], int | None]) -> EncoderChoice:
        path = self._directory / "model.bin"
        load = functools.partial(load_encoder, path, self.shape, self._torch_device, self._numbers)
        if asked != "auto":
            return EncoderChoice(load() if asked == "torch" else None, "as configured")
        if not self.prefers_torch:
            return EncoderChoice(None, f"is as fast in {self.ct2.compute_type}")
        import torch

        # Speech rather than noise, which excites other parts of the network. And now rather than at the first batch of
        # a job: the sizes of batches and the memory of the model depend on the choice.
        release_cached_memory()
        sound = speech(COMPARED_FRAMES / 100)
        return compared(
            load,
            lambda features: torch.stack(self.rows_of(self.ct2.encode(self.view(features)))),
            lambda: self.features([sound, sound[: len(sound) // 2]], COMPARED_FRAMES),
            encoder_bytes(path, self._number_bytes),
            free_memory(),
        )

    @property
    def prefers_torch(self) -> bool:
        """Whether torch's encoder is faster here: on a GPU with numbers of 16 bits."""
        return bool(self.ct2.device == "cuda") and self._numbers != "float32"

    @property
    def _torch_device(self) -> str:
        return "cpu" if self.ct2.device == "cpu" else f"cuda:{self.ct2.device_index[0]}"

    def encode_and_detect(self, frames: int, max_items: int, max_cost: float) -> Ct2EncodeAndDetect:
        rows = self._memory.windows_to_encode(frames, in_torch=self.encoder.in_torch is not None)
        return Ct2EncodeAndDetect(self, min(max_items, rows), max_cost, frames)

    def decode(self, settings: DecodeSettings, max_items: int, max_cost: float) -> Ct2Decode:
        rows = self._memory.windows_to_decode(settings, in_torch=self.encoder.in_torch is not None)
        return Ct2Decode(self, min(max_items, rows), max_cost, settings)

    @functools.cached_property
    def shape(self) -> Shape:
        """The model's dimensions."""
        from whisper_api.engine.whisper.onnx.whisper_graphs import shape_of

        return shape_of(read_shapes(self._directory / "model.bin"))

    def unload(self) -> None:
        self.encoder = EncoderChoice(None, "unloaded")
        self.ct2.unload_model()
        # With torch's and CTranslate2's common pool of memory, this returns what both have freed.
        release_cached_memory()

    def encode(self, windows: Sequence[Floats], frames: int) -> Any:
        """Encode windows on the device.

        Args:
            windows: float32, shape (samples,) each, 16 kHz.
            frames: length of a padded window, 100 a second.

        Returns:
            A ``StorageView`` of shape (windows, positions, width).

        Raises:
            MemoryError: there are too many windows for CTranslate2's encoder, which has taken the place of torch's.
        """
        features, encoder = self.features(windows, frames), self.encoder.in_torch
        if encoder is not None:
            try:
                return self.view(encoder(features))
            except Exception as error:
                if self._forced or kind_of(error) != "other":
                    raise
                log.warning("Whisper's encoder runs in CTranslate2 from now on: torch's failed: %s", first_line(error))
                self.encoder = EncoderChoice(None, "torch's failed; the log says why")
        if len(windows) > MOST_WINDOWS:
            # Batches that were planned for torch's encoder. The worker halves them.
            raise MemoryError(f"{len(windows)} windows are too many for CTranslate2's encoder")
        return self.ct2.encode(self.view(features))

    def features(self, windows: Sequence[Floats], frames: int) -> torch.Tensor:
        """The log-mel features of windows as in :meth:`encode`: shape (windows, mels, frames), on the device."""
        from whisper_api.engine.audio.mel import log_mel_on_device

        return log_mel_on_device(windows, frames, self.mels, self._torch_device)

    def view(self, tensor: torch.Tensor) -> Any:
        """A ``StorageView`` of a tensor's memory, without a copy; it keeps the tensor alive."""
        import ctranslate2

        if self.ct2.device == "cpu":
            return ctranslate2.StorageView.from_array(tensor.numpy())
        view = ctranslate2.StorageView.from_array(tensor)
        if view.device_index != self.ct2.device_index[0]:
            # StorageView assumes that the array is on the thread's current device.
            view = ctranslate2.StorageView.from_array(tensor.cpu().numpy())
        return view

    def rows_of(self, encoded: Any) -> list[torch.Tensor]:
        """The rows of an encoder's output. They stay on the device until the decoding, and none keeps its batch."""
        import ctranslate2
        import torch

        if encoded.dtype == ctranslate2.DataType.bfloat16:  # no other library takes it
            encoded = encoded.to(ctranslate2.DataType.float32)
        array = np.asarray(encoded) if encoded.device == "cpu" else encoded
        rows = [row.clone() for row in torch.as_tensor(array, device=self._torch_device)]
        completed(rows[-1])
        return rows

    def joined(self, rows: Sequence[Any]) -> Any:
        """A ``StorageView`` of rows that :meth:`rows_of` gave."""
        import torch

        return self.view(completed(torch.stack(list(rows))))


@dataclass(frozen=True)
class _Ct2Operation:
    whisper: Ct2Whisper
    max_items: int
    max_cost: float


@dataclass(frozen=True)
class Ct2EncodeAndDetect(_Ct2Operation):
    """Encodes windows of ``frames``, and detects the language of each window from the encoder's output."""

    frames: int

    @property
    def memory_key(self) -> Hashable:
        """As in :class:`BatchOperation`."""
        return ("encode_and_detect", self.whisper.key, self.frames)

    def run(self, inputs: Sequence[DetectionInput]) -> list[Detected]:
        """Encode the windows, and return the languages of each and of its parts."""
        encoded = self.whisper.encode([each.samples for each in inputs], self.frames)
        found = self._languages(encoded)
        rows = self.whisper.rows_of(encoded)
        return [
            Detected(row, languages, tuple(self._of_part(row, first, after) for first, after in each.parts))
            for row, languages, each in zip(rows, found, inputs, strict=True)
        ]

    def _of_part(self, row: torch.Tensor, first: int, after: int) -> dict[str, float]:
        """The languages of a part of a window. CTranslate2 has no mask, so parts of unequal length share no batch."""
        if after - first == self.whisper.mels:
            # CTranslate2 takes as many positions as there are mel bands for features, and would encode them.
            after -= 1
        return self._languages(self.whisper.joined([row[first:after]]))[0]

    def _languages(self, encoded: Any) -> list[dict[str, float]]:
        detected = self.whisper.ct2.detect_language(encoded)
        return [{token[2:-2]: float(probability) for token, probability in row} for row in detected]


@dataclass(frozen=True)
class Ct2Decode(_Ct2Operation):
    """Decodes windows into text tokens.

    Word times require the same start sequence in all rows, so rows in different languages share a batch only without
    word times.
    """

    settings: DecodeSettings

    # Number of frames over which the attention is smoothed, as in OpenAI's code and faster-whisper.
    median_filter_width: ClassVar[int] = 7

    @property
    def memory_key(self) -> Hashable:
        """As in :class:`BatchOperation`."""
        settings = self.settings
        search = settings.beam_size if settings.temperature == 0 else "drawn"
        timed = (settings.align_from or settings.logprobs_from) is not None
        return ("decode", self.whisper.key, settings.frames, search, timed)

    def merged(self, other: object) -> Ct2Decode | None:
        """The operation that decodes the windows of both, with shorter windows padded to the longer length."""
        if not isinstance(other, Ct2Decode) or self.settings.encoded or other.settings.encoded:
            return None
        longer, shorter = sorted((self, other), key=lambda each: each.settings.frames, reverse=True)
        if longer.settings.frames > MOST_PADDING * shorter.settings.frames:
            return None
        settings = replace(shorter.settings, frames=longer.settings.frames)
        same = replace(shorter, settings=settings, max_items=longer.max_items)
        return longer if same == longer else None

    def run(self, inputs: Sequence[Row]) -> list[DecodedTokens]:
        """Return one result for each row."""
        settings, model = self.settings, self.whisper.ct2
        if settings.encoded:
            encoder_output = self.whisper.joined([row.input for row in inputs])
        else:
            encoder_output = self.whisper.encode([row.input for row in inputs], settings.frames)
        search: dict[str, Any] = (
            {"beam_size": settings.beam_size, "patience": 1.0}
            if settings.temperature == 0
            else {
                "beam_size": 1,
                "num_hypotheses": BEST_OF,
                "sampling_topk": 0,
                "sampling_temperature": settings.temperature,
            }
        )
        cap = token_cap(settings.frames)
        results = model.generate(
            encoder_output,
            [list(row.prompt) for row in inputs],
            # CTranslate2 generates at most half of max_length, or max_length less the prompt without its last token.
            max_length=max(2 * cap, cap + settings.prompt_length - 1),
            suppress_blank=True,
            suppress_tokens=list(settings.suppress),
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )
        end = self.whisper.end_of_text
        texts = [tuple(token for token in result.sequences_ids[0] if token < end) for result in results]
        timed = self._align(encoder_output, texts, inputs)
        decoded = []
        for result, tokens, attention in zip(results, texts, timed, strict=True):
            length = len(result.sequences_ids[0])
            # The score is divided by the length without the end of text, but the mean includes the end of text.
            logprob = float(result.scores[0]) * length / (length + 1)
            logprobs: tuple[float, ...] = ()
            if settings.logprobs_from is not None and attention is not None:
                logprobs = tuple(np.log(np.maximum(attention.probabilities, np.finfo(np.float64).tiny)).tolist())
            times = attention if settings.aligns(tokens) else None
            decoded.append(DecodedTokens(tokens, logprob, float(result.no_speech_prob), length >= cap, times, logprobs))
        return decoded

    def _align(
        self, encoder_output: Any, texts: Sequence[tuple[int, ...]], inputs: Sequence[Row]
    ) -> list[Attention | None]:
        settings = self.settings
        start = settings.align_from or settings.logprobs_from
        wanted = any(texts) if settings.logprobs_from is not None else any(map(settings.aligns, texts))
        if start is None or not wanted:
            return [None] * len(texts)
        try:
            results = self.whisper.ct2.align(
                encoder_output,
                list(start),
                [list(tokens) for tokens in texts],
                [max(2, min(row.speech_frames, settings.frames)) for row in inputs],
                median_filter_width=self.median_filter_width,
            )
        except RuntimeError as error:
            # The model names no heads for alignment, or CTranslate2 cannot run it on this GPU: the text is there.
            if kind_of(error) != "other":
                raise
            log.warning("Whisper's cross-attention cannot be had: %s", error)
            return [None] * len(texts)
        return [
            Attention(
                np.array([pair[0] for pair in result.alignments], np.int64),
                np.array([pair[1] for pair in result.alignments], np.int64),
                np.array(result.text_token_probs, np.float64),
            )
            for result in results
        ]
