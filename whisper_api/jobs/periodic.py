"""A thread that calls a function from time to time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from whisper_api.errors import StorageError

log = logging.getLogger("whisper_api.jobs")


class Periodic:
    """Calls a function in a thread, again and again with the same pause. Its errors are logged.

    Args:
        name: name of the thread.
        step: the function.
        failure: what could not be done, for the log.
    """

    def __init__(self, name: str, step: Callable[[], None], failure: str) -> None:
        self._step = step
        self._failure = failure
        self._closing = threading.Event()
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self, seconds: float) -> None:
        """Start the thread.

        Args:
            seconds: the pause before each call, also before the first.
        """
        self._seconds = seconds
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the call that runs now."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(self._seconds):
            self._call()

    def _call(self) -> None:
        try:
            self._step()
        except StorageError as error:
            log.error("%s: %s", self._failure, error)
        except Exception:
            log.exception("%s", self._failure)
