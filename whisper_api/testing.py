"""For tests of programs that embed the server: an executor that loads no model.

::

    from whisper_api import Config, create_app
    from whisper_api.testing import FakeExecutor

    app = create_app(Config(data_dir=tmp_path / "data", tmp_dir=tmp_path / "uploads"), executor=FakeExecutor("Hello."))

Queue, database, routes and events are the real ones; only the transcription is made up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from whisper_api.errors import Canceled, EngineClosed, InvalidAudio
from whisper_api.jobs.executor import EngineCount, ExecutorFacts, OnMissingModel, OnPartial, OnProgress
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress, Segment, Transcript
from whisper_api.store.rows import Job
from whisper_api.voices import VoiceEmbedding, VoiceSample

POLL_SECONDS = 0.002


def fake_transcript(
    text: str, options: TranscriptionOptions | None = None, *, timings: Mapping[str, float] | None = None
) -> Transcript:
    """A transcript of one English segment that is ten seconds long.

    Args:
        text: the segment's text.
        options: the transcript's options; None for the defaults.
        timings: seconds that each stage took.
    """
    options = options or TranscriptionOptions()
    return Transcript(
        language="en",
        duration=10.0,
        segments=(Segment(id=0, start=0.0, end=10.0, text=text),),
        model=options.model or "fake",
        options=options,
        timings=dict(timings or {}),
    )


class FakeExecutor:
    """An :class:`~whisper_api.jobs.executor.Executor` whose jobs do what the test says.

    Args:
        text: the text of every transcript; None makes the uploaded bytes the text, which tells transcripts apart.
        held: jobs run until :meth:`release` is called, or until they are canceled.
        behave: called in the job's thread while the job runs; the job ends with the exception that ``behave`` raises.

    Attributes:
        started: ids of the jobs in the order in which they started.
        cancels: the event that asks a job to stop, by job id.
        active, most_active: how many jobs run now, and the most that ran at a time.
        together: how many jobs ran when this job started, by job id.
        beats: whether held jobs report progress all the time.
        timings: the timings of every transcript.
        refusal: the exception that ``check`` raises.
        preload_errors, warm_up_errors: exceptions that the next calls of ``preload`` and ``warm_up`` raise.
        preload_gate, warm_up_gate, download_gate: the methods of these names wait while their gate is cleared.
        warmed: how often ``warm_up`` was called.
        missing: names of models that must be downloaded before jobs with these models can run. A language stands for
            its alignment model, which a job finds missing while it runs.
        trusted: names of the models that count as named by the configuration.
        downloads: names of the models whose download has started, in order.
        downloading: how many downloads run now.
        download_errors: the exception that ``download_model`` raises, by model name.
        voices: the names that a job looked for, by job id.
        voice_model: name of the model of :meth:`enroll`.
        closed: whether ``close`` was called.
        used_after_close: whether a method was called after ``close``.
    """

    device = "cpu"
    activity = ""
    isolates = False

    def __init__(
        self,
        text: str | None = None,
        *,
        held: bool = False,
        behave: Callable[[FakeExecutor, Job], None] | None = None,
    ) -> None:
        self.text = text
        self.held = held
        self.behave = behave
        self.started: list[str] = []
        self.cancels: dict[str, threading.Event] = {}
        self.active = 0
        self.most_active = 0
        self.together: dict[str, int] = {}
        self.beats = False
        self.timings: dict[str, float] = {}
        self.refusal: Exception | None = None
        self.preload_errors: list[BaseException] = []
        self.preload_gate = _open_gate()
        self.warm_up_errors: list[BaseException] = []
        self.warm_up_gate = _open_gate()
        self.warmed = 0
        self.missing: set[str] = set()
        self.trusted: set[str] = set()
        self.downloads: list[str] = []
        self.downloading = 0
        self.download_gate = _open_gate()
        self.download_errors: dict[str, Exception] = {}
        self.voices: dict[str, tuple[str, ...]] = {}
        self.voice_model = "fake"
        self.closed = False
        self.used_after_close = False
        self._released: set[str] = set()
        self._lock = threading.Lock()

    def engines(self) -> EngineCount:
        """One engine."""
        return EngineCount(running=1, wanted=1)

    def on_engines(self, callback: Callable[[int], None]) -> None:
        """Call the function once, with one engine."""
        callback(1)

    def facts(self) -> ExecutorFacts:
        """A fixed description: the device ``cpu`` and the model ``fake``."""
        return ExecutorFacts(device=self.device, model="fake", compute_type="none")

    def model_name(self, options: TranscriptionOptions) -> str:
        """The model that the options name, or ``fake``."""
        return options.model or "fake"

    def named_by_configuration(self, options: TranscriptionOptions) -> bool:
        """Whether the options name no model or a model in :attr:`trusted`."""
        return options.model is None or options.model in self.trusted

    def missing_models(self, options: TranscriptionOptions, hf_token: str | None) -> tuple[str, ...]:
        """The model that the options name, when it is in :attr:`missing`."""
        return tuple(name for name in (options.model,) if name in self.missing)

    def download_model(self, name: str, cancel: threading.Event, hf_token: str | None) -> None:
        """Wait for :attr:`download_gate`, then raise the test's error or remove the name from :attr:`missing`."""
        self._check_open()
        with self._lock:
            self.downloads.append(name)
            self.downloading += 1
        try:
            while not self.download_gate.wait(POLL_SECONDS):
                if cancel.is_set():
                    raise Canceled("the download was canceled")
            if name in self.download_errors:
                raise self.download_errors[name]
            self.missing.discard(name)
        finally:
            with self._lock:
                self.downloading -= 1

    def preload(self) -> None:
        """Wait for :attr:`preload_gate`, then raise the next of :attr:`preload_errors`."""
        self._check_open()
        self.preload_gate.wait()
        if self.preload_errors:
            raise self.preload_errors.pop(0)

    def warm_up(self) -> None:
        """Wait for :attr:`warm_up_gate`, then raise the next of :attr:`warm_up_errors`."""
        self._check_open()
        self.warmed += 1
        self.warm_up_gate.wait()
        if self.warm_up_errors:
            raise self.warm_up_errors.pop(0)

    def check(self, options: TranscriptionOptions, hf_token: str | None) -> None:
        """Raise :attr:`refusal` when the test has set it."""
        if self.refusal is not None:
            raise self.refusal

    def run(
        self,
        job: Job,
        audio: Path,
        *,
        on_progress: OnProgress,
        on_partial: OnPartial,
        on_missing_model: OnMissingModel,
        cancel: threading.Event,
        voices: Mapping[str, VoiceEmbedding] | None = None,
    ) -> Transcript:
        """Report progress, call ``behave``, wait while the job is held, and return :meth:`transcript`."""
        self._check_open()
        with self._lock:
            self.started.append(job.job_id)
            self.cancels[job.job_id] = cancel
            self.voices[job.job_id] = tuple(voices or ())
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            self.together[job.job_id] = self.active
        try:
            on_progress(Progress(0.5, "asr"))
            if job.options.language in self.missing:
                on_missing_model(job.options.language)
            if self.behave is not None:
                self.behave(self, job)
            while self.held and job.job_id not in self._released:
                if self.beats:
                    on_progress(Progress(0.6, "asr"))
                if cancel.wait(POLL_SECONDS):
                    break
            if cancel.is_set():
                raise Canceled("the job was canceled")
            return self.transcript(job, audio)
        finally:
            with self._lock:
                self.active -= 1

    def transcript(self, job: Job, audio: Path) -> Transcript:
        """The transcript of a job; a subclass overrides this to have words, speakers or another language.

        Args:
            job: the job that runs.
            audio: its upload.
        """
        text = self.text if self.text is not None else audio.read_text(encoding="utf-8", errors="replace")
        return fake_transcript(text, job.options, timings=self.timings)

    def enroll(self, recordings: Sequence[bytes]) -> VoiceEmbedding:
        """A vector for each recording: two recordings are alike if their sizes are both even or both odd."""
        self._check_open()
        for number, recording in enumerate(recordings, start=1):
            if not recording:
                raise InvalidAudio(f"recording {number}: nobody can be heard")
        even = (len(recording) % 2 == 0 for recording in recordings)
        samples = tuple(VoiceSample(seconds=1.0, vector=(float(each), float(not each))) for each in even)
        return VoiceEmbedding(model=self.voice_model, samples=samples)

    def close(self) -> None:
        """Note the call; later calls of other methods raise EngineClosed."""
        self.closed = True

    def release(self, *job_ids: str) -> None:
        """Let these held jobs end; without ids, let all jobs end, those to come included."""
        if job_ids:
            self._released.update(job_ids)
        else:
            self.held = False

    def _check_open(self) -> None:
        if self.closed:
            self.used_after_close = True
            raise EngineClosed("the executor is closed")


def _open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate
