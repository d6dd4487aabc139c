"""The rows of the job database: jobs, keys and learned speeds. Columns have the names of the fields."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from whisper_api.job_values import JobState
from whisper_api.key_values import KeyState, Role, Scope
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.store.texts import JobText, digest, read
from whisper_api.trace_context import JobTrace


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request for a transcription of one upload.

    Attributes:
        job_id: a UUID.
        owner: id of the key of the submission; empty without authorization.
        options: options of the transcription; they never change.
        output_format: format of the result when a request for the result names none.
        render_options: layout of subtitles when a request for the result names none.
        keep_result: whether the result stays after its delivery.
        file_name: the client's name of the file, for people; never used as a path.
        audio_bytes: size of the upload.
        audio_seconds: length of the audio, when it is known.
        hf_token: Hugging Face token for this job's models; removed from the row when the job ends.
        warnings: warnings of the submission and, once the job is Completed, of the transcript; one sentence each.
        idempotency_key: the client's key; unique among the jobs of one owner.
        fingerprint: fingerprint of the submission's content.
        metadata: the client's metadata, returned with the job.
        known_speakers: names; the file ``speaker-N`` in the upload's directory is a recording of speaker number N.
        trace: the job's place in a trace; removed when the job ends. None while traces are off.
        webhook_url: where the event of the job's end is sent, besides the endpoints of its key.
        webhook_include_result: whether that event carries the result.
    """

    job_id: str
    owner: str
    options: TranscriptionOptions
    output_format: str
    render_options: RenderOptions = RenderOptions()
    keep_result: bool = False
    file_name: str | None = None
    audio_bytes: int
    audio_seconds: float | None = None
    hf_token: str | None = None
    warnings: tuple[str, ...] = ()
    idempotency_key: str | None = None
    fingerprint: str | None = None
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[str, ...] = ()
    trace: JobTrace | None = None
    webhook_url: str | None = None
    webhook_include_result: bool = False

    def __repr__(self) -> str:
        # The token, the prompt, the address and the client's file name must not get into a log.
        return f"{type(self).__name__}(job_id={self.job_id!r}, owner={self.owner!r})"


class Job(JobRequest, frozen=True, kw_only=True):
    """A job, as the database keeps it.

    Attributes:
        state: state of the job.
        created_at, started_at, finished_at: seconds since 1970, UTC.
        attempts: how often the process or the engine ended while this job ran.
        error, error_name: the reason why the job Failed or the server Canceled it; and the class of the error.
        has_result: whether the database has the job's transcript.
        delivered_at: when the result was first sent in full; seconds since 1970.
        seq: number of the job, set by the store; rises with each submission.
    """

    state: JobState = "Queued"
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    attempts: int = 0
    error: str | None = None
    error_name: str = ""
    has_result: bool = False
    delivered_at: float | None = None
    seq: int = 0


