"""What the rows of the job database are: jobs, keys, and what was learned. Columns have the names of the fields."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from whisper_api.errors import StorageError
from whisper_api.schema import JobState, RenderOptions, TranscriptionOptions
from whisper_api.store.texts import JobText, digest

__all__ = [
    "JOB_COLUMNS",
    "KEY_COLUMNS",
    "Job",
    "Key",
    "Rates",
    "Role",
    "job_of",
    "key_of",
    "text_of",
    "values_of",
]

Role = Literal["user", "admin"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job, as it is kept.

    Attributes:
        job_id: a UUID.
        owner: id of the key it was submitted with; empty when authorization was off.
        state: in one word.
        options: what was asked for; frozen with the job.
        output_format: in which its result is shown when nothing else is asked for.
        render_options: the layout of its subtitles, when nothing else is asked for.
        keep_result: whether the result stays after it was delivered.
        file_name: what the client calls the file. For people; never a path.
        audio_bytes: size of the upload.
        audio_seconds: length of the audio, when it is known.
        hf_token: for this job's models; gone from the row when the job ends.
        warnings: of the submission and, once it is Completed, of the transcript; one sentence each.
        created_at, started_at, finished_at: seconds since 1970, UTC.
        attempts: how often the process or the engine ended while this job ran.
        error, error_name: why it Failed, or why the server has Canceled it; and the name of an error.
        has_result: whether its transcript is there.
        delivered_at: when its result was first sent in full; seconds since 1970.
        idempotency_key: the client's word for this submission; of one owner's jobs, no two have the same.
        fingerprint: of the submission's content.
        metadata: the client's own, to be given back.
        known_speakers: names; how number N of them speaks is heard in the file ``speaker-N`` beside the upload.
        seq: set by the store; rises with submission.
        place: set by the store; order in the queue.
    """

    job_id: str
    owner: str
    state: JobState = "Queued"
    options: TranscriptionOptions
    output_format: str
    render_options: RenderOptions = RenderOptions()
    keep_result: bool = False
    file_name: str | None = None
    audio_bytes: int
    audio_seconds: float | None = None
    hf_token: str | None = None
    warnings: tuple[str, ...] = ()
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    attempts: int = 0
    error: str | None = None
    error_name: str = ""
    has_result: bool = False
    delivered_at: float | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[str, ...] = ()
    seq: int = 0
    place: int = 0

    def __repr__(self) -> str:
        # The token, the prompt and the client's file name must not find their way into a log.
        return f"Job(job_id={self.job_id!r}, owner={self.owner!r}, state={self.state!r}, place={self.place})"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key, without its secret.

    Attributes:
        key_id: 8 hexadecimal digits; the part of the key that is no secret.
        name: what people call it.
        role: a user sees its own jobs, an admin all.
        created_at, revoked_at: seconds since 1970, UTC.
    """

    key_id: str
    name: str
    role: Role = "user"
    created_at: float
    revoked_at: float | None = None


@dataclass(frozen=True)
class Rates:
    """What one job took, to count towards the means.

    Attributes:
        model, device: it ran with.
        seconds: stage to seconds of work for a second of audio.
    """

    model: str
    device: str
    seconds: Mapping[str, float]


# Columns of the table of jobs. Its other columns hold what versions up to 4 stored there, and are empty now.
JOB_COLUMNS = tuple(
    name
    for name in Job.__struct_fields__
    # Whether there is a result is read off the table of transcripts, so that the two cannot disagree.
    if name not in ("has_result", "file_name", "hf_token", "metadata", "known_speakers", "warnings", "error")
)
KEY_COLUMNS = Key.__struct_fields__


def values_of(job: Job) -> dict[str, Any]:
    """A job as its columns hold it: without text, which :func:`text_of` gives."""
    values = {name: getattr(job, name) for name in JOB_COLUMNS}
    options = replace(job.options, prompt=None, hotwords=None)
    values["options"] = msgspec.json.encode(options).decode()
    values["render_options"] = msgspec.json.encode(job.render_options).decode()
    if job.idempotency_key is not None:
        values["idempotency_key"] = digest(job.idempotency_key)
    return values


def text_of(job: Job) -> JobText:
    """The text of a job, as the table of texts holds it; each warning once."""
    return JobText(
        prompt=job.options.prompt,
        hotwords=job.options.hotwords,
        file_name=job.file_name,
        hf_token=job.hf_token,
        metadata=job.metadata,
        known_speakers=job.known_speakers,
        warnings=tuple(dict.fromkeys(job.warnings)),
        error=job.error,
        idempotency_key=job.idempotency_key,
    )


def job_of(row: sqlite3.Row) -> Job:
    """The job that a row is.

    Args:
        row: with the :data:`JOB_COLUMNS`, with ``has_result``, and with ``text``: what the table of texts has.

    Raises:
        StorageError: its content cannot be read.
    """
    values = dict(row)
    content = values.pop("text")
    try:
        options = msgspec.json.decode(row["options"], type=TranscriptionOptions)
        values["render_options"] = msgspec.json.decode(row["render_options"], type=RenderOptions)
        text = JobText() if content is None else msgspec.json.decode(content, type=JobText)
    except msgspec.DecodeError as error:
        raise StorageError(f"Job {row['job_id']} cannot be read: {error}") from error
    values["options"] = replace(options, prompt=text.prompt, hotwords=text.hotwords)
    values["keep_result"] = bool(row["keep_result"])
    values["has_result"] = bool(row["has_result"])
    # Once the text is deleted, the digest still says that there was a key.
    values["idempotency_key"] = text.idempotency_key or row["idempotency_key"]
    return Job(
        file_name=text.file_name,
        hf_token=text.hf_token,
        metadata=text.metadata,
        known_speakers=text.known_speakers,
        warnings=text.warnings,
        error=text.error,
        **values,
    )


def key_of(row: sqlite3.Row) -> Key:
    """The key that a row is."""
    return Key(**{name: row[name] for name in KEY_COLUMNS})
