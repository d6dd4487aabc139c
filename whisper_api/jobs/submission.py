"""What a caller asks of the service: a job as it is wanted."""

from __future__ import annotations

from typing import Any

import msgspec

from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.store.rows import Job

__all__ = ["Submission"]


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A job as a caller wants it. The fields are those of :class:`~whisper_api.store.rows.Job`, but for two.

    Attributes:
        join: take the owner's job with the same fingerprint, options and format instead of a new one, where it waits,
            runs, or has just ended and was not delivered yet; none that has an idempotency key, or if this has one.
        not_to_join: ids of jobs that are not taken.
    """

    job_id: str
    owner: str
    options: TranscriptionOptions
    output_format: str
    render_options: RenderOptions = RenderOptions()
    keep_result: bool = False
    file_name: str | None = None
    audio_bytes: int
    audio_seconds: float | None
    hf_token: str | None = None
    warnings: tuple[str, ...] = ()
    idempotency_key: str | None = None
    fingerprint: str | None = None
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[str, ...] = ()
    join: bool = False
    not_to_join: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        # The token, the prompt and the client's file name must not find their way into a log.
        return f"Submission(job_id={self.job_id!r}, owner={self.owner!r})"

    def job(self, created_at: float) -> Job:
        """The job to be stored.

        Args:
            created_at: seconds since 1970.
        """
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("join", "not_to_join")}
        return Job(created_at=created_at, **fields)
