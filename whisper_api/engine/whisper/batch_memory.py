"""How many windows fit into a GPU's memory: the bytes of a row of a batch.

The terms are the tensors of CTranslate2's encoder and decoder (``src/layers/transformer.cc``) and of the encoder in
torch. A batch first takes the encoder's workspace, and then the decoder's caches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.engine.audio.mel import HOP
from whisper_api.engine.whisper.model import BEST_OF, DecodeSettings, token_cap
from whisper_api.engine.whisper.torch_encoder import AT_ONCE

if TYPE_CHECKING:
    from whisper_api.engine.whisper.onnx.whisper_graphs import Shape

# CTranslate2's softmax indexes the attention weights of a batch with 32 bits. A larger batch overwrites weights of the
# first rows. With the 20 heads of the largest models, 95 windows of 30 s fit.
MOST_WINDOWS = (2**32 - 1) // (20 * 1500**2)
# The decoder's softmax over at most 448 tokens has the same limit.
MOST_DECODED = (2**32 - 1) // (20 * 1500 * 448)

# What stays free of the memory that a GPU has beside Whisper's weights: the weights and workspaces of alignment and
# diarization (of large models, 1.3 GB and 2 GB) and the copies of recordings (device_copies.COPY_BYTES, 0.5 GB), but
# at most a third of it.
RESERVED_BYTES = 4 << 30
RESERVED_SHARE = 1 / 3
# Part of the rest that batches may use. The other part is lost between blocks of different sizes.
USABLE_SHARE = 0.9


# Most heads whose attention gives word times, of the models whose heads are not known.
MOST_TIMED_HEADS = 23


def lane_bytes(free: int, lanes: int, replica: int = 0) -> int:
    """Bytes for the batch of one lane.

    Args:
        free: free bytes of the device after the model was loaded.
        lanes: number of batches that run at once.
        replica: bytes that each lane takes beside its batch: :func:`replica_bytes`.
    """
    reserved = min(RESERVED_BYTES, int(free * RESERVED_SHARE))
    return max(0, int((free - reserved) * USABLE_SHARE) // lanes - replica)


def replica_bytes(shape: Shape, size: int) -> int:
    """Bytes that CTranslate2 takes in each lane at its first batch: the output layer, padded for the tensor cores.

    Args:
        shape: the model's dimensions.
        size: bytes of a number.
    """
    return shape.vocabulary * shape.width * size


def most_windows(lane: int | None, row: int, workspace: int | None) -> int:
    """The most windows in a batch of one lane.

    Args:
        lane: bytes for the batch; None when unknown.
        row: bytes of a window.
        workspace: bytes of the encoder in torch, whatever the batch; None when CTranslate2 encodes.
    """
    most = MOST_WINDOWS if workspace is None else MOST_DECODED
    return most if lane is None else max(1, min(most, (lane - (workspace or 0)) // row))


@dataclass(frozen=True)
class BatchMemory:
    """The memory for the batch of one lane.

    Attributes:
        shape: the model's dimensions.
        size: bytes of a number.
        timed_heads: number of heads whose attention gives word times.
        lane: bytes for the batch; None when unknown.
    """

    shape: Shape
    size: int
    timed_heads: int
    lane: int | None

    @classmethod
    def of(cls, directory: Path, shape: Shape, size: int, free: int | None, lanes: int) -> BatchMemory:
        """The memory of a loaded model.

        Args:
            directory: of the model's files.
            shape: the model's dimensions.
            size: bytes of a number.
            free: free bytes of the device; None when unknown.
            lanes: number of batches that run at once.
        """
        lane = None if free is None else lane_bytes(free, lanes, replica_bytes(shape, size))
        return cls(shape, size, _timed_heads(directory), lane)

    def windows_to_encode(self, frames: int, *, in_torch: bool) -> int:
        """The most windows whose languages are detected together; the arguments are those of the encoder."""
        of_encoder = torch_row_bytes if in_torch else encode_row_bytes
        return self._most(frames, of_encoder(self.shape, frames, self.size), in_torch=in_torch)

    def windows_to_decode(self, settings: DecodeSettings, *, in_torch: bool) -> int:
        """The most windows that are decoded together."""
        row = decode_row_bytes(self.shape, settings, self.size, in_torch=in_torch, timed_heads=self.timed_heads)
        return self._most(settings.frames, row, in_torch=in_torch)

    def _most(self, frames: int, row: int, *, in_torch: bool) -> int:
        return most_windows(self.lane, row, torch_workspace_bytes(self.shape, frames, self.size) if in_torch else None)


def _timed_heads(directory: Path) -> int:
    try:
        config = json.loads((directory / "config.json").read_bytes())
        return len(config.get("alignment_heads", ()))
    except (OSError, ValueError, AttributeError, TypeError):
        return MOST_TIMED_HEADS


def encode_row_bytes(shape: Shape, frames: int, size: int) -> int:
    """Bytes of a window while it is encoded.

    Args:
        shape: the model's dimensions.
        frames: length of a padded window, 100 a second.
        size: bytes of a number: 2 for float16 and bfloat16, and for int8, whose results are float16.
    """
    positions = frames // 2
    # The features, which torch makes in float32, and the output of both convolutions.
    features = shape.mels * frames * (4 + size) + shape.width * (frames + positions) * size
    # The weights of the attention before and after the softmax.
    attention = 2 * shape.heads * positions**2 * size
    # Queries, keys and values, the context, the residual, and the wide layer before and after its activation.
    hidden = (4 + 1 + 1 + 8) * positions * shape.width * size
    return features + attention + hidden


def torch_row_bytes(shape: Shape, frames: int, size: int) -> int:
    """Bytes of a window while the encoder in torch runs, beside its workspace and its output.

    Args:
        shape: the model's dimensions.
        frames: length of a padded window, 100 a second.
        size: bytes of a number.
    """
    # Of all windows of a batch: the samples, and the features of some windows before and after they are joined.
    samples = frames * HOP * 4
    features = 2 * shape.mels * frames * 4
    # Rows in bfloat16 are handed over in float32. Rows in float16 are not, but are as long.
    return samples + features + frames // 2 * shape.width * (4 - size)


def torch_workspace_bytes(shape: Shape, frames: int, size: int) -> int:
    """Bytes of the encoder in torch for the windows that pass through its layers together, whatever the batch.

    Args:
        shape: the model's dimensions.
        frames: length of a padded window, 100 a second.
        size: bytes of a number.
    """
    # The residual, its norm, and the wide layer before and after its activation. Attention takes less: the residual,
    # the norm, queries, keys and values, the context twice, and the output. One more is lost between blocks.
    hidden = (1 + 1 + 4 + 4 + 1) * frames // 2 * shape.width * size
    return AT_ONCE * hidden


def decode_row_bytes(
    shape: Shape,
    settings: DecodeSettings,
    size: int,
    *,
    in_torch: bool = False,
    timed_heads: int = MOST_TIMED_HEADS,
) -> int:
    """Bytes of a window from its encoding to its text and the times of its tokens.

    Args:
        shape: the model's dimensions.
        settings: settings of the decoding.
        size: bytes of a number.
        in_torch: whether the encoder runs in torch, whose workspace is counted apart.
        timed_heads: number of heads whose attention gives word times.
    """
    positions = settings.frames // 2
    beams = settings.beam_size if settings.temperature == 0 else BEST_OF
    tokens = settings.prompt_length + token_cap(settings.frames)
    encoded = positions * shape.width * size
    of_encoder = torch_row_bytes if in_torch else encode_row_bytes
    encoder = 0 if settings.encoded else of_encoder(shape, settings.frames, size)
    # Keys and values of the cross-attention. While the prompt is read, the decoder also has a copy of the encoder's
    # output, and a layer's keys and values before they are apart.
    cross = 2 * shape.decoder_layers * encoded
    prompt = encoded + cross + 2 * encoded
    # Beams share them, drawn texts have their own. One of them is copied when a text ends.
    copies = 1 if settings.temperature == 0 else BEST_OF
    shared = copies * (cross + encoded)
    # A cache of keys and values grows by a copy, one layer at a time.
    own = 2 * (shape.decoder_layers + 1) * tokens * shape.width * size * beams
    # The logits, their logarithms and the sorted scores, in float32.
    scores = 3 * beams * shape.vocabulary * 4
    decoder = max(prompt, shared + own + scores)
    align = encoded + _align_bytes(shape, settings, size, timed_heads)
    return encoded + max(encoder, decoder, align)


def _align_bytes(shape: Shape, settings: DecodeSettings, size: int, timed_heads: int) -> int:
    """Bytes of a window while CTranslate2's ``align()`` feeds its text to the decoder once more, without caches."""
    start = settings.align_from or settings.logprobs_from
    if start is None:
        return 0
    positions, tokens = settings.frames // 2, len(start) + 2 + token_cap(settings.frames)
    attention = tokens * positions * size
    timed = timed_heads * attention
    # Of one layer: keys and values, together and apart, the attention before and after its softmax, the residual, its
    # norm, and the wide layer before and after its activation.
    layer = 4 * positions * shape.width * size + 2 * shape.heads * attention + 10 * tokens * shape.width * size
    # The attention of the heads, joined, filtered, and before that.
    return max(layer + timed, tokens * shape.vocabulary * size + 3 * timed)
