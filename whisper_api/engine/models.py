"""Resident models: one copy of each, shared by all jobs, leased while in use."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from whisper_api.engine.gpu_worker import is_out_of_memory
from whisper_api.errors import EngineClosed, OutOfMemory

__all__ = ["ModelCache", "ModelSource", "ResidentModel"]

log = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
FOREVER = -1.0


class ModelSource(Hashable, Protocol[T_co]):
    """Which model, and how to load it. A frozen dataclass: equal sources share one copy."""

    def estimated_bytes(self) -> int:
        """Memory that the loaded model takes on the device, about: known before it is loaded."""

    def load(self) -> T_co:
        """Load the model. Called once, outside any lock, in the thread that asked first."""

    def unload(self, model: Any) -> None:
        """Give the device's memory back. Nobody uses the model any more."""


@dataclass(frozen=True)
class ResidentModel:
    """What is loaded, for people to look at.

    Attributes:
        source: which model.
        bytes: its estimated memory.
        leases: how many jobs use it now.
        idle_seconds: since when nobody does; 0 while leased.
    """

    source: Hashable
    bytes: int
    leases: int
    idle_seconds: float


class _Entry:
    __slots__ = ("bytes", "idle_since", "leases", "loading", "timer")

    def __init__(self, size: int) -> None:
        self.loading: Future[Any] = Future()
        self.bytes = size
        self.leases = 0
        self.idle_since = 0.0
        self.timer: threading.Timer | None = None


class ModelCache:
    """Loads each model once, however many ask, and keeps it for a while after its last use.

    Args:
        keep_alive: seconds that an unused model stays; -1 for ever, 0 to drop it after each job.
        budget: bytes of device memory for models; None for no bound. When a model would not fit, the least recently
            used idle ones go first. Leased models never go, so the budget can be passed when all are in use.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        keep_alive: float = FOREVER,
        budget: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_alive = keep_alive
        self._budget = budget
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._entries: dict[ModelSource[Any], _Entry] = {}
        self._closed = False

    @contextmanager
    def lease(self, source: ModelSource[T]) -> Iterator[T]:
        """Use a model; while the context is open it stays where it is.

        Args:
            source: which model.

        Yields:
            The loaded model, shared with everybody else who leases it.

        Raises:
            EngineClosed: the cache was closed.
            Exception: whatever ``source.load`` raises, to all who wait for this load; the next lease tries again.
        """
        entry, mine = self._acquire(source)
        try:
            if mine:
                self._load(source, entry)
            yield entry.loading.result()
        finally:
            self._release(source, entry)

    def resident(self) -> list[ResidentModel]:
        """What is loaded now."""
        with self._lock:
            now = self._clock()
            return [
                ResidentModel(source, entry.bytes, entry.leases, 0.0 if entry.leases else now - entry.idle_since)
                for source, entry in self._entries.items()
                if entry.loading.done()
            ]

    def evict_idle(self) -> bool:
        """Drop every model that nobody uses.

        Returns:
            Whether there was one.
        """
        with self._lock:
            idle = [source for source, entry in self._entries.items() if entry.leases == 0]
            dropped = [(source, self._entries.pop(source)) for source in idle]
        self._unload(dropped)
        return bool(dropped)

    def close(self) -> None:
        """Drop what is idle, refuse new leases; a model still leased goes when its lease ends."""
        with self._lock:
            self._closed = True
        self.evict_idle()

    def _acquire(self, source: ModelSource[Any]) -> tuple[_Entry, bool]:
        size = source.estimated_bytes()
        dropped: list[tuple[ModelSource[Any], _Entry]] = []
        with self._lock:
            if self._closed:
                raise EngineClosed("the engine is closed")
            entry = self._entries.get(source)
            mine = entry is None
            if entry is None:
                dropped = self._make_room(size)
                entry = self._entries[source] = _Entry(size)
            entry.leases += 1
            if entry.timer is not None:
                entry.timer.cancel()
                entry.timer = None
        self._unload(dropped)
        return entry, mine

    def _make_room(self, size: int) -> list[tuple[ModelSource[Any], _Entry]]:
        if self._budget is None:
            return []
        used = sum(entry.bytes for entry in self._entries.values())
        idle = sorted(
            (source for source, entry in self._entries.items() if entry.leases == 0),
            key=lambda source: self._entries[source].idle_since,
        )
        dropped = []
        for source in idle:
            if used + size <= self._budget:
                break
            entry = self._entries.pop(source)
            used -= entry.bytes
            dropped.append((source, entry))
        if used + size > self._budget:
            log.warning("models take %d MB, over the budget of %d MB", (used + size) >> 20, self._budget >> 20)
        return dropped

    def _load(self, source: ModelSource[Any], entry: _Entry) -> None:
        begun = self._clock()
        try:
            model = self._loaded(source)
        except BaseException as error:
            with self._lock:
                if self._entries.get(source) is entry:
                    del self._entries[source]
            entry.loading.set_exception(error)
            return
        entry.loading.set_result(model)
        log.info("loaded %s in %.2f s", source, self._clock() - begun)

    def _loaded(self, source: ModelSource[Any]) -> Any:
        try:
            return source.load()
        except Exception as error:
            # Other processes, or the activations of jobs that run, may hold what the budget counts on.
            if not is_out_of_memory(error):
                raise
            if not self.evict_idle():
                raise OutOfMemory(f"there is no memory for {source}") from error
        try:
            return source.load()
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(f"there is no memory for {source}") from error
            raise

    def _release(self, source: ModelSource[Any], entry: _Entry) -> None:
        dropped: list[tuple[ModelSource[Any], _Entry]] = []
        with self._lock:
            entry.leases -= 1
            if entry.leases > 0 or self._entries.get(source) is not entry:
                return
            entry.idle_since = self._clock()
            if self._closed or self._keep_alive == 0:
                dropped.append((source, self._entries.pop(source)))
            elif self._keep_alive > 0:
                entry.timer = threading.Timer(self._keep_alive, self._expire, (source, entry))
                entry.timer.daemon = True
                entry.timer.start()
        self._unload(dropped)

    def _expire(self, source: ModelSource[Any], entry: _Entry) -> None:
        with self._lock:
            if entry.leases > 0 or self._entries.get(source) is not entry:
                return
            del self._entries[source]
        self._unload([(source, entry)])

    @staticmethod
    def _unload(dropped: list[tuple[ModelSource[Any], _Entry]]) -> None:
        for source, entry in dropped:
            if entry.timer is not None:
                entry.timer.cancel()
            if entry.loading.done() and entry.loading.exception() is None:
                source.unload(entry.loading.result())
                log.info("dropped %s", source)
