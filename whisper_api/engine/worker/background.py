"""A task in a background thread."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

__all__ = ["BackgroundTask"]

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
