"""The cache of resident models: one copy of each model, leased by jobs while they use it."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from whisper_api.engine.worker import fork
from whisper_api.engine.worker.background import DeviceThread
from whisper_api.engine.worker.device_errors import DeviceFault, clear_frames, kind_of
from whisper_api.errors import EngineClosed, OutOfMemory
from whisper_api.freed_memory import return_freed_memory

log = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
FOREVER = -1.0
# Interval at which a thread that waits for a model checks whether its job was canceled.
POLL_SECONDS = 0.05


class ModelSource(Hashable, Protocol[T_co]):
    """Identifies a model and loads it. Implementations are frozen dataclasses: equal sources share one copy."""

    def estimated_bytes(self) -> int:
        """Approximate bytes of the loaded model on the device, known before it is loaded."""

    def load(self) -> T_co:
        """Load the model. Called once, in its own thread or in that of a GPU, without a lock.

        An implementation that waits for something calls :func:`check_load` often meanwhile.
        """

    def unload(self, model: Any) -> None:
        """Free the device's memory; called after the last lease has ended, on a GPU in the thread that loaded."""


@dataclass(frozen=True)
class ResidentModel:
    """One loaded model, for display.

    Attributes:
        source: the model's source.
        bytes: estimated memory.
        leases: number of jobs that use the model now.
        encoder: what runs the encoder of a Whisper model on a GPU, and why; empty for other models.
    """

    source: Hashable
    bytes: int
    leases: int
    encoder: str = ""


@dataclass(eq=False, slots=True)
class _Entry:
    """A model in the cache. The load itself counts as a lease until it succeeds or fails."""

    source: ModelSource[Any]
    bytes: int
    loading: Future[Any] = field(default_factory=Future)
    leases: int = 1
    idle_since: float = 0.0
    timer: threading.Timer | None = None

    @property
    def model(self) -> Any:
        """The loaded model; None without one."""
        return self.loading.result() if self.loading.done() and self.loading.exception() is None else None


class ModelCache:
    """Loads each model once for all jobs, and keeps it for a while after its last use.

    Each model is loaded in its own thread. A job that is canceled meanwhile stops waiting at once, and the load
    continues for other jobs.

    Args:
        keep_alive: seconds that an unused model stays; -1 for ever, 0 to unload it after each job.
        budget: bytes of device memory for models; None for no limit. To make room for a model, idle models are
            unloaded, the least recently used first. Leased models stay, so leases can exceed the budget.
        clock: monotonic clock, in seconds.
        thread: loads and unloads all models of a GPU; None to load each in a thread of its own.
        fault: takes the report that the device is lost. After it, no model is loaded or unloaded.

    Attributes:
        loaded, unloaded: how many models were loaded and unloaded so far.
    """

    def __init__(
        self,
        *,
        keep_alive: float = FOREVER,
        budget: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        thread: DeviceThread | None = None,
        fault: DeviceFault | None = None,
    ) -> None:
        self._keep_alive = keep_alive
        self._budget = budget
        self._clock = clock
        self._thread = thread
        self._fault = fault or DeviceFault()
        self._changed = threading.Condition(threading.Lock())
        # Guarded by _changed:
        self._entries: dict[ModelSource[Any], _Entry] = {}
        self._loads: set[_Entry] = set()
        self._closed = False
        self.loaded = 0
        self.unloaded = 0
        _caches.add(self)

    @contextmanager
    def lease(self, source: ModelSource[T], *, check: Callable[[], None] | None = None) -> Iterator[T]:
        """Lease a model, which stays loaded while the context is open.

        Args:
            source: the model's source.
            check: called often during the load; its errors end the wait, but not the load.

        Yields:
            The loaded model, shared among all leases.

        Raises:
            EngineClosed: the cache was closed.
            DeviceLost: the device has failed.
            ForkedProcess: a parent of this process ran models before the fork.
            Exception: ``source.load`` raised it; every thread that waits for this load gets it. The next lease tries
                again.
        """
        fork.use_models()
        entry = self._acquire(source)
        try:
            while not wait((entry.loading,), timeout=POLL_SECONDS).done:
                if check is not None:
                    check()
            yield entry.loading.result()
        finally:
            with self._changed:
                unused = self._end_lease(entry)
            # A job that ends does not wait for a GPU's thread, which may be loading a model.
            self._unload(unused, wait=False)

    def resident(self) -> list[ResidentModel]:
        """The loaded models."""
        with self._changed:
            return [
                ResidentModel(entry.source, entry.bytes, entry.leases, str(getattr(entry.model, "encoder", "")))
                for entry in self._entries.values()
                if entry.loading.done()
            ]

    def evict_idle(self) -> bool:
        """Unload every model without a lease.

        Returns:
            True when at least one model was unloaded.
        """
        with self._changed:
            idle = [self._pop(entry) for entry in list(self._entries.values()) if entry.leases == 0]
            evicted = bool(idle)
        self._unload(idle)
        return evicted

    def close(self) -> None:
        """Unload idle models, refuse new leases, and wait for running loads.

        A leased model is unloaded when its lease ends.
        """
        if fork.inherited():
            return
        with self._changed:
            self._closed = True
        self.evict_idle()
        with self._changed:
            # A process that ends while a native library loads a model may crash.
            while self._loads and not self._fault.reported:
                self._changed.wait(POLL_SECONDS)
        if self._thread is not None:
            self._thread.close(wait=not self._fault.reported)

    def check_open(self) -> None:
        """Raise :class:`~whisper_api.errors.EngineClosed` after :meth:`close`."""
        if self._closed:
            raise EngineClosed("the engine is closed")

    def keep_for_ever(self) -> None:
        """Prevent that a forked process frees the models: freeing them needs the parent's threads."""
        _keep_for_ever(list(self._entries.values()))

    def _acquire(self, source: ModelSource[Any]) -> _Entry:
        size = source.estimated_bytes()
        with self._changed:
            self._fault.check()
            self.check_open()
            entry = self._entries.get(source)
            if entry is None:
                entry = self._begin_load(source, size)
            entry.leases += 1
            if entry.timer is not None:
                entry.timer.cancel()
                entry.timer = None
        return entry

    def _begin_load(self, source: ModelSource[Any], size: int) -> _Entry:
        """Let a thread load a model. Called with the lock held."""
        evicted = self._make_room(size)
        entry = self._entries[source] = _Entry(source, size)
        self._loads.add(entry)
        try:
            if self._thread is not None:
                self._thread.submit(lambda: self._load(entry, evicted))
            else:
                threading.Thread(target=self._load, args=(entry, evicted), name="load-model", daemon=True).start()
        except BaseException:
            # The system cannot start a thread: undo the changes.
            del self._entries[source]
            self._entries.update((each.source, each) for each in evicted)
            self._loads.discard(entry)
            raise
        return entry

    def _make_room(self, size: int) -> list[_Entry]:
        evicted: list[_Entry] = []
        if self._budget is None:
            return evicted
        used = size + sum(entry.bytes for entry in self._entries.values())
        idle = [entry for entry in self._entries.values() if entry.leases == 0]
        for entry in sorted(idle, key=lambda entry: entry.idle_since):
            if used > self._budget:
                evicted.append(self._pop(entry))
                used -= entry.bytes
        if used > self._budget:
            log.warning("models take %d MB, over the budget of %d MB", used >> 20, self._budget >> 20)
        return evicted

    def _pop(self, entry: _Entry) -> _Entry:
        """Take a model out of the cache, to be unloaded. Called with the lock held."""
        self.unloaded += 1
        return self._entries.pop(entry.source)

    def _load(self, entry: _Entry, evicted: list[_Entry]) -> None:
        """Unload models to make room, then load a model. Passes the result to the waiting threads in every case."""
        begun = self._clock()
        _loading.cache = self
        try:
            self._unload(evicted)
            model = self._loaded(entry.source)
        except BaseException as error:
            with self._changed:
                entry.loading.set_exception(error)
                if self._entries.get(entry.source) is entry:
                    del self._entries[entry.source]
        else:
            log.info("loaded %s in %.2f s", entry.source, self._clock() - begun)
            with self._changed:
                entry.loading.set_result(model)
                self.loaded += 1
        finally:
            with self._changed:
                unused = self._end_lease(entry)
            self._unload(unused)
            with self._changed:
                self._loads.discard(entry)
                self._changed.notify_all()
            # A load takes up to three times the memory of its model. Jobs use the model meanwhile.
            return_freed_memory()

    def _loaded(self, source: ModelSource[Any]) -> Any:
        try:
            return source.load()
        except Exception as error:
            kind = kind_of(error)
            if kind == "sticky":
                raise self._fault.report(error) from None
            # The budget does not count the memory of other processes and of running jobs' activations.
            if kind != "memory":
                raise
            failure = error
        # Outside of the handler, whose error holds what was loaded so far.
        clear_frames(failure)
        if not self.evict_idle():
            raise OutOfMemory(f"there is no memory for {source}") from failure
        return self._loaded(source)

    def _end_lease(self, entry: _Entry) -> list[_Entry]:
        """End a lease. Returns the model when the caller must unload it. Called with the lock held."""
        entry.leases -= 1
        if not self._is_idle(entry):
            return []
        entry.idle_since = self._clock()
        if self._closed or self._keep_alive == 0:
            return [self._pop(entry)]
        if self._keep_alive > 0:
            timer = threading.Timer(self._keep_alive, self._expire, (entry,))
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:
                log.warning("%s is unloaded at once, since no timer thread can be started", entry.source)
                return [self._pop(entry)]
            entry.timer = timer
        return []

    def _is_idle(self, entry: _Entry) -> bool:
        """Whether a model is in the cache without a lease. Called with the lock held."""
        return entry.leases == 0 and self._entries.get(entry.source) is entry

    def _expire(self, entry: _Entry) -> None:
        with self._changed:
            expired = [self._pop(entry)] if self._is_idle(entry) else []
        self._unload(expired)

    def _unload(self, evicted: list[_Entry], *, wait: bool = True) -> None:
        """Unload models that are no longer in the cache.

        Args:
            evicted: the models.
            wait: whether to wait for a GPU's thread.
        """
        if not evicted or fork.inherited():
            return
        if self._fault.reported:
            # A destructor that finds its CUDA context dead ends the process, before its jobs are back in the queue.
            _keep_for_ever(evicted)
        elif self._thread is None:
            _unload(evicted, self._fault)
        elif wait:
            self._thread.run(lambda: _unload(evicted, self._fault))
        else:
            self._thread.submit(lambda: _unload(evicted, self._fault))
            if self._closed:
                self._thread.close(wait=False)


