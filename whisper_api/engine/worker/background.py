"""Work that goes on in a thread beside a job's own, while that decodes."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

__all__ = ["BackgroundTask"]

T = TypeVar("T")


class BackgroundTask(Generic[T]):
    """Something that is done once, from now on.

    Args:
        name: of the thread.
        work: what is done. What it raises is raised to whoever asks for its result.
    """

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            # The system has no thread to give: that is how this work ends, not the job that it belongs to.
            self._future.set_exception(error)

    def failed(self) -> bool:
        """Whether it has ended with an error."""
        return self._future.done() and self._future.exception() is not None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, at the latest after so many seconds."""
        return bool(wait((self._future,), timeout=seconds).done)

    def result(self) -> T:
        """What it gave, when it has ended."""
        return self._future.result()

    def join(self) -> None:
        """Wait until it has ended."""
        wait((self._future,))

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._future.set_result(work())
        except BaseException as error:
            self._future.set_exception(error)
            # The future holds the error, and the error its frames: their variables would keep the job's audio alive.
            traceback.clear_frames(error.__traceback__)
        finally:
            del self, work
