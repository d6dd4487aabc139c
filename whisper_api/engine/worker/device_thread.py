"""A thread that loads and unloads the models of one device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

__all__ = ["DeviceThread"]

T = TypeVar("T")


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
