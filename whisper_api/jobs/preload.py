"""Prepares an executor in the background, and tries again until that succeeds."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence

from whisper_api.errors import DeviceError, DeviceLost, ModelError
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.outcomes import failure_of

log = logging.getLogger("whisper_api.jobs")

RETRY_SECONDS = (30.0, 60.0, 120.0, 300.0, 600.0)
CLOSE_SECONDS = 30.0
# Warming up uses a core for some seconds, so it waits for a moment without jobs; a busy server warms up after this many
# looks.
LOOK_SECONDS = 0.5
LOOKS = 40


class Preload:
    """Prepares an executor in a thread: loads the models that every job needs, then those that some jobs need.

    Args:
        executor: the executor.
        retry_seconds: pauses after the first failure, the second and so on; the last pause repeats.
        idle: returns whether no job waits or runs.
        on_device_lost: called when the device has failed. There is no further attempt then.

    Attributes:
        failure: why the executor is not ready, and what to do; empty when it is ready or the first attempt still runs.
    """

    def __init__(
        self,
        executor: Executor,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
        idle: Callable[[], bool] = lambda: True,
        on_device_lost: Callable[[DeviceLost], None] = lambda error: None,
    ) -> None:
        self._executor = executor
        self._retry_seconds = retry_seconds
        self._idle = idle
        self._on_device_lost = on_device_lost
        self._tried = threading.Event()
        self._enough = threading.Event()
        self._closed = threading.Event()
        self._warm = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure = ""

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="preload", daemon=True)
        self._thread.start()

    @property
    def tried(self) -> bool:
        """Whether the first attempt has ended, successfully or not."""
        return self._tried.is_set()

    @property
    def warming_up(self) -> bool:
        """Whether jobs can run while models that only some jobs need are still being loaded."""
        return self.tried and not self.failure and not self._warm.is_set()

    def wait_until_tried(self) -> None:
        """Block until the first attempt has ended, or until :meth:`close`."""
        self._tried.wait()

    def succeeded(self) -> None:
        """Note that a job has run, which proves that the executor is ready."""
        if self.failure:
            log.info("models ready")
        self.failure = ""
        self._enough.set()

    def close(self) -> None:
        """Begin no further attempt. Closing the executor ends an attempt that runs."""
        self._closed.set()
        self._enough.set()
        self._tried.set()

    def join(self) -> None:
        """Wait for the thread's end after :meth:`close`, for a limited time."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        for pause in itertools.chain(self._retry_seconds, itertools.repeat(self._retry_seconds[-1])):
            if self._attempt() or self._enough.wait(pause):
                break
        self._warm_up()

    def _attempt(self) -> bool:
        try:
            self._executor.preload()
        except BaseException as error:
            self._failed(error)
            if isinstance(error, DeviceLost):
                self._on_device_lost(error)
                return True
            return False
        else:
            if not self._enough.is_set():
                self.succeeded()
            return True
        finally:
            # Set last, so that no thread reads the outcome before it is stored.
            self._tried.set()

    def _warm_up(self) -> None:
        for _ in range(LOOKS):
            if self._closed.wait(LOOK_SECONDS):
                return
            if self._idle():
                break
        try:
            self._executor.warm_up()
        except BaseException as error:
            if isinstance(error, DeviceLost):
                self._on_device_lost(error)
            if not self._closed.is_set():
                known = isinstance(error, (ModelError, DeviceError))
                log.warning("not all models were loaded: %s", error, exc_info=None if known else error)
        finally:
            self._warm.set()

    def _failed(self, error: BaseException) -> None:
        if self._enough.is_set():
            return
        known = isinstance(error, (ModelError, DeviceError))
        log.error("models not ready: %s", error, exc_info=None if known else error)
        self.failure = f"The models cannot be loaded: {_advice(error)} The server tries again from time to time."


def _advice(error: BaseException) -> str:
    """Advice for an error, without the machine's paths, because the health check needs no key."""
    # The first sentence says what is missing. Further sentences name the sources and why each failed.
    text = failure_of(error).error.partition(". ")[0].rstrip(".")
    if isinstance(error, ModelError):
        return f"{text}. `whisper-api models list` shows which are here, `whisper-api doctor` what is wrong."
    if isinstance(error, DeviceError):
        return f"{text}. `whisper-api doctor` shows what this machine has; WHISPER_DEVICE says what to use."
    return f"{type(error).__name__}; the server's log says more."
