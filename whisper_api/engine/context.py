"""The state of one job. Models are shared, so no state of a job may live on a model."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec.structs import replace

from whisper_api.engine.models.cache import ModelCache, ModelSource
from whisper_api.engine.models.files import LocalModel
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.options import ResolvedOptions
from whisper_api.engine.plan import StagePlan
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.device_errors import clear_frames, is_out_of_memory, kind_of
from whisper_api.engine.worker.fair_queue import BatchOperation
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import Canceled, DeviceLost, EngineClosed, ForkedProcess, ModelUnavailable
from whisper_api.schema import PartialSegments, Progress, Segment, Stage

# Interval at which a waiting job thread checks for cancellation.
POLL_SECONDS = 0.05

log = logging.getLogger(__name__)

T = TypeVar("T")
V = TypeVar("V")


# Without a representation, which would show the token.
@dataclass(kw_only=True, eq=False, repr=False)
class JobContext:
    """One job: its options, its access to the models, its warnings and its progress.

    Args:
        options: with every default filled in.
        device: the device that runs the models.
        worker: the thread that runs the models.
        models: the cache of resident models.
        store: the store of model files.
        hf_token: the caller's Hugging Face token, if any; never logged.
        cancel: set by the caller to stop the job.
        stops: set to end this part of the job.
        closed: set when the engine is closed.
        on_progress: called from the job's thread with a :class:`~whisper_api.schema.Progress`.
        on_partial: called from the job's thread with a :class:`~whisper_api.schema.PartialSegments`.
        on_missing_model: called with the name of a missing model, which is then not downloaded; None downloads missing
            models.
        job: what the worker counts work items by.

    Attributes:
        warnings: a sentence for each request that could not be fulfilled.
        stage_done: completed fraction of the running stage, from 0 to 1.
    """

    options: ResolvedOptions
    device: Device
    worker: GpuWorker
    models: ModelCache
    store: ModelStore
    hf_token: str | None = None
    cancel: threading.Event | None = None
    stops: tuple[threading.Event, ...] = ()
    closed: threading.Event | None = None
    on_progress: Callable[[Progress], None] | None = None
    on_partial: Callable[[PartialSegments], None] | None = None
    on_missing_model: Callable[[str], None] | None = None
    job: Hashable = field(default_factory=object)
    warnings: list[str] = field(init=False, default_factory=list)
    stage_done: float = field(init=False, default=0.0)
    _callers_error: BaseException | None = field(init=False, default=None)
    _stage: Stage = field(init=False, default="load")
    _reported: float = field(init=False, default=-1.0)
    _range: tuple[float, float] = field(init=False, default=(0.0, 1.0))

    def __post_init__(self) -> None:
        self._cancels = (*(() if self.cancel is None else (self.cancel,)), *self.stops)
        self._plan = StagePlan.of(self.options)

    def check(self) -> None:
        """Raise if the job was canceled or the engine closed.

        Raises:
            Canceled: the cancel event is set.
            EngineClosed: the engine was closed.
        """
        if any(cancel.is_set() for cancel in self._cancels):
            raise Canceled("the job was canceled")
        if self.closed is not None and self.closed.is_set():
            raise EngineClosed("the engine was closed while this job ran")

    def lease(self, source: ModelSource[T]) -> AbstractContextManager[T]:
        """Lease a resident model (:meth:`ModelCache.lease`). Cancelling the job ends the wait for it."""
        return self.models.lease(source, check=self.check)

    def fetch_model(self, name: str) -> LocalModel:
        """Find or download a model's files (:meth:`ModelStore.ensure`). Cancelling the job ends the wait.

        Raises:
            ModelUnavailable: the model is not on this machine, and the job's caller does not let it download models.
        """
        if self._leaves_to_caller(name):
            raise ModelUnavailable(f"{name} is not on this machine. `whisper-api models pull {name}` downloads it.")
        return self.store.ensure(name, hf_token=self.hf_token, check=self.check)

    def obtainable(self, names: Iterable[str]) -> set[str]:
        """The models that are on this machine, or that :meth:`fetch_model` may download now.

        The caller is told about all missing models, even when its error at the first of them ends the job: so a queue
        downloads all of them before the job runs again.
        """
        found = set()
        stop: BaseException | None = None
        for name in names:
            if self.store.find(name) is not None:
                found.add(name)
                continue
            try:
                left = self._leaves_to_caller(name)
            except BaseException as error:
                stop = stop or error
            else:
                if not left and self.store.can_download(name):
                    found.add(name)
        if stop is not None:
            self._callers_error = stop
            raise stop
        return found

    def is_fatal(self, error: BaseException) -> bool:
        """Whether an error ends the job even if an optional stage raised it.

        Cancellation, the end of the engine or of its device, and errors of the caller's own callbacks are fatal. Any
        other error of an optional stage costs only the result of that stage.
        """
        return (
            not isinstance(error, Exception)
            or isinstance(error, (Canceled, CancelledError, DeviceLost, EngineClosed, ForkedProcess))
            or kind_of(error) == "sticky"
            or error is self._callers_error
        )

    def continue_without(self, loss: str, error: Exception) -> None:
        """Continue after an error of an optional stage, with a warning that says what the transcript lacks.

        Args:
            loss: what the transcript lacks, as the first half of a sentence.
            error: the stage's error.

        Raises:
            Exception: ``error`` itself, if it is fatal.
        """
        if self.is_fatal(error):
            raise error
        log.warning("%s", loss, exc_info=error)
        # The error's text may name paths of this machine, and other people read transcripts: leave the text out.
        reason = "the memory ran out" if is_out_of_memory(error) else "of an error, which is in the log"
        self.warn(f"{loss}, because {reason}")
        forget_frames(error)

    def subcontext(self, stop: threading.Event) -> JobContext:
        """A context for a stage of this job that runs in another thread.

        The worker counts its work items as this job's. The warnings are separate, and progress is not reported but
        kept in ``stage_done``.

        Args:
            stop: set it to end that stage, as cancelling the job does.
        """
        # The callback runs through this context, which must recognise the callback's error to end the job with it.
        on_missing = self.on_missing_model
        return dataclasses.replace(
            self,
            stops=(*self.stops, stop),
            on_progress=None,
            on_partial=None,
            on_missing_model=None if on_missing is None else lambda name: self._call(on_missing, name),
        )

    def warn(self, message: str) -> None:
        """Add a sentence to :attr:`Transcript.warnings`, unless it is there already."""
        if message not in self.warnings:
            self.warnings.append(message)

    def emit_partial(self, index: int, segments: Sequence[Segment], *, aligned: bool, redacted: bool = False) -> None:
        """Call the caller's ``on_partial`` with the text of one window.

        A job with the option ``redact`` emits redacted text only, which is known when the whole recording is
        recognised: a number may be cut between two windows, and a name may show itself late.

        Args:
            index: number of the window, among those that have text.
            segments: the text.
            aligned: whether the words have their final times.
            redacted: whether personal data is replaced in the text.
        """
        if self.options.redact and not redacted:
            return
        if self.on_partial is not None:
            numbered = tuple(replace(segment, id=number) for number, segment in enumerate(segments))
            self._call(self.on_partial, PartialSegments(index=index, aligned=aligned, segments=numbered))

    def begin(self, stage: Stage) -> None:
        """Enter a stage of the job's plan, or ``done``."""
        self._stage = stage
        self.stage_done = 0.0
        self.progress(0.0)

    def progress(self, fraction: float) -> None:
        """Report the completed fraction of the running stage, from 0 to 1. The reported progress never decreases."""
        self.check()
        first, last = self._range
        self.stage_done = max(self.stage_done, first + (last - first) * min(max(fraction, 0.0), 1.0))
        if self.on_progress is None:
            return
        progress = self._plan.progress(self._stage, self.stage_done)
        if progress.fraction > self._reported or fraction == 0.0:
            self._reported = max(progress.fraction, self._reported)
            self._call(self.on_progress, replace(progress, fraction=self._reported))

    @contextlib.contextmanager
    def within(self, first: float, last: float) -> Iterator[None]:
        """While open, what is reported as 0 to 1 counts as ``first`` to ``last`` of the stage."""
        before, self._range = self._range, (first, last)
        try:
            yield
        finally:
            self._range = before

    def _leaves_to_caller(self, name: str) -> bool:
        """Tell the caller about a missing model. Returns False when the job itself may download it, or has it."""
        if self.on_missing_model is None or not self.store.can_download(name):
            return False
        self._call(self.on_missing_model, name)
        return True

    def _call(self, function: Callable[[V], None], value: V) -> None:
        """Call a callback of the caller. Its error is recorded as the caller's, because such errors are fatal."""
        try:
            function(value)
        except BaseException as error:
            self._callers_error = error
            raise

    def run(
        self, items: Iterable[tuple[BatchOperation, Any, float]], *, window: int = 16, ahead: int = 0
    ) -> Generator[Any, None, None]:
        """Run work items on the device, interleaved with those of other jobs.

        Args:
            items: operation, input and cost (seconds of audio) of each item; read lazily, so that a generator's inputs
                are never all in memory.
            window: largest number of items in flight.
            ahead: number of first items that run before all other items of this job.

        Yields:
            The results, in the order of the items.

        Raises:
            Canceled: the caller canceled the job; waiting items are dropped.
        """
        pending: deque[Future[Any]] = deque()
        try:
            source = iter(items)
            for number in itertools.count():
                with self.worker.expecting():
                    item = next(source, None)
                    if item is None:
                        break
                    self.check()
                    pending.append(self.worker.submit(self.job, *item, ahead=number < ahead))
                if len(pending) >= window:
                    yield self.result_of(pending.popleft())
            while pending:
                yield self.result_of(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def submit_if_idle(self, operation: BatchOperation, input: Any, cost: float) -> Future[Any] | None:
        """Submit a work item that may run before its stage; None when another job has work for the device."""
        if not self.worker.serves_only(self.job):
            return None
        return self.worker.submit(self.job, operation, input, cost)

    def close(self) -> None:
        """Remove the job from the worker's queue."""
        self.worker.forget(self.job)

    def result_of(self, future: Future[Any]) -> Any:
        """Wait for a submitted work item.

        Raises:
            Canceled: the caller canceled the job.
        """
        if not self._cancels:
            return future.result()
        while not wait((future,), timeout=POLL_SECONDS).done:
            if any(cancel.is_set() for cancel in self._cancels):
                future.cancel()
                raise Canceled("the job was canceled")
        self.check()
        return future.result()


def forget_frames(error: BaseException) -> None:
    """Free the local variables in the frames of an error that is handled but still referenced.

    A future references its error, the error its frames, and a frame often the future. Such a cycle would keep a job's
    audio in memory until the next run of the garbage collector.
    """
    clear_frames(error)
    error.__traceback__ = None
