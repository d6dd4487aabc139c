"""How a submission becomes a job, or turns out to be one that is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from whisper_api.config import Downloaders
from whisper_api.errors import IdempotencyConflict, ModelUnavailable
from whisper_api.jobs.estimates import Estimates
from whisper_api.jobs.executor import Executor
from whisper_api.jobs.reservations import Reservation, Reservations
from whisper_api.jobs.running import RunningJobs
from whisper_api.jobs.submission import Submission
from whisper_api.schema import TranscriptionOptions
from whisper_api.store.jobs import AlreadyThere, Job, JobStore

__all__ = ["JOIN_SECONDS", "Admission"]

log = logging.getLogger("whisper_api.jobs")

# How long ago a job may have ended that another one joins: a client whose connection broke has come again by then.
JOIN_SECONDS = 600.0


class Admission:
    """Accepts jobs. Safe to use from any thread.

    Args:
        store, executor, reservations, running, estimates: the service's.
        check_open: raises Draining once no job is taken any more.
        model_downloads: whose jobs may name a model that has to be downloaded.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        reservations: Reservations,
        running: RunningJobs,
        estimates: Estimates,
        check_open: Callable[[], None],
        model_downloads: Downloaders,
    ) -> None:
        self._store = store
        self._executor = executor
        self._reservations = reservations
        self._running = running
        self._estimates = estimates
        self._check_open = check_open
        self._model_downloads = model_downloads

    def submit(self, submission: Submission, place: Reservation) -> Job:
        """As :meth:`~whisper_api.jobs.service.JobService.submit`."""
        with self._reservations.submitting(place) as enqueue:
            self._check_open()
            self._executor.check(submission.options, submission.hf_token)
            self._check_download(submission)
            try:
                job = self._add(submission, time.time())
            except AlreadyThere as there:
                _check_same(there.job, submission.fingerprint)
                log.info("job submitted again", extra={"job_id": there.job.job_id})
                return there.job
            self._estimates.expect(job)
            enqueue()
        log.info(
            "job submitted",
            extra={"job_id": job.job_id, "audio_bytes": job.audio_bytes, "audio_seconds": job.audio_seconds},
        )
        return job

    def find(self, owner: str, fingerprints: Mapping[str, str | None]) -> dict[str, Job]:
        """As :meth:`~whisper_api.jobs.service.JobService.find_submitted`."""
        found = self._store.by_idempotency_keys(owner, fingerprints.keys())
        for key, job in found.items():
            _check_same(job, fingerprints[key])
        return found

    def find_to_join(self, submission: Submission) -> Job | None:
        """As :meth:`~whisper_api.jobs.service.JobService.find_to_join`."""
        now = time.time()
        return self._store.to_join(submission.job(now), now - JOIN_SECONDS, self._not_to_join(submission))

    def _check_download(self, submission: Submission) -> None:
        """Refuse a job that names a model which is not here, when its owner may not make the server download one.

        The model of the configuration is downloaded for everybody: the administrator has named it there.
        """
        if self._model_downloads == "anyone" or self._executor.missing_model(submission.options) is None:
            return
        name = self._executor.model_name(submission.options)
        if name == self._executor.model_name(TranscriptionOptions()):
            return
        key = self._store.key(submission.owner)
        # Without authorization there are no keys, and everybody may do what administrators may.
        is_administrator = not submission.owner or (key is not None and key[0].role == "admin")
        if self._model_downloads == "administrators" and is_administrator:
            return
        may = "administrators" if self._model_downloads == "administrators" else "nobody"
        raise ModelUnavailable(
            f"model: {name} is not on this server, and WHISPER_MODEL_DOWNLOADS lets {may} make the server download a "
            f"model. `whisper-api models pull {name}` on the server fetches it."
        )

    def _add(self, submission: Submission, now: float) -> Job:
        if not submission.join:
            return self._store.add(submission.job(now))
        not_to_join = self._not_to_join(submission)
        return self._store.add(submission.job(now), join_after=now - JOIN_SECONDS, not_to_join=not_to_join)

    def _not_to_join(self, submission: Submission) -> frozenset[str]:
        # Nobody wants a job for its result that is about to end without one.
        leaving = (each.job_id for each in self._running.all() if self._running.reason(each) == "cancel")
        return submission.not_to_join.union(leaving)


def _check_same(job: Job, fingerprint: str | None) -> None:
    if job.fingerprint != fingerprint:
        raise IdempotencyConflict(job.job_id, "This Idempotency-Key came before, with another upload or other fields")
