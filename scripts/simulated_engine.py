"""Executors that compute nothing: one sleeps as long as a GPU would take, the other reports as an engine does.

They are for bench_cluster.py and bench_front.py. The time of a batch is that of turbo on an H200 with CTranslate2, by
the cost model and its range of 1,300 to 2,500 seconds of audio per second at large batches: 80 ms for launching kernels
whatever the batch, and 20 ms for each window. Jobs share batches in turn, as on the real worker.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whisper_api.errors import Canceled
from whisper_api.schema import PartialSegments, Progress, Segment, Transcript, Word
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor, fake_transcript

WINDOW_SECONDS = 30.0
LAUNCH_SECONDS, WINDOW_COST_SECONDS = 0.08, 0.02
MOST_WINDOWS = 16
# Where each engine notes its batches: the time and the number of windows, in lines.
NOTES = "SIMULATED_NOTES"
# What an engine reports for a recording of 30 s, and the time between two reports, in which another thread works.
REPORTS = (
    Progress(0.05, "vad"),
    Progress(0.1, "asr"),
    Progress(0.4, "asr"),
    Progress(0.6, "align"),
    Progress(0.8, "diarize"),
    Progress(0.95, "diarize"),
)
WORDS, REPORT_SECONDS = 75, 0.01


class SimulatedEngine(FakeExecutor):
    """Runs all jobs on one pretended GPU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._left: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._notes = (Path(os.environ[NOTES]) / f"{os.getpid()}").open("a", buffering=1)
        threading.Thread(target=self._work, daemon=True).start()

    def run(self, job: Job, audio: Path, *, on_progress: Any, cancel: threading.Event, **rest: Any) -> Transcript:
        windows = max(1, round((job.audio_seconds or 0) / WINDOW_SECONDS))
        with self._changed:
            self._left[job.job_id] = windows
            self._changed.notify_all()
            while left := self._left.get(job.job_id, 0):
                self._changed.wait(0.5)
                on_progress(Progress(1.0 - left / windows, "asr"))
                if cancel.is_set():
                    del self._left[job.job_id]
                    raise Canceled("canceled")
            self._left.pop(job.job_id, None)
        return fake_transcript(job.job_id, job.options)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: any(self._left.values()))
                batch: collections.Counter[str] = collections.Counter()
                while sum(batch.values()) < MOST_WINDOWS:
                    waiting = [job for job, left in self._left.items() if left > batch[job]]
                    if not waiting:
                        break
                    batch.update(waiting[: MOST_WINDOWS - sum(batch.values())])
            count = sum(batch.values())
            time.sleep(LAUNCH_SECONDS + WINDOW_COST_SECONDS * count)
            self._notes.write(f"{time.time()} {count}\n")
            with self._changed:
                for job, windows in batch.items():
                    if job in self._left:
                        self._left[job] -= windows
                self._changed.notify_all()


class ReportingEngine(FakeExecutor):
    """Reports what an engine reports for a recording of 30 s, a piece every ten milliseconds.

    Args:
        config: the configuration.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        words = tuple(
            Word(word=f"word{number}", start=number * 0.4, end=number * 0.4 + 0.3, score=0.9) for number in range(WORDS)
        )
        text = " ".join(word.word for word in words)
        self._segments = (Segment(id=0, start=0.0, end=WORDS * 0.4, text=text, words=words),)

    def run(
        self,
        job: Job,
        audio: Path,
        *,
        on_progress: Callable[[Progress], None],
        on_partial: Callable[[PartialSegments], None],
        cancel: threading.Event,
        **rest: Any,
    ) -> Transcript:
        for progress in REPORTS:
            on_progress(progress)
            if progress in REPORTS[2:4]:
                on_partial(PartialSegments(index=0, aligned=progress.stage == "align", segments=self._segments))
            if cancel.wait(REPORT_SECONDS):
                raise Canceled("canceled")
        return Transcript(
            language="en", duration=30.0, segments=self._segments, model="fake", options=job.options, timings={}
        )
