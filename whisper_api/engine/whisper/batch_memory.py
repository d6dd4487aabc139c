"""How many windows fit into a GPU's memory: the bytes of a row of a batch.

The terms are the tensors of CTranslate2's encoder and decoder (``src/layers/transformer.cc``) and of the encoder in
torch. A batch first takes the encoder's workspace, and then the decoder's caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_api.engine.audio.mel import HOP
from whisper_api.engine.whisper.model import BEST_OF, DecodeSettings, token_cap
from whisper_api.engine.whisper.torch_encoder import AT_ONCE

if TYPE_CHECKING:
    from whisper_api.engine.whisper.onnx.whisper_graphs import Shape

__all__ = [
    "MOST_WINDOWS",
    "decode_row_bytes",
    "encode_row_bytes",
    "lane_bytes",
    "most_windows",
    "torch_row_bytes",
    "torch_workspace_bytes",
]

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


def lane_bytes(free: int, lanes: int) -> int:
    """Bytes for the batch of one lane.

    Args:
        free: free bytes of the device after the model was loaded.
        lanes: number of batches that run at once.
    """
    reserved = min(RESERVED_BYTES, int(free * RESERVED_SHARE))
    return int((free - reserved) * USABLE_SHARE) // lanes


def most_windows(lane: int | None, row: int, workspace: int | None) -> int:
    """The most windows in a batch of one lane.

    Args:
        lane: bytes for the batch; None when unknown.
        row: bytes of a window.
        workspace: bytes of the encoder in torch, whatever the batch; None when CTranslate2 encodes.
    """
    most = MOST_WINDOWS if workspace is None else MOST_DECODED
    return most if lane is None else max(1, min(most, (lane - (workspace or 0)) // row))


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


def decode_row_bytes(shape: Shape, settings: DecodeSettings, size: int, *, in_torch: bool = False) -> int:
    """Bytes of a window from its encoding to its text.

    Args:
        shape: the model's dimensions.
        settings: settings of the decoding.
        size: bytes of a number.
        in_torch: whether the encoder runs in torch, whose workspace is counted apart.
    """
    positions = settings.frames // 2
    beams = settings.beam_size if settings.temperature == 0 else BEST_OF
    tokens = settings.prompt_length + token_cap(settings.frames)
    encoded = positions * shape.width * size
    # Keys and values. Beams share those of the cross-attention. A cache grows by a copy, one layer at a time.
    cross = 2 * shape.decoder_layers * positions * shape.width * size
    own = 2 * (shape.decoder_layers + 1) * tokens * shape.width * size * beams
    # The logits, their logarithms and the sorted scores, in float32.
    scores = 3 * beams * shape.vocabulary * 4
    of_encoder = torch_row_bytes if in_torch else encode_row_bytes
    encoder = 0 if settings.encoded else of_encoder(shape, settings.frames, size)
    return encoded + max(encoder, cross + own + scores)
