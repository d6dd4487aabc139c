"""What a request says outside its body: query parameters, the job in its path, headers of ours."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.requests import Request

from whisper_api.coercion import convert
from whisper_api.errors import InvalidOption, JobNotFound
from whisper_api.server.responses.problems import Problem

__all__ = ["idempotency_key", "job_id_of", "query_value", "status_location", "status_path"]

MAX_KEY_CHARACTERS = 255


def query_value(request: Request, name: str, annotation: Any, default: Any = None) -> Any:
    """A query parameter as a value; the last one counts, an empty one is none.

    Args:
        request: what was asked.
        name: of the parameter.
        annotation: the type it must have.
        default: what it is when it is not there.

    Raises:
        InvalidOption: it is no such value.
    """
    text = request.query_params.get(name, "").strip()
    if not text:
        return default
    try:
        return convert(text, annotation)
    except ValueError as error:
        raise InvalidOption(name, str(error)) from None


def job_id_of(request: Request) -> str:
    """The id of the job in the path, as it is stored.

    Raises:
        JobNotFound: what stands there is not the id of any job.
    """
    given: str = request.path_params["job_id"]
    try:
        job_id = str(uuid.UUID(given))
    except ValueError:
        raise JobNotFound(given) from None
    if job_id != given.lower():
        raise JobNotFound(given)
    request.scope["job_id"] = job_id
    return job_id


def idempotency_key(request: Request) -> str | None:
    """The ``Idempotency-Key`` of a request, by which a retry is known; None when there is none.

    Raises:
        Problem: 400 ``invalid_idempotency_key``: it is not 1 to 255 printable ASCII characters, or there are two.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0]
    if len(given) > 1 or not 1 <= len(key) <= MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise Problem(
            400,
            "invalid_idempotency_key",
            f"Idempotency-Key: expected 1 to {MAX_KEY_CHARACTERS} printable characters, once",
        )
    return key


def status_path(job_id: str) -> str:
    """The path of a job's status below the server's address, which clients put in front of it."""
    return f"/transcription/{job_id}"


def status_location(request: Request, job_id: str) -> str:
    """The path of a job's status from the root of its host: with the prefix under which this application stands."""
    return f"{request.scope.get('root_path', '')}{status_path(job_id)}"