class OldSecret(msgspec.Struct, frozen=True):
    """A secret of a key that a rotation has replaced.

    Attributes:
        digest: hash of the secret.
        valid_until: seconds since 1970, UTC.
    """

    digest: bytes
    valid_until: float


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its secret.

    Attributes:
        key_id: 8 hexadecimal digits; the public part of the key.
        name: name of the key, for people.
        role: a user sees its own jobs, an admin sees all jobs; an operator sees the states of all jobs and none of
            their texts; ``metrics`` may read the metrics and nothing else.
        created_at, revoked_at: seconds since 1970, UTC. A key that has expired counts as revoked at that moment.
        expires_at: when the key expires; seconds since 1970, UTC. None for never.
        last_used_at: last request with this key, to about a minute; seconds since 1970, UTC. None for never.
        scopes: what the key may do, of all that its role allows; empty for all of it.
        rate: rate limits, such as ``60/minute``, with semicolons between; None for those of the configuration.
        quota: quotas, such as ``600 minutes/day; 1000 jobs/month``; None for those of the configuration.
        old_secret_until: when the last secret that a rotation has replaced ends; seconds since 1970, UTC. None when
            there is none.
    """

    key_id: str
    name: str
    role: Role = "user"
    created_at: float
    revoked_at: float | None = None
    expires_at: float | None = None
    last_used_at: float | None = None
    scopes: tuple[Scope, ...] = ()
    rate: str | None = None
    quota: str | None = None
    old_secret_until: float | None = None

    def state(self, now: float) -> KeyState:
        """Whether the key is accepted at a time, in seconds since 1970."""
        end = self.expires_at
        if self.revoked_at is None:
            return "active" if end is None or now < end else "expired"
        return "expired" if end is not None and self.revoked_at >= end else "revoked"


@dataclass(frozen=True)
class Rates:
    """The speed of one job, from which the means are learned.

    Attributes:
        model, device: the model and the device of the job.
        seconds: stage to seconds of work for a second of audio.
    """

    model: str
    device: str
    seconds: Mapping[str, float]


# Fields of a job that the table of texts holds under the same name, and not the table of jobs.
_TEXT_FIELDS = (
    *("file_name", "hf_token", "metadata", "known_speakers", "warnings", "error", "trace"),
    *("webhook_url", "webhook_include_result"),
)
# Columns of the table of jobs. Its other columns hold what versions up to 4 stored there, and are empty now.
JOB_COLUMNS = tuple(
    name
    for name in Job.__struct_fields__
    # ``has_result`` is read from the table of transcripts, so that the two cannot disagree.
    if name != "has_result" and name not in _TEXT_FIELDS
)
# ``old_secret_until`` is read from the secrets that rotations have replaced.
KEY_COLUMNS = tuple(name for name in Key.__struct_fields__ if name != "old_secret_until")


def values_of(job: Job) -> dict[str, Any]:
    """The columns of a job; :func:`text_of` makes the text."""
    values = {name: getattr(job, name) for name in JOB_COLUMNS}
    options = replace(job.options, prompt=None, hotwords=None, vocabulary=None)
    values["options"] = msgspec.json.encode(options).decode()
    values["render_options"] = msgspec.json.encode(job.render_options).decode()
    if job.idempotency_key is not None:
        values["idempotency_key"] = digest(job.idempotency_key)
    return values


def text_of(job: Job) -> JobText:
    """The text of a job for the table of texts; each warning once."""
    values = {name: getattr(job, name) for name in (*_TEXT_FIELDS, "idempotency_key")}
    values["warnings"] = tuple(dict.fromkeys(job.warnings))
    options = job.options
    return JobText(prompt=options.prompt, hotwords=options.hotwords, vocabulary=options.vocabulary, **values)


def job_of(row: sqlite3.Row) -> Job:
    """The job of a row.

    Args:
        row: a row with the :data:`JOB_COLUMNS`, ``has_result``, and ``text`` from the table of texts.

    Raises:
        StorageError: its content cannot be read.
    """
    values = dict(row)
    content = values.pop("text")
    what = f"Job {row['job_id']}"
    options = read(row["options"], TranscriptionOptions, what)
    values["render_options"] = read(row["render_options"], RenderOptions, what)
    text = JobText() if content is None else read(content, JobText, what)
    values["options"] = replace(options, prompt=text.prompt, hotwords=text.hotwords, vocabulary=text.vocabulary)
    values["keep_result"] = bool(row["keep_result"])
    values["has_result"] = bool(row["has_result"])
    # When the text was deleted, the digest still shows that there was a key.
    values["idempotency_key"] = text.idempotency_key or row["idempotency_key"]
    return Job(**values, **{name: getattr(text, name) for name in _TEXT_FIELDS})


def key_values(key: Key) -> dict[str, Any]:
    """The columns of a key."""
    return {name: getattr(key, name) for name in KEY_COLUMNS} | {"scopes": msgspec.json.encode(key.scopes).decode()}


def key_of(row: sqlite3.Row) -> Key:
    """The key of a row with the :data:`KEY_COLUMNS` and ``old_secrets``."""
    values = {name: row[name] for name in KEY_COLUMNS}
    values["scopes"] = msgspec.json.decode(values["scopes"], type=tuple[Scope, ...])
    return Key(**values, old_secret_until=max((each.valid_until for each in old_secrets_of(row)), default=None))


def old_secrets_of(row: sqlite3.Row) -> tuple[OldSecret, ...]:
    """The secrets of a key that rotations have replaced."""
    return msgspec.json.decode(row["old_secrets"], type=tuple[OldSecret, ...])
