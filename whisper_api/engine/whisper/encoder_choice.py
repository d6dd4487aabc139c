"""Which of two encoders a model on a GPU uses: torch's, or CTranslate2's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from whisper_api.engine.worker.device import release_cached_memory
from whisper_api.engine.worker.device_errors import clear_frames, first_line, kind_of

if TYPE_CHECKING:
    import torch

    from whisper_api.engine.whisper.torch_encoder import TorchEncoder

__all__ = ["ENCODERS", "EncoderChoice", "compared"]

log = logging.getLogger(__name__)

ENCODERS = ("auto", "torch", "ctranslate2")
# The greatest difference between the two encoders, as a fraction of the output's size. With Whisper base it is 0.00001
# in float32, 0.03 in bfloat16 and 0.1 where CTranslate2 computes in int8. A wrong matrix makes it 0.3 or more.
TOLERANCE = 0.2
# The weights may take this part of the memory that is free beside CTranslate2's model, which keeps its own encoder.
MEMORY_FACTOR = 4


@dataclass(frozen=True)
class EncoderChoice:
    """The encoder of a model.

    Attributes:
        in_torch: torch's; None for CTranslate2's own.
        reason: why, in a few words.
    """

    in_torch: TorchEncoder | None
    reason: str

    @property
    def name(self) -> Literal["torch", "ctranslate2"]:
        """The name of the encoder in the configuration."""
        return "ctranslate2" if self.in_torch is None else "torch"

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def compared(
    load: Callable[[], TorchEncoder],
    reference: Callable[[torch.Tensor], torch.Tensor],
    features: Callable[[], torch.Tensor],
    size: int,
    free: int | None,
) -> EncoderChoice:
    """Torch's encoder, if there is memory for it and it gives what CTranslate2's encoder gives; else CTranslate2's.

    Args:
        load: loads torch's encoder.
        reference: CTranslate2's output for features, on the device.
        features: makes the features of a few windows, on the device.
        size: bytes of the weights of torch's encoder.
        free: free bytes of the device; None when unknown.

    Raises:
        RuntimeError: the device is lost.
    """
    if free is not None and size * MEMORY_FACTOR > free:
        return _decided(None, "torch's weights would take too much of the free memory", logging.INFO)
    try:
        given = features()
        encoder = load()
        expected = reference(given).float()
        error = float((encoder(given).float() - expected).norm() / expected.norm())
    except Exception as problem:
        if kind_of(problem) == "sticky":
            raise
        failure = problem
    else:
        # A NaN is no agreement.
        if error <= TOLERANCE:
            return _decided(encoder, f"differs from CTranslate2's by {error:.1g} on speech", logging.INFO)
        return _decided(None, f"torch's differs by {error:.2f} on speech", logging.WARNING)
    log.warning("Whisper's encoder in torch cannot be used: %s", first_line(failure))
    # Outside of the handler, whose error holds what was loaded so far.
    clear_frames(failure)
    release_cached_memory()
    return _decided(None, "torch's cannot be used; the log says why", logging.WARNING)


def _decided(encoder: TorchEncoder | None, reason: str, level: int) -> EncoderChoice:
    choice = EncoderChoice(encoder, reason)
    log.log(level, "Whisper's encoder runs in %s", choice)
    return choice