def check_load() -> None:
    """End a load whose cache was closed; called by :meth:`ModelSource.load` while it waits.

    Raises:
        EngineClosed: the cache that this thread loads a model for was closed.
    """
    cache: ModelCache | None = getattr(_loading, "cache", None)
    if cache is not None:
        cache.check_open()


_caches: weakref.WeakSet[ModelCache] = weakref.WeakSet()
# Its attribute ``cache`` is the cache that the current thread loads a model for.
_loading = threading.local()


def _keep_for_ever(entries: Sequence[_Entry]) -> None:
    for entry in entries:
        if entry.model is not None:
            fork.keep_for_ever(entry.model)


def _unload(evicted: list[_Entry], fault: DeviceFault) -> None:
    """Unload models, and empty the list, so that their memory is free at the end."""
    while evicted:
        _unload_one(evicted.pop(0), fault)
    return_freed_memory()


def _unload_one(entry: _Entry, fault: DeviceFault) -> None:
    """Unload a model. No error is raised: the job whose lease triggered the unloading is not at fault."""
    if entry.timer is not None:
        entry.timer.cancel()
    if entry.model is None:
        return
    try:
        entry.source.unload(entry.model)
    except Exception as error:
        log.exception("unloading %s failed", entry.source)
        if kind_of(error) == "sticky":
            fault.report(error)
    else:
        log.info("unloaded %s", entry.source)


def _keep_models() -> None:
    for cache in list(_caches):
        cache.keep_for_ever()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_models)
