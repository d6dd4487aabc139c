"""Whisper's graphs in ONNX Runtime, and the decoder's state.

CTranslate2 packs its int8 matrices at every step of the decoder, which takes several times as long as the products.
ONNX Runtime packs the matrices once, when it loads the model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.engine.models import derived_files
from whisper_api.engine.whisper.onnx.graph_files import EMBEDDINGS, POSITIONS, prepare
from whisper_api.engine.whisper.onnx.search import Feed
from whisper_api.engine.whisper.onnx.whisper_graphs import Shape
from whisper_api.engine.worker.idle_cores import batch_threads

log = logging.getLogger(__name__)

# A pool of cache entries starts with this size and grows by it. The time of attention is proportional to the size.
POOL = 128
# A second copy of a larger encoder would cost more memory than its speed is worth.
WIDE_BYTES = 128 << 20
# Replaces minus infinity in a mask. Infinity gives NaN in a row whose pool has no entries.
MASKED = np.float32(-1e9)
# The axis of the encoder's positions in the arrays of cross-attention.
_POSITIONS_AXIS = {"key": 2, "key_scale": 3, "value": 2}

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]
Pools = list[tuple[Floats, Floats]]


class Sessions:
    """The graphs of a loaded model. Several threads may call the methods at once.

    Args:
        directory: the directory that :func:`prepare` wrote.
        threads: number of threads of one call. The encoder of a model of up to :data:`WIDE_BYTES` uses more when its
            batch runs alone.
    """

    def __init__(self, directory: Path, threads: int) -> None:
        self._directory, self._threads = directory, threads
        self._wide_encoders: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._small = (directory / "encoder.weights").stat().st_size <= WIDE_BYTES
        record = derived_files.read_record(directory)
        if record is None:
            raise FileNotFoundError(f"{directory} contains no graphs of a Whisper model")
        self.shape = Shape(**record["shape"])
        self._encoder, self._memory, self._decoder = (
            _session(directory / f"{name}.onnx", threads) for name in ("encoder", "memory", "decoder")
        )
        # Memory-mapped, so that only the rows of used tokens are read.
        self._embeddings = np.load(directory / EMBEDDINGS, mmap_mode="r")
        self._positions = np.load(directory / POSITIONS).astype(np.float32)

    def encode(self, features: Floats) -> Floats:
        """Run the encoder.

        Args:
            features: float32, shape (mels, frames): log-mel features; frames even, at most 3000.

        Returns:
            float32, shape (frames / 2, width).
        """
        encoder = self._encoder_of(batch_threads(self._threads))
        return np.asarray(encoder.run(None, {"features": features[None]})[0])

    def _encoder_of(self, threads: int) -> Any:
        """The encoder that runs on so many threads. The number belongs to a session, which has weights of its own."""
        if threads <= self._threads or not self._small:
            return self._encoder
        with self._lock:
            if threads not in self._wide_encoders:
                self._wide_encoders[threads] = _session(self._directory / "encoder.onnx", threads)
            return self._wide_encoders[threads]

    def memorize(self, encoded: Floats) -> Arrays:
        """Keys and values of cross-attention, by the graph's names, for an encoder output (positions, width)."""
        names = [output.name for output in self._memory.get_outputs()]
        return dict(zip(names, self._memory.run(names, {"encoded": encoded}), strict=True))

    def start(self, encoded: Floats) -> State:
        """The decoder's state for an encoder output of shape (positions, width)."""
        return State(self, encoded)

    def embed(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> Floats:
        """The decoder's input.

        Args:
            tokens: int64, shape (tokens,).
            positions: int64, shape (tokens,): position of each token in its text.

        Returns:
            float32, shape (tokens, width).
        """
        embedded: Floats = self._embeddings[tokens].astype(np.float32) + self._positions[positions]
        return embedded

    def decode(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Run the decoder. Returns the new keys and values of each layer, the logits and the attention."""
        outputs: list[NDArray[Any]] = self._decoder.run(None, inputs)
        return outputs

    def empty_pools(self, windows: int, capacity: int) -> Pools:
        """Empty pools of cache entries, filled with zeros, since attention multiplies masked entries by 0.

        Args:
            windows: number of windows.
            capacity: number of entries for each window.
        """
        heads, size = self.shape.heads, self.shape.head_width
        return [
            (
                np.zeros((windows, heads, size, capacity), np.float32),
                np.zeros((windows, heads, capacity, size + 1), np.float32),
            )
            for _ in range(self.shape.decoder_layers)
        ]


class State:
    """The decoder's state for one window: the input of cross-attention, and the cache of the fed tokens.

    Args:
        model: the model's graphs.
        encoded: float32, shape (positions, width): the encoder's output.

    Attributes:
        memory: keys and values of cross-attention.
        length: number of cache entries.
        group, row: the group whose pools contain the cache, and this window's row in the pools.
        attention: float32, shape (alignment heads, rows, positions): cross-attention probabilities of the last feed.
    """

    def __init__(self, model: Sessions, encoded: Floats) -> None:
        self.model = model
        self.memory = model.memorize(encoded)
        self.positions = len(encoded)
        self.length = 0
        self.attention: Floats = np.empty((0, 0, self.positions), np.float32)
        # A group must not reference its states: a cycle would stay in memory until the garbage collector runs.
        self.group = _Group([self.memory], [self.positions], model.empty_pools(1, POOL), POOL)
        self.row = 0

    def feed(self, tokens: NDArray[np.int64], positions: NDArray[np.int64], visible: NDArray[np.bool_]) -> Floats:
        """Run tokens through the decoder, as in :meth:`~whisper_api.engine.whisper.onnx.search.DecoderState.feed`."""
        return feed_together([self], [(tokens, positions, visible)])[0]

    def clear(self) -> None:
        """Remove all cache entries."""
        self.length = 0

    def attend_to(self, first: int, after: int) -> None:
        """Limit the cross-attention of the next feeds to positions of the encoder's output, 50 a second.

        Args:
            first: the first position.
            after: the position after the last.
        """
        mask = self.group.inputs["memory_mask"]
        mask[self.row] = MASKED
        mask[self.row, ..., first:after] = 0.0


def feed_together(states: Sequence[State], feeds: Sequence[Feed]) -> list[Floats]:
    """Feed several windows in one call, which takes little longer than a feed of one window.

    Args:
        states: states of one model; no other thread uses them meanwhile.
        feeds: the arguments of :meth:`State.feed` for each state.

    Returns:
        Logits of each window: float32, shape (rows, vocabulary).
    """
    model, group = states[0].model, states[0].group
    # At least two rows: with one row, ONNX Runtime adds in another order, and results would depend on the batch.
    rows = max(2, *(len(tokens) for tokens, _, _ in feeds))
    if group.size != len(states) or any(
        state.group is not group or state.row != row for row, state in enumerate(states)
    ):
        group = _Group.of(model, states)
    group.make_room(model, max(state.length for state in states) + rows)
    capacity, count = group.capacity, len(states)
    embedded = np.zeros((count, rows, model.shape.width), np.float32)
    mask = np.full((count, 1, rows, capacity + rows), MASKED, np.float32)
    # Windows with fewer rows are padded with rows that attend to themselves.
    mask[:, 0, np.arange(rows), capacity + np.arange(rows)] = 0.0
    for number, (state, (tokens, positions, visible)) in enumerate(zip(states, feeds, strict=True)):
        here, length = len(tokens), state.length
        embedded[number, :here] = model.embed(tokens, positions)
        mask[number, 0, :here, :length][visible[:, :length]] = 0.0
        mask[number, 0, :here, capacity : capacity + here][visible[:, length:]] = 0.0
    *new, logits, attention = model.decode(
        {
            "embedded": embedded.reshape(count * rows, -1),
            "grid": np.array([count, rows, model.shape.heads, model.shape.head_width], np.int64),
            "mask": mask,
            "score_shape": np.array([count, model.shape.heads, rows, group.positions], np.int64),
            "sizes": np.array([capacity, rows], np.int64),
            **group.inputs,
        }
    )
    results = []
    for number, (state, (tokens, _, _)) in enumerate(zip(states, feeds, strict=True)):
        here, after = len(tokens), state.length + len(tokens)
        for (keys, values), key, value in zip(group.pools, new[::2], new[1::2], strict=True):
            keys[number, :, :, state.length : after] = key[number, :, :, :here]
            values[number, :, state.length : after] = value[number, :, :here]
        state.length = after
        state.attention = attention[number, :, :here, : state.positions]
        results.append(logits[number * rows : number * rows + here])
    return results


class _Group:
    """Windows that are fed together; common arrays contain their cross-attention inputs and caches.

    Attributes:
        size: number of windows.
        pools: for each layer, keys (windows, heads, head width, capacity) and values (windows, heads, capacity, head
            width + 1), whose last column is ones.
        capacity: number of entries in a pool.
        positions: number of encoder positions of the longest window.
        inputs: the arrays by the graph's names.
    """

    def __init__(self, memories: Sequence[Arrays], positions: Sequence[int], pools: Pools, capacity: int) -> None:
        self.size = len(memories)
        self.positions = max(positions)
        self._memory = dict(memories[0]) if self.size == 1 else _stacked(memories, self.positions)
        mask = np.zeros((self.size, 1, 1, self.positions), np.float32)
        for row, count in enumerate(positions):
            mask[row, ..., count:] = MASKED
        self._memory["memory_mask"] = mask
        self._set_pools(pools, capacity)

    @classmethod
    def of(cls, model: Sessions, states: Sequence[State]) -> _Group:
        """Move states from their groups into a new group."""
        capacity = max(POOL, *(state.length for state in states))
        pools = model.empty_pools(len(states), capacity)
        for row, state in enumerate(states):
            _copy_pools(state.group.pools, state.row, pools, row, state.length)
        group = cls([state.memory for state in states], [state.positions for state in states], pools, capacity)
        for row, state in enumerate(states):
            state.group, state.row = group, row
        return group

    def make_room(self, model: Sessions, entries: int) -> None:
        """Enlarge the pools to at least ``entries`` entries."""
        if entries <= self.capacity:
            return
        capacity = -(-entries // POOL) * POOL
        pools = model.empty_pools(self.size, capacity)
        for row in range(self.size):
            _copy_pools(self.pools, row, pools, row, self.capacity)
        self._set_pools(pools, capacity)

    def _set_pools(self, pools: Pools, capacity: int) -> None:
        self.pools, self.capacity = pools, capacity
        self.inputs = dict(self._memory)
        for layer, (keys, values) in enumerate(pools):
            self.inputs[f"pool_key_{layer}"] = keys
            self.inputs[f"pool_value_{layer}"] = values


def _copy_pools(old: Pools, old_row: int, new: Pools, row: int, length: int) -> None:
    for (old_keys, old_values), (keys, values) in zip(old, new, strict=True):
        keys[row, :, :, :length] = old_keys[old_row, :, :, :length]
        values[row, :, :length] = old_values[old_row, :, :length]


def _stacked(memories: Sequence[Arrays], positions: int) -> Arrays:
    """Stack the arrays of several windows, and pad shorter windows with zeros."""
    joined: Arrays = {}
    for name, first in memories[0].items():
        shape = [len(memories), *first.shape[1:]]
        if (axis := _POSITIONS_AXIS.get(name.rpartition("_")[0])) is not None:
            shape[axis] = positions
        whole = np.zeros(shape, first.dtype)
        for number, memory in enumerate(memories):
            part = memory[name][0]
            whole[number, : part.shape[0], : part.shape[1], : part.shape[2]] = part
        joined[name] = whole
    return joined


def open_sessions(model: Path, *, int8: bool, threads: int) -> Sessions:
    """Load a model's graphs. Makes damaged graphs again, once.

    Args:
        model: a directory in CTranslate2's format.
        int8: True for graphs that compute in int8, False for float32.
        threads: number of threads of one call.

    Raises:
        ModelCorrupt: the directory does not contain a Whisper model.
        ModelUnavailable: the graphs cannot be stored.
    """
    directory = prepare(model, int8=int8)
    try:
        return Sessions(directory, threads)
    except Exception as error:
        damaged = derived_files.damaged_files(directory)
        if not damaged:
            raise
        log.warning("%s: damaged: %s (%s). The graphs are made again.", directory, ", ".join(damaged), error)
    (directory / derived_files.RECORD).unlink(missing_ok=True)
    return Sessions(prepare(model, int8=int8), threads)


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads do not spin: the other lanes need the CPU.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
