"""Worker threads that run models on a device and share it fairly among all active jobs.

Job threads submit work items and wait for their futures. A worker has one or more lanes. Each lane is a thread that
repeatedly takes a batch from the fair queue and runs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from whisper_api.engine.worker import fork, idle_cores
from whisper_api.engine.worker.batch_runner import BatchRunner
from whisper_api.engine.worker.device_errors import DeviceFault, kind_of
from whisper_api.engine.worker.fair_queue import Batch, BatchOperation, FairQueue, WorkItem
from whisper_api.engine.worker.statistics import WorkerCounts
from whisper_api.errors import DeviceLost, EngineClosed

log = logging.getLogger(__name__)


class GpuWorker:
    """The lanes of one device. The first item starts their threads.

    Args:
        name: prefix of the threads' names, for logs.
        on_out_of_memory: called from any lane when a single item does not fit into memory. Frees memory, and returns
            whether it freed any; if so, the item is tried once more.
        lanes: number of batches that may run at once.
        scope: makes the context in which each thread runs: :meth:`Device.scope`.
        probe: raises the device's own error after an operation failed: :meth:`Device.check`.
        fault: takes the report that the device is lost, and ends all work when another worker reports it.
        threads: CPU threads of a batch. A batch that runs alone gets those of all lanes. None on a GPU.

    Attributes:
        lanes: number of batches that may run at once.
        fault: as the argument.
        counts: what the lanes have done.
        limits: the sizes of batches that fit into memory.
    """

    def __init__(
        self,
        name: str = "gpu-worker",
        on_out_of_memory: Callable[[], bool] = lambda: False,
        lanes: int = 1,
        scope: Callable[[], AbstractContextManager[None]] = nullcontext,
        probe: Callable[[], None] = lambda: None,
        fault: DeviceFault | None = None,
        threads: int | None = None,
    ) -> None:
        self._name = name
        self._scope = scope
        self.lanes = max(1, lanes)
        self._threads_of_batch = threads
        self.fault = fault or DeviceFault()
        self.counts = WorkerCounts()
        self._runner = BatchRunner(self.lanes, on_out_of_memory, probe, self.fault, self._put_back, self.counts)
        self.limits = self._runner.limits
        self._changed = threading.Condition(threading.Lock())
        # Guarded by _changed:
        self._queue = FairQueue()
        self._running: dict[int, Batch] = {}
        self._expected: set[object] = set()
        self._awaited: set[object] | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.fault.on_report(self._end_lost)

    def submit(
        self, job: Hashable, operation: BatchOperation, input: Any, cost: float, *, ahead: bool = False
    ) -> Future[Any]:
        """Queue one work item.

        Args:
            job: the job that the item belongs to, for fair queueing.
            operation: the operation; hashable. Items with equal operations can share a batch.
            input: the input of ``operation.run``.
            cost: amount of work, in seconds of audio.
            ahead: whether the item runs before the job's other waiting items.

        Returns:
            A future of the item's result. Cancelling the future before the batch starts drops the item.

        Raises:
            EngineClosed: the worker was closed.
            DeviceLost: the device has failed.
            ForkedProcess: a parent of this process ran models before the fork.
        """
        fork.use_models()
        with self._changed:
            self.fault.check()
            if self._closed:
                raise EngineClosed("the engine is closed")
            self._start_threads()
            item = self._queue.push(job, operation, input, cost, ahead=ahead)
            self._changed.notify()
        return item.future

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Announce that this thread computes the input of an item and submits the item before the context ends.

        An idle lane whose next batch is far from full waits for announced items while another lane is busy.
        """
        token = object()
        with self._changed:
            self._expected.add(token)
        try:
            yield
        finally:
            with self._changed:
                self._expected.discard(token)
                if self._awaited is not None and token in self._awaited:
                    self._changed.notify_all()

    def serves_only(self, job: Hashable) -> bool:
        """Whether no other job has an item that waits or runs."""
        with self._changed:
            running = (item.job == job for batch in self._running.values() for item in batch.items)
            return all(running) and self._queue.holds_only(job)

    def forget(self, job: Hashable) -> None:
        """Remove a job from the queue and cancel its waiting items.

        The future of an item that has run in part gets a CancelledError, at once or after its current batch.
        """
        with self._changed:
            waiting = self._queue.forget(job)
            for batch in self._running.values():
                for item in batch.items:
                    item.dropped = item.dropped or item.job == job
        for item in waiting:
            if item.started:
                item.fail(CancelledError())
            elif item.future.cancel():
                item.future.set_running_or_notify_cancel()  # wakes the threads in concurrent.futures.wait()

    def close(self) -> None:
        """Finish the running batches, fail all waiting items with EngineClosed, and end the threads."""
        if fork.inherited():
            return
        with self._changed:
            self._closed = True
            waiting = self._queue.clear()
            threads = list(self._threads)
            self._changed.notify_all()
        for item in waiting:
            if item.started or item.future.set_running_or_notify_cancel():
                item.fail(self._end_of_work())
        # A lane that waits for a lost device may never end.
        if threading.current_thread() not in threads and not self.fault.reported:
            for thread in threads:
                thread.join()

    def _end_lost(self) -> None:
        """Fail all items, the running ones too, when the device is lost."""
        with self._changed:
            self._closed = True
            items = [item for batch in self._running.values() for item in batch.items]
            items += self._queue.clear()
            self._changed.notify_all()
        for item in items:
            if item.started or item.future.set_running_or_notify_cancel():
                item.fail(self.fault.error())

    def _is_lost(self, error: BaseException) -> bool:
        """Report the device as lost if an error that is no operation's says so, such as one of freeing memory."""
        lost = kind_of(error) == "sticky"
        if lost:
            self.fault.report(error)
        return lost

    def _end_of_work(self) -> EngineClosed | DeviceLost:
        return self.fault.error() if self.fault.reported else EngineClosed("the engine was closed while this job ran")

    def _start_threads(self) -> None:
        """Start the missing lanes. Called with the lock held.

        Raises:
            RuntimeError: the system cannot start a thread, and no lane runs.
        """
        for lane in range(len(self._threads), self.lanes):
            name = f"{self._name}-{lane}" if self.lanes > 1 else self._name
            thread = threading.Thread(target=self._loop, args=(lane,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    raise
                log.warning("%d of %d lanes run: %s", lane, self.lanes, error)
                return
            self._threads.append(thread)

    def _loop(self, lane: int) -> None:
        try:
            with self._scope():
                self._serve(lane)
        except BaseException as error:
            if self._is_lost(error):
                return
            # An operation's error goes to its future. This is any other error: close, so that no job waits for a dead
            # lane.
            log.critical("a worker thread has failed", exc_info=True)
            self.close()
            raise

    def _serve(self, lane: int) -> None:
        while (taken := self._next(lane)) is not None:
            batch, cores = taken
            begun = time.perf_counter()
            try:
                with cores:
                    self._runner.run(batch.operation, batch.items)
            except BaseException as error:
                self._is_lost(error)
                for item in batch.items:
                    item.fail(self._end_of_work())
                raise
            finally:
                with self._changed:
                    del self._running[lane]
                    self.counts.busy_seconds += time.perf_counter() - begun
                    self.counts.batches += 1
                    self.counts.items += len(batch.items)
                    self.counts.room += max(len(batch.items), self.limits.limit(batch.operation))
                    if self._queue:
                        self._changed.notify_all()
            # Frees the batch's inputs and results before the wait for the next batch.
            del batch, taken

    def _next(self, lane: int) -> tuple[Batch, AbstractContextManager[None]] | None:
        """Wait for the next batch and mark it as running; None when the worker was closed.

        Returns:
            The batch, and the context in which it runs: whether it may use the cores of the other lanes.
        """
        with self._changed:
            while not self._closed:
                batch = self._take()
                if batch is None:
                    self._changed.wait()
                elif batch.items:
                    self._running[lane] = batch
                    return batch, self._cores()
            return None

    def _cores(self) -> AbstractContextManager[None]:
        """The context of a batch that was taken. Called with the lock held."""
        usual = self._threads_of_batch
        return nullcontext() if usual is None else idle_cores.using(self._share(usual), usual, self._share_by_now)

    def _share(self, usual: int) -> int:
        """The number of threads that a running batch may use. Called with the lock held."""
        alone = len(self._running) == 1 and not self._queue and not self._expected
        return usual * self.lanes if alone else usual

    def _share_by_now(self) -> int:
        assert self._threads_of_batch is not None
        with self._changed:
            return self._share(self._threads_of_batch)

    def _take(self) -> Batch | None:
        """Remove the next batch from the queue; None when this lane must wait. Called with the lock held."""
        running = self._running.values()
        if any(item.alone for batch in running for item in batch.items):
            return None
        batch = self._queue.choose(self.limits.limit)
        if batch is None or (batch.items[0].alone and running) or self._worth_waiting(batch):
            return None
        self._awaited = None
        self._queue.remove(batch)
        # Drops canceled items; the futures of the others cannot be cancelled any more.
        batch.items = [item for item in batch.items if item.started or item.future.set_running_or_notify_cancel()]
        for item in batch.items:
            item.started = True
        return batch

    def _worth_waiting(self, batch: Batch) -> bool:
        """Whether a lane should wait for further items instead of running a batch that is far from full.

        The lane waits only for items that were announced before the wait began, and only while another lane is busy,
        so the wait needs no timer.
        """
        limit = self.limits.limit(batch.operation)
        if not self._running or limit == 1 or len(batch.items) > limit // 2:
            return False
        self._awaited = set(self._expected) if self._awaited is None else self._awaited & self._expected
        return bool(self._awaited)

    def _put_back(self, item: WorkItem, done: float) -> None:
        with self._changed:
            closed = self._closed
            if not closed and not item.dropped:
                self._queue.put_back(item, done)
                self._changed.notify()
                return
        item.fail(self._end_of_work() if closed else CancelledError())
