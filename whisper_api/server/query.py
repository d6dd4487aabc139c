"""The parts of a request outside its body: times in the query, the job in the path, the idempotency key."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from msgspec import Meta
from starlette.requests import Request

from whisper_api.errors import JobNotFound
from whisper_api.server.responses.problems import Problem

# The type of a parameter that is a time.
MOMENT = Annotated[datetime, Meta(tz=True)]
MAX_KEY_CHARACTERS = 255


def seconds_of(moment: datetime | None) -> float | None:
    """A time as seconds since 1970; None stays None."""
    return None if moment is None else moment.timestamp()


def job_id_of(request: Request) -> str:
    """The job id in the path, in the form of the database.

    Raises:
        JobNotFound: the path does not contain a UUID.
    """
    text: str = request.path_params["job_id"]
    try:
        job_id = str(uuid.UUID(text))
    except ValueError:
        raise JobNotFound(text) from None
    if job_id != text.lower():
        raise JobNotFound(text)
    request.scope["job_id"] = job_id
    return job_id


def idempotency_key(request: Request) -> str | None:
    """The ``Idempotency-Key`` of a request, which identifies a retry; None without the header.

    Raises:
        Problem: 400 ``invalid_idempotency_key``: the key is not 1 to 255 printable ASCII characters, or there are two.
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or not 1 <= len(key) <= MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise Problem(
            400,
            "invalid_idempotency_key",
            f"Idempotency-Key: expected 1 to {MAX_KEY_CHARACTERS} printable characters, once",
        )
    return key


def status_path(job_id: str) -> str:
    """The path of a job's status, without the prefix of the application."""
    return f"/transcription/{job_id}"


def status_location(request: Request, job_id: str) -> str:
    """The path of a job's status with the prefix of the application, for the header ``Location``.

    Args:
        request: a request to the application.
        job_id: id of the job.
    """
    return f"{request.scope.get('root_path', '')}{status_path(job_id)}"
