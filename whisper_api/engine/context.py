"""What one job carries through its stages, instead of state on a shared model."""

from __future__ import annotations

import itertools
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from whisper_api.engine.worker.worker import is_out_of_memory
from whisper_api.errors import Canceled, EngineClosed, ForkedProcess, OutOfMemory
from whisper_api.schema import PartialSegments, Progress, Segment, Stage, TranscriptionOptions

if TYPE_CHECKING:
    from whisper_api.engine.models.cache import ModelCache, ModelSource
    from whisper_api.engine.models.store import LocalModel, ModelStore
    from whisper_api.engine.worker.device import Device
    from whisper_api.engine.worker.worker import BatchOperation, GpuWorker

__all__ = ["JobContext", "forget_frames"]

# How often a job thread that waits for its work item looks whether it was canceled.
POLL_SECONDS = 0.05

log = logging.getLogger(__name__)

T = TypeVar("T")
V = TypeVar("V")


class JobContext:
    """One job's options, its way to the models, and its progress.

    Args:
        options: with every default filled in.
        device: where models run.
        worker: the thread that runs them.
        models: where resident models are leased.
        store: where model files are.
        hf_token: the caller's Hugging Face token, if any; never logged.
        cancel: set by the caller to stop the job.
        closed: set when the engine is closed.
        on_progress: called from the job's thread with a :class:`~whisper_api.schema.Progress`.
        on_partial: called from the job's thread with a :class:`~whisper_api.schema.PartialSegments`.

    Attributes:
        stage_done: how far the running stage is, from 0 to 1.
    """

    def __init__(
        self,
        *,
        options: TranscriptionOptions,
        device: Device,
        worker: GpuWorker,
        models: ModelCache,
        store: ModelStore,
        hf_token: str | None = None,
        cancel: threading.Event | None = None,
        closed: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_partial: Callable[[PartialSegments], None] | None = None,
    ) -> None:
        self.options = options
        self.device = device
        self.models = models
        self.store = store
        self.hf_token = hf_token
        self.warnings: list[str] = []
        self.stage_done = 0.0
        self._worker = worker
        self._cancels = () if cancel is None else (cancel,)
        self._closed = closed
        self._on_progress = on_progress
        self._on_partial = on_partial
        self._callers_error: BaseException | None = None
        self._job: Hashable = object()
        self._stage: Stage = "load"
        self._stage_from = 0.0
        self._stage_to = 0.0
        self._reported = -1.0

    def check(self) -> None:
        """Stop here if the caller canceled, or closed the engine.

        Raises:
            Canceled: the cancel event is set.
            EngineClosed: the engine was closed.
        """
        if any(cancel.is_set() for cancel in self._cancels):
            raise Canceled("the job was canceled")
        if self._closed is not None and self._closed.is_set():
            raise EngineClosed("the engine was closed while this job ran")

    def lease(self, source: ModelSource[T]) -> AbstractContextManager[T]:
        """Use a resident model, as :meth:`ModelCache.lease` gives it; cancelling the job ends the wait for it."""
        return self.models.lease(source, check=self.check)

    def fetched(self, name: str) -> LocalModel:
        """A model's files, as :meth:`ModelStore.ensure` finds or fetches them; cancelling the job ends the wait."""
        return self.store.ensure(name, hf_token=self.hf_token, check=self.check)

    def ends_the_job(self, error: BaseException) -> bool:
        """Whether an error of an optional stage ends the job, instead of costing it only what the stage would give.

        That is so when the job was canceled, when the engine can run nothing any more, and when the error comes from a
        function of the caller.
        """
        return (
            not isinstance(error, Exception)
            or isinstance(error, (Canceled, CancelledError, EngineClosed, ForkedProcess))
            or error is self._callers_error
        )

    def do_without(self, loss: str, error: Exception) -> None:
        """Go on after an error of an optional stage, with a warning of what the transcript lacks.

        Args:
            loss: what it lacks, as the first half of a sentence.
            error: of the stage.

        Raises:
            Exception: the error itself, when it ends the job.
        """
        if self.is_fatal(error):
            raise error
        log.warning("%s", loss, exc_info=error)
        # Without the error's text: a transcript may go to people who have no business with the machine's paths.
        short_of_memory = isinstance(error, OutOfMemory) or is_out_of_memory(error)
        reason = "the memory ran out" if short_of_memory else "of an error, which is in the log"
        self.warn(f"{loss}, because {reason}")
        forget_frames(error)

    def beside(self, stop: threading.Event) -> JobContext:
        """A context for a part of this job that another thread runs meanwhile.

        It takes its turns on the device as the same job. Its warnings are its own, and its progress is only kept, in
        ``stage_done``.

        Args:
            stop: ends that part, as cancelling the job does.
        """
        part = JobContext(
            options=self.options,
            device=self.device,
            worker=self._worker,
            models=self.models,
            store=self.store,
            hf_token=self.hf_token,
            closed=self._closed,
        )
        part._cancels = (*self._cancels, stop)
        part._job = self._job
        return part

    def warn(self, message: str) -> None:
        """Say what could not be done; a sentence for :attr:`Transcript.warnings`, kept once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def tell(self, index: int, segments: Sequence[Segment], *, aligned: bool) -> None:
        """Tell what is said in one window, as far as it is known.

        Args:
            index: of the window, among those in which something is said.
            segments: its text.
            aligned: whether its words have the times they keep.
        """
        if self._on_partial is not None:
            numbered = tuple(replace(segment, id=number) for number, segment in enumerate(segments))
            self._call(self._on_partial, PartialSegments(index=index, aligned=aligned, segments=numbered))

    def begin(self, stage: Stage, start: float, end: float) -> None:
        """Enter a stage that takes the job from ``start`` to ``end``, as fractions of the whole."""
        self._stage, self._stage_from, self._stage_to = stage, start, end
        self.stage_done = 0.0
        self.progress(0.0)

    def progress(self, fraction: float) -> None:
        """Report how far the running stage is, from 0 to 1. Never goes back."""
        self.check()
        self.stage_done = max(self.stage_done, min(max(fraction, 0.0), 1.0))
        if self._on_progress is None:
            return
        overall = self._stage_from + (self._stage_to - self._stage_from) * self.stage_done
        if overall > self._reported or fraction == 0.0:
            self._reported = max(overall, self._reported)
            self._call(self._on_progress, Progress(round(self._reported, 4), self._stage))

    def _call(self, function: Callable[[V], None], value: V) -> None:
        """Call a function of the caller, and remember its error as the caller's."""
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
            items: operation, input and cost (seconds of audio) of each; taken lazily, so that a generator's inputs
                never all stand in memory.
            window: how many items may be in flight.
            ahead: so many of the first go before whatever else the job waits for.

        Yields:
            The results, in the order of the items.

        Raises:
            Canceled: the caller canceled; items that wait are dropped.
        """
        pending: deque[Future[Any]] = deque()
        try:
            source = iter(items)
            for number in itertools.count():
                with self._worker.expecting():
                    item = next(source, None)
                    if item is None:
                        break
                    self.check()
                    pending.append(self._worker.submit(self._job, *item, ahead=number < ahead))
                if len(pending) >= window:
                    yield self._wait(pending.popleft())
            while pending:
                yield self._wait(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Give up the job's place in the worker's queue."""
        self._worker.forget(self._job)

    def _wait(self, future: Future[Any]) -> Any:
        if not self._cancels:
            return future.result()
        while not wait((future,), timeout=POLL_SECONDS).done:
            if any(cancel.is_set() for cancel in self._cancels):
                future.cancel()
                raise Canceled("the job was canceled")
        self.check()
        return future.result()


def forget_frames(error: BaseException) -> None:
    """Free what the frames of an error hold, once the error is handled and somebody still keeps it.

    A future keeps the error of its work, the error its frames, and a frame often the future: such a cycle would keep a
    job's audio until Python next looks for cycles.
    """
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
