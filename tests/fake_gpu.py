"""A pretended GPU for faults: memory that runs out, errors that come again, and a context that dies.

It raises the texts of the real libraries, and records who called it from which thread, on which current device, and
what was still alive.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

OUT_OF_MEMORY = "CUDA failed with error out of memory"
ILLEGAL_ACCESS = "CUDA failed with error an illegal memory access was encountered"


class Block:
    """Memory of the device, which is freed with its last reference."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


@dataclass(frozen=True)
class Call:
    """One call on the device.

    Attributes:
        what: load, run, go on with a run, or unload.
        thread: id of the calling thread.
        device: number of the thread's current device; None outside of every scope.
        rows: number of rows of a run.
        alive: number of rows whose memory was not freed when the call began.
    """

    what: str
    thread: int
    device: int | None
    rows: int = 0
    alive: int = 0


@dataclass(eq=False)
class FakeGpu:
    """The device.

    Attributes:
        capacity: number of rows that fit into memory, over all calls that run.
        index: number of the device.
        failures: number of next runs that run out of memory whatever their size.
        stale: whether a failed allocation is reported once more at the same thread's next call, as by CTranslate2.
        dies_at: number of the call at which the context dies, from 0.
        calls: all calls so far.
    """

    capacity: int = 1_000
    index: int = 0
    failures: int = 0
    stale: bool = False
    dies_at: int | None = None
    calls: list[Call] = field(default_factory=list)
    dead: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: weakref.WeakSet[Block] = weakref.WeakSet()
        self._last_errors: set[int] = set()

    @property
    def runs(self) -> list[int]:
        """Number of rows of each run."""
        return [call.rows for call in self.calls if call.what == "run"]

    @property
    def alive(self) -> int:
        """Number of rows whose memory was not freed."""
        return sum(block.rows for block in self._blocks)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Make this the thread's current device."""
        before = getattr(_current, "device", None)
        _current.device = self.index
        try:
            yield
        finally:
            _current.device = before

    def check(self) -> None:
        """What a synchronisation reports."""
        if self.dead:
            raise RuntimeError(
                f"CUDA error: {ILLEGAL_ACCESS.removeprefix('CUDA failed with error ')}\nCompile with ..."
            )

    def call(self, what: str, rows: int = 0) -> Block:
        """Call the device.

        Returns:
            Memory for the rows.
        """
        with self._lock:
            thread = threading.get_ident()
            alive = self.alive
            self.calls.append(Call(what, thread, getattr(_current, "device", None), rows, alive))
            if self.dies_at is not None and len(self.calls) > self.dies_at:
                self.dead = True
            if self.dead:
                raise RuntimeError(ILLEGAL_ACCESS)
            if thread in self._last_errors:
                self._last_errors.discard(thread)
                raise RuntimeError(f"parallel_for failed: cudaErrorMemoryAllocation: {OUT_OF_MEMORY[-13:]}")
            if self.failures or alive + rows > self.capacity:
                self.failures = max(0, self.failures - 1)
                if self.stale:
                    self._last_errors.add(thread)
                raise RuntimeError(OUT_OF_MEMORY)
            block = Block(rows)
            self._blocks.add(block)
            return block


_current = threading.local()


@dataclass(frozen=True)
class Rows:
    """The operation of a model on the device: gives its inputs back.

    Attributes:
        gpu: the device.
        key: the operation's memory key.
        max_items: most rows of a batch.
        halves: number of allocations of a run, the later ones while the first are held.
    """

    gpu: FakeGpu = field(hash=False, compare=False)
    key: str = "decode"
    max_items: int = 8
    max_cost: float = math.inf
    halves: int = 1

    @property
    def memory_key(self) -> Hashable:
        return self.key

    def run(self, inputs: Sequence[object]) -> list[object]:
        encoded = self.gpu.call("run", len(inputs))
        held = [encoded]
        try:
            for _ in range(self.halves - 1):
                held.append(self._decode(held))
        except RuntimeError as error:
            # As pybind and torch do at times: the first error is the context of the second one.
            raise RuntimeError(str(error))  # noqa: B904
        return list(inputs)

    def _decode(self, held: list[Block]) -> Block:
        rows = held[0].rows
        return self.gpu.call("go on", rows)
