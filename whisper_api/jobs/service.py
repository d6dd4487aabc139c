"""JobService: submit, status, result, cancel, watch. The one door to durable jobs."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from whisper_api import errors
from whisper_api.config import Config
from whisper_api.job_values import FINAL_STATES, Corrections, JobStatus
from whisper_api.jobs.admission import Reservation, Submission, check_download
from whisper_api.jobs.corrections import checked, corrected
from whisper_api.jobs.events import Watch
from whisper_api.jobs.executor import Executor, ExecutorFacts
from whisper_api.jobs.lifecycle import STOP_SECONDS, Lifecycle
from whisper_api.jobs.local_executor import EXECUTORS
from whisper_api.jobs.retention import remove_upload
from whisper_api.jobs.running import RunningJob
from whisper_api.jobs.speakers import KnownSpeakers
from whisper_api.jobs.traces import traced
from whisper_api.jobs.vocabularies import Vocabularies
from whisper_api.jobs.webhooks import Webhooks
from whisper_api.options import TranscriptionOptions
from whisper_api.outbound.connecting import hosts_in
from whisper_api.records import made_of
from whisper_api.schema import Stage, Transcript
from whisper_api.store.job_search import ALL_JOBS, JobFilter, page_of
from whisper_api.store.jobs import DATABASE_NAME, AlreadyThere, JobStore
from whisper_api.store.rows import Job
from whisper_api.store.usage import OverQuota

log = logging.getLogger("whisper_api.jobs")

# A job that ended this long ago is still joined: a client whose connection broke has tried again by then.
JOIN_SECONDS = 600.0


class JobService(Lifecycle):
    """Durable jobs. Every method may be called from any thread; nearly all touch the disk, so none from an event loop.

    In every method ``owner`` is the id of the key whose jobs the caller may see; None sees all jobs. A method with an
    ``owner`` and a ``job_id`` raises JobNotFound when there is no such job, or the owner may not see it. A method that
    reads a result raises JobNotFinished, JobFailed, JobCanceled or ResultGone when there is none.

    Args:
        config, store, executor, preload_retry_seconds, write_retry_seconds: as for the base class.
    """

    @classmethod
    def open(cls, config: Config, executor: Executor | None = None) -> JobService:
        """A service with its own database, which no other process serves. It is not started.

        Args:
            config: the configuration.
            executor: runs the jobs; None for the configured one.

        Raises:
            StorageError: the database cannot be used; StorageLocked when another server uses it.
        """
        store = JobStore(config.data_dir / DATABASE_NAME)
        try:
            store.exclusive(config.tmp_dir)
            return cls(config, store, executor or EXECUTORS[config.executor](config))
        except BaseException:
            store.close()
            raise

    @property
    def speakers(self) -> KnownSpeakers:
        """The known speakers of callers, which are in the same database."""
        return KnownSpeakers(self.store, self.executor, self._config.max_speakers_per_key, self._lose_device)

    @property
    def vocabularies(self) -> Vocabularies:
        """The vocabularies of the keys, which are in the same database."""
        return Vocabularies(self.store)

    @property
    def webhooks(self) -> Webhooks:
        """The webhooks of the keys, which are in the same database."""
        return Webhooks(self.store, hosts_in(self._config.webhook_private_hosts))

    def facts(self) -> ExecutorFacts:
        """The device and the models that jobs run on. The first call may take long."""
        return self.executor.facts()

    def model_name(self, options: TranscriptionOptions) -> str:
        """The usual name of the model that a job with these options uses."""
        return self.executor.model_name(options)

    def reserve(self, owner: str, *, extra_slots: int = 0) -> Reservation:
        """Begin an upload, before its body is read: ``with service.reserve(owner) as reservation``.

        Args:
            owner: id of the caller's key; empty without authorization.
            extra_slots: number of the owner's jobs that do not count, because the upload may join one of them.

        Raises:
            QueueFull, CallerLimit, QuotaExceeded, Draining: no new job is accepted now.
            ForkedProcess: the service was made before this process was forked.
        """
        self.store.database.check_process()
        if not extra_slots:
            self.usage.quotas.check(owner)
        return self._reservations.reserve(owner, extra_slots)

    def submit(self, submission: Submission, reservation: Reservation) -> Job:
        """Accept a job. When this returns, the job is on the disk, and runs whatever happens to the process.

        Args:
            submission: the upload is whole, in ``reservation.directory``.
            reservation: the reservation of this upload. It cannot be used again; an error removes its directory.

        Returns:
            The new job; or the existing one, when the owner sends an idempotency key again or joins a job.

        Raises:
            UnknownModel, ModelUnavailable: the model cannot be used.
            IdempotencyConflict: the owner used this idempotency key for something else.
            QueueFull, QuotaExceeded, Draining: no new job is accepted now.
            StorageError: the job could not be stored.
        """
        with self._reservations.submitting(reservation) as enqueue:
            self.executor.check(submission.options, submission.hf_token)
            check_download(submission, self.executor, self.store, self._config.model_downloads)
            charge = self.usage.charge(submission, self.executor.model_name(submission.options))
            now = time.time()
            join_after = now - JOIN_SECONDS if submission.join else None
            not_to_join = self._not_to_join(submission)
            try:
                with traced(self.tracing, submission.job(now)) as new:
                    job = self.store.add(new, join_after=join_after, not_to_join=not_to_join, charge=charge)
            except OverQuota as full:
                raise self.usage.refusal(full, submission) from None
            except AlreadyThere as there:
                _check_same(there.job, submission.fingerprint)
                log.info("job submitted again", extra={"job_id": there.job.job_id})
                return there.job
            self.estimates.expect(job)
            enqueue()
        self.metrics.job_submitted(job.audio_bytes)
        log.info(
            "job submitted",
            extra={"job_id": job.job_id, "audio_bytes": job.audio_bytes, "audio_seconds": job.audio_seconds},
        )
        return job

    def has_submitted(self, owner: str, idempotency_keys: Iterable[str]) -> bool:
        """Whether an owner has a job with any of these idempotency keys.

        Args:
            owner: owner of the jobs.
            idempotency_keys: idempotency keys.
        """
        return bool(self.store.by_idempotency_keys(owner, tuple(idempotency_keys)))

    def find_submitted(self, owner: str, fingerprints: Mapping[str, str | None]) -> dict[str, Job]:
        """The jobs that an owner has submitted with idempotency keys, by key.

        Args:
            owner: id of the key.
            fingerprints: idempotency key to the fingerprint of the content that came with it now.

        Raises:
            IdempotencyConflict: a key was used before with other content.
        """
        found = self.store.by_idempotency_keys(owner, fingerprints.keys())
        for key, job in found.items():
            _check_same(job, fingerprints[key])
        return found

    def find_to_join(self, submission: Submission) -> Job | None:
        """The job that :meth:`submit` would join, for a submission whose upload has not arrived yet."""
        now = time.time()
        return self.store.to_join(submission.job(now), now - JOIN_SECONDS, self._not_to_join(submission))

    def unfinished_to_join(self) -> tuple[Job, ...]:
        """The unfinished jobs that were submitted to be joined: their clients wait for the results."""
        # Among the other jobs, only those with an idempotency key have a fingerprint.
        unfinished = self.store.in_state("Queued", "Processing")
        return tuple(job for job in unfinished if job.fingerprint is not None and job.idempotency_key is None)

    def status(self, job_id: str, owner: str | None) -> JobStatus:
        """The status of a job.

        Args:
            job_id: id of the job.
            owner: owner whose jobs the caller may see; None for all.
        """
        return self._statuses([self._job(job_id, owner)], estimated=True)[0]

    def list_jobs(
        self, owner: str | None, filter: JobFilter = ALL_JOBS, *, limit: int = 50, after: str | None = None
    ) -> tuple[list[JobStatus], str | None]:
        """A page of jobs, newest first, without time estimates.

        Args:
            owner: owner of the jobs.
            filter: further conditions.
            limit: most jobs on the page, up to 1000.
            after: the cursor of the page before; None for the first page.

        Returns:
            The jobs, and the cursor for the next page; None on the last one.

        Raises:
            InvalidOption: ``limit`` or ``after`` is wrong, or a metadata value comes without its key.
        """
        if filter.metadata_value is not None and filter.metadata_key is None:
            raise errors.InvalidOption("metadata_value", "needs metadata_key, the key of the value")
        page, cursor = page_of(functools.partial(self.store.page, owner, filter), limit, after)
        return self._statuses(page, estimated=False), cursor

    def _statuses(self, jobs: Sequence[Job], *, estimated: bool) -> list[JobStatus]:
        """The statuses of jobs, made of their rows and of what waits and runs now.

        Args:
            jobs: the jobs.
            estimated: whether to estimate when they end.
        """
        running, held = self.running.snapshots(), self.queue.held()
        positions = self.queue.positions() if any(job.state == "Queued" for job in jobs) else {}
        found = []
        for job in jobs:
            stage: Stage | None = None
            progress = position = eta = None
            live = running.get(job.job_id)
            match job.state:
                case "Completed":
                    stage, progress = "done", 1.0
                case "Queued":
                    stage, progress = "download" if job.job_id in held else None, 0.0
                    position = positions.get(job.job_id, 1)
                    eta = self.estimates.of_queued(job.job_id, positions, running) if estimated else None
                case "Processing":
                    progress = 0.0
                    if live is not None:
                        stage, progress = live.progress.stage, live.progress.fraction
                        eta = self.estimates.of_running(job.job_id, live) if estimated else None
            status = made_of(
                job,
                JobStatus,
                status=job.state,
                queue_position=position,
                progress=progress,
                stage=stage,
                eta_seconds=None if eta is None else round(eta, 1),
                error=job.error if job.state in ("Failed", "Canceled") else None,
                result_gone=job.state == "Completed" and not job.has_result,
            )
            found.append(status)
        return found

    def result(self, job_id: str, owner: str | None) -> tuple[Job, Transcript]:
        """A job and its transcript, with the corrections applied.

        Args:
            job_id: id of the job.
            owner: owner whose jobs the caller may see; None for all.
        """
        job, transcript, corrections = self._stored_result(job_id, owner)
        return job, corrected(transcript, corrections)

    def corrections(self, job_id: str, owner: str | None) -> Corrections:
        """The corrections of a result; empty when there are none.

        Args:
            job_id: id of the job.
            owner: owner whose jobs the caller may see; None for all.
        """
        return self._stored_result(job_id, owner)[2] or Corrections()

    def correct(self, job_id: str, owner: str | None, corrections: Corrections) -> None:
        """Replace the corrections of a result.

        Args:
            job_id: id of the job.
            owner: owner whose jobs the caller may see; None for all.
            corrections: the new corrections.

        Raises:
            InvalidOption: they name a segment, word or speaker that does not exist.
        """
        _, transcript, _ = self._stored_result(job_id, owner)
        if not self.store.set_corrections(job_id, checked(transcript, corrections)):
            raise _result_gone(job_id)
        log.info("result corrected", extra={"job_id": job_id})

    def mark_delivered(self, job_id: str) -> None:
        """Note that a client has received the whole result, which is removed soon unless the job keeps it."""
        self.store.mark_delivered(job_id, time.time())
        log.info("result delivered", extra={"job_id": job_id})

    def cancel(self, job_id: str, owner: str | None, *, force: bool = False) -> bool:
        """Cancel a waiting job; remove the result and files of an ended job, or all of a job that Failed.

        Args:
            job_id: id of the job.
            owner: owner of the job.
            force: also stop a running job, and return when it has stopped.

        Returns:
            Whether the job was unfinished and is Canceled now.

        Raises:
            JobIsProcessing: the job runs, and ``force`` is false.
        """
        stopped = False
        while True:
            job = self._job(job_id, owner)
            if job.state in FINAL_STATES:
                self._remove(job)
                return stopped and job.state == "Canceled"
            if job.state == "Processing" and not force:
                raise errors.JobIsProcessing(job_id)
            running = self.running.get(job_id) if job.state == "Processing" else None
            if running is not None and self._stop_running(running):
                stopped = True
                # Read the job again, because it may have ended or gone back to the queue before it was stopped.
                continue
            # The job waits, or its device hangs; in that case a later outcome is not stored.
            worked = 0.0 if running is None else self.running.worked(running)
            if self.store.cancel(job_id, time.time(), states=(job.state,), compute_seconds=worked):
                self.queue.remove(job_id)
                self._after_cancel(job_id)
                return True

    def cancel_unfinished(self, job_id: str) -> bool:
        """Cancel a job of any owner, running or not, unless it has ended; an ended job keeps its result.

        Returns:
            Whether the job was unfinished.
        """
        try:
            if self._job(job_id, None).state in FINAL_STATES:
                return False
            self.cancel(job_id, None, force=True)
        except errors.JobNotFound:
            return False
        return True

    def watch(self, job_id: str, after: int = 0, *, states_only: bool = False) -> Watch:
        """Watch a job from an event loop, as :meth:`JobEvents.watch` does; does not touch the disk.

        Args:
            job_id: id of the job.
            after: id of the last event that the watcher has; 0 for none.
            states_only: signal only changes of the job's state.
        """
        return self.events.watch(job_id, after, states_only=states_only)

    def _job(self, job_id: str, owner: str | None) -> Job:
        job = self.store.get(job_id)
        if job is None or (owner is not None and job.owner != owner):
            raise errors.JobNotFound(job_id)
        return job

    def _stored_result(self, job_id: str, owner: str | None) -> tuple[Job, Transcript, Corrections | None]:
        job = self._job(job_id, owner)
        match job.state:
            case "Failed":
                raise errors.JobFailed(
                    job_id, f"The job failed: {job.error or 'its log has the reason'}", job.error_name
                )
            case "Canceled":
                raise errors.JobCanceled(job_id, job.error or "The job was canceled, so there is no result")
            case "Completed":
                found = self.store.result(job_id)
                if found is None:
                    raise _result_gone(job_id)
                return job, *found
            case _:
                raise errors.JobNotFinished(job_id, f"The job is {job.state}: ask again when it is Completed")

    def _not_to_join(self, submission: Submission) -> frozenset[str]:
        # A job that is about to be canceled ends without a result.
        ending = (each.job_id for each in self.running.all() if self.running.reason(each) == "cancel")
        return submission.not_to_join.union(ending)

    def _stop_running(self, running: RunningJob) -> bool:
        self.running.ask(running, "cancel")
        return running.ended.wait(STOP_SECONDS)

    def _remove(self, job: Job) -> None:
        # A job that Failed has no result, so the job itself is removed.
        if job.state == "Failed":
            self.store.delete(job.job_id)
            log.info("job removed", extra={"job_id": job.job_id})
        elif self.store.erase(job.job_id):
            log.info("result removed", extra={"job_id": job.job_id})
        remove_upload(self._config.tmp_dir, job.job_id)


def _check_same(job: Job, fingerprint: str | None) -> None:
    if job.fingerprint != fingerprint:
        raise errors.IdempotencyConflict(
            job.job_id, "This Idempotency-Key was used before, with another upload or fields"
        )


def _result_gone(job_id: str) -> errors.ResultGone:
    return errors.ResultGone(job_id, "The result was delivered, has expired or was deleted")
