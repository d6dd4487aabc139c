"""Resident models: one copy of each, shared by all jobs, leased while in use."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from whisper_api.engine.worker import fork
from whisper_api.engine.worker.worker import is_out_of_memory
from whisper_api.errors import EngineClosed, OutOfMemory

__all__ = ["ModelCache", "ModelSource", "ResidentModel", "check_load"]

log = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
FOREVER = -1.0
# How often a thread that waits for a model looks whether its job was canceled.
POLL_SECONDS = 0.05


class ModelSource(Hashable, Protocol[T_co]):
    """Which model, and how to load it. A frozen dataclass: equal sources share one copy."""

    def estimated_bytes(self) -> int:
        """Memory that the loaded model takes on the device, about: known before it is loaded."""

    def load(self) -> T_co:
        """Load the model. Called once, outside any lock, in a thread of its own.

        Where it waits for something that may take long, it calls :func:`check_load`.
        """

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

    A model is loaded in a thread of its own. A job that is canceled meanwhile need not wait for the load, and another
    job that asked for the same model is not disturbed.

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
        self._changed = threading.Condition(threading.Lock())
        # Guarded by _changed:
        self._entries: dict[ModelSource[Any], _Entry] = {}
        self._loads: set[_Entry] = set()
        self._closed = False
        _caches.add(self)

    @contextmanager
    def lease(self, source: ModelSource[T], *, check: Callable[[], None] | None = None) -> Iterator[T]:
        """Use a model; while the context is open it stays where it is.

        Args:
            source: which model.
            check: called often while the model is loaded; what it raises ends the wait. The load goes on, for others.

        Yields:
            The loaded model, shared with everybody else who leases it.

        Raises:
            EngineClosed: the cache was closed.
            ForkedProcess: this process was forked from one that ran models.
            Exception: whatever ``source.load`` raises, to all who wait for this load; the next lease tries again.
        """
        fork.use_models()
        entry = self._acquire(source)
        try:
            while not wait((entry.loading,), timeout=POLL_SECONDS).done:
                if check is not None:
                    check()
            yield entry.loading.result()
        finally:
            self._release(source, entry)

    def resident(self) -> list[ResidentModel]:
        """What is loaded now."""
        with self._changed:
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
        with self._changed:
            idle = [source for source, entry in self._entries.items() if entry.leases == 0]
            dropped = [(source, self._entries.pop(source)) for source in idle]
        _unload(dropped)
        return bool(dropped)

    def close(self) -> None:
        """Drop what is idle, refuse new leases, and wait for the loads that have begun.

        A model that is still leased goes when its lease ends.
        """
        if fork.inherited():
            return
        with self._changed:
            self._closed = True
        self.evict_idle()
        with self._changed:
            # A process that ends while a native library loads a model may crash.
            while self._loads:
                self._changed.wait()

    def _acquire(self, source: ModelSource[Any]) -> _Entry:
        size = source.estimated_bytes()
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed")
            entry = self._entries.get(source)
            if entry is None:
                entry = self._begin_load(source, size)
            entry.leases += 1
            if entry.timer is not None:
                entry.timer.cancel()
                entry.timer = None
        return entry

    def _begin_load(self, source: ModelSource[Any], size: int) -> _Entry:
        """Start the thread that loads a model. Called with the lock held."""
        dropped = self._make_room(size)
        entry = self._entries[source] = _Entry(size)
        # The load has a lease of its own, which it gives back when it ends, well or not.
        entry.leases = 1
        self._loads.add(entry)
        thread = threading.Thread(target=self._load, args=(source, entry, dropped), name="load-model", daemon=True)
        try:
            thread.start()
        except BaseException:
            # The system has no thread to give: all is as before.
            del self._entries[source]
            self._entries.update(dropped)
            self._loads.discard(entry)
            raise
        return entry

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

    def _load(self, source: ModelSource[Any], entry: _Entry, dropped: _Dropped) -> None:
        """Load a model after those that make room for it have gone. Settles the entry whatever happens."""
        begun = self._clock()
        _here.cache = self
        try:
            _unload(dropped)
            model = self._loaded(source)
        except BaseException as error:
            self._settle(source, entry, failure=error)
        else:
            log.info("loaded %s in %.2f s", source, self._clock() - begun)
            self._settle(source, entry, model)
        finally:
            with self._changed:
                self._loads.discard(entry)
                self._changed.notify_all()

    def _settle(
        self, source: ModelSource[Any], entry: _Entry, model: Any = None, failure: BaseException | None = None
    ) -> None:
        """Tell those who wait how the load ended, and give back the load's own lease."""
        with self._changed:
            if failure is None:
                entry.loading.set_result(model)
            else:
                entry.loading.set_exception(failure)
                if self._entries.get(source) is entry:
                    del self._entries[source]
            unused = self._give_back(source, entry)
        _unload(unused)

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
        with self._changed:
            unused = self._give_back(source, entry)
        _unload(unused)

    def _give_back(self, source: ModelSource[Any], entry: _Entry) -> _Dropped:
        """End a lease; gives the model when it is to be unloaded now. Called with the lock held."""
        entry.leases -= 1
        if entry.leases > 0 or self._entries.get(source) is not entry:
            return []
        entry.idle_since = self._clock()
        if self._closed or self._keep_alive == 0:
            return [(source, self._entries.pop(source))]
        if self._keep_alive > 0:
            timer = threading.Timer(self._keep_alive, self._expire, (source, entry))
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:
                log.warning("%s is dropped at once, since no thread can be started to drop it later", source)
                return [(source, self._entries.pop(source))]
            entry.timer = timer
        return []

    def _expire(self, source: ModelSource[Any], entry: _Entry) -> None:
        with self._changed:
            if entry.leases > 0 or self._entries.get(source) is not entry:
                return
            del self._entries[source]
        _unload([(source, entry)])


def check_load() -> None:
    """Stop a load that has no use any more; called by :meth:`ModelSource.load` where it waits.

    Raises:
        EngineClosed: the cache that this thread loads a model for was closed.
    """
    cache: ModelCache | None = getattr(_here, "cache", None)
    if cache is not None and cache._closed:
        raise EngineClosed("the engine was closed while a model was loaded")


_Dropped = list[tuple[ModelSource[Any], _Entry]]
_caches: weakref.WeakSet[ModelCache] = weakref.WeakSet()
# Which cache this thread loads a model for.
_here = threading.local()


def _unload(dropped: _Dropped) -> None:
    """Unload models that nobody uses. An error of one is logged: it is no reason to fail the job that came upon it."""
    if fork.inherited():
        return
    for source, entry in dropped:
        if entry.timer is not None:
            entry.timer.cancel()
        if not entry.loading.done() or entry.loading.exception() is not None:
            continue
        try:
            source.unload(entry.loading.result())
        except Exception:
            log.exception("%s could not be unloaded in order", source)
        else:
            log.info("dropped %s", source)


def _keep_models() -> None:
    """In a forked process: let the models of the parent be, since freeing them needs their threads."""
    for cache in list(_caches):
        for entry in list(cache._entries.values()):
            if entry.loading.done() and entry.loading.exception() is None:
                fork.keep_for_ever(entry.loading.result())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_models)
