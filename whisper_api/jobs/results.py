"""What jobs gave: their transcripts, with what people have corrected in them."""

from __future__ import annotations

import logging

from msgspec.structs import replace

from whisper_api.errors import JobCanceled, JobFailed, JobNotFinished, JobNotFound, ResultGone
from whisper_api.jobs.corrections import applied, checked
from whisper_api.schema import Corrections, Transcript
from whisper_api.store.jobs import Job, JobStore
from whisper_api.time_order import in_order

__all__ = ["Results", "visible_job"]

log = logging.getLogger("whisper_api.jobs")


def visible_job(store: JobStore, job_id: str, owner: str | None) -> Job:
    """A job, when this caller may see it.

    Args:
        store: where it is.
        job_id: which.
        owner: who asks; None for somebody who sees all.

    Raises:
        JobNotFound: there is none, or it is somebody else's.
    """
    job = store.get(job_id)
    if job is None or (owner is not None and job.owner != owner):
        raise JobNotFound(job_id)
    return job


class Results:
    """Transcripts and corrections of the jobs in a store. Safe to use from any thread.

    Every method raises :class:`JobNotFound`, :class:`JobNotFinished`, :class:`JobFailed`, :class:`JobCanceled` or
    :class:`ResultGone` where there is no result for this caller; the ``owner`` is None for one who sees all.

    Args:
        store: where the jobs are.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def corrected(self, job_id: str, owner: str | None) -> tuple[Job, Transcript]:
        """The job and its transcript, with the corrections in it."""
        job, transcript, corrections = self._kept(job_id, owner)
        # An older version has stored words and segments without length.
        transcript = replace(transcript, segments=in_order(transcript.segments))
        return job, transcript if corrections is None else applied(transcript, corrections)

    def corrections(self, job_id: str, owner: str | None) -> Corrections:
        """What was corrected; nothing when nothing was."""
        return self._kept(job_id, owner)[2] or Corrections()

    def correct(self, job_id: str, owner: str | None, corrections: Corrections) -> None:
        """Keep these corrections in the place of all earlier ones.

        Raises:
            InvalidOption: they name a segment, word or speaker that is not there.
        """
        _, transcript, _ = self._kept(job_id, owner)
        if not self._store.set_corrections(job_id, checked(transcript, corrections)):
            raise _gone(job_id)
        log.info("result corrected", extra={"job_id": job_id})

    def _kept(self, job_id: str, owner: str | None) -> tuple[Job, Transcript, Corrections | None]:
        job = visible_job(self._store, job_id, owner)
        match job.state:
            case "Failed":
                raise JobFailed(job_id, f"The job failed: {job.error or 'its log has the reason'}", job.error_name)
            case "Canceled":
                raise JobCanceled(job_id, job.error or "The job was canceled, so there is no result")
            case "Completed":
                found = self._store.result(job_id)
                if found is None:
                    raise _gone(job_id)
                return job, *found
            case _:
                raise JobNotFinished(job_id, f"The job is {job.state}: ask again when it is Completed")


def _gone(job_id: str) -> ResultGone:
    return ResultGone(job_id, "The result was delivered, has expired or was deleted")
