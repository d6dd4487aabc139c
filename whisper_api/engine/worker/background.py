"""Tasks in other threads: one task in a thread of its own, or those that load and unload the models of one device."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class BackgroundTask(Generic[T]):
    """Runs a function once in a new daemon thread, which starts at construction.

    Args:
        name: the thread's name.
        work: the function. :meth:`result` returns its value or raises its error.
    """

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            # The system cannot start a thread. This ends the task with an error, but not the job that started it.
            self._future.set_exception(error)

    def failed(self) -> bool:
        """Whether the task has ended with an error."""
        return self._future.done() and self._future.exception() is not None

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds, and return whether the task has ended."""
        return bool(wait((self._future,), timeout=seconds).done)

    def result(self) -> T:
        """Wait for the end of the task, and return its value or raise its error."""
        return self._future.result()

    def join(self) -> None:
        """Wait for the end of the task."""
        wait((self._future,))

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._future.set_result(work())
        except BaseException as error:
            self._future.set_exception(error)
            # The future references the error, and the error its frames, whose variables keep the job's audio alive.
            traceback.clear_frames(error.__traceback__)
        finally:
            del self, work


class DeviceThread:
    """Runs tasks one after the other in one thread, in the scope of a device.

    CTranslate2's and torch's streams belong to a thread and to the device that was current when the thread used them
    first. So a model is loaded and unloaded by a thread that lives as long as the model and knows one device only.

    Args:
        name: the thread's name.
        scope: makes the context in which the thread runs: :meth:`Device.scope`.
    """

    def __init__(self, name: str, scope: Callable[[], AbstractContextManager[None]]) -> None:
        self._name = name
        self._scope = scope
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._thread: threading.Thread | None = None

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Run a task after those before it.

        Raises:
            RuntimeError: the system cannot start a thread, or the thread cannot enter the device's scope.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._thread is None:
                entered: Future[None] = Future()
                thread = threading.Thread(target=self._loop, args=(entered,), name=self._name, daemon=True)
                thread.start()
                # Otherwise a task would wait for ever for a thread that the device has refused.
                entered.result()
                self._thread = thread
            self._tasks.put((task, future))
        return future

    def run(self, task: Callable[[], T]) -> T:
        """Run a task, at once in the thread itself, and wait for its end."""
        return task() if threading.current_thread() is self._thread else self.submit(task).result()

    def close(self, *, wait: bool = True) -> None:
        """End the thread after the tasks that were submitted. A later task starts a new one.

        Args:
            wait: whether to wait for its end.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._tasks.put(None)
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def _loop(self, entered: Future[None]) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._scope())
            except BaseException as error:
                entered.set_exception(error)
                return
            entered.set_result(None)
            del entered
            while (entry := self._tasks.get()) is not None:
                task, future = entry
                try:
                    future.set_result(task())
                except BaseException as error:
                    future.set_exception(error)
                # Otherwise the waiting thread keeps the last task's model.
                del entry, task, future
