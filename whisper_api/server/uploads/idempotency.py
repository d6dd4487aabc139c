"""What a request with an ``Idempotency-Key`` has made before. Everything here touches the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from whisper_api.server.uploads.file_parts import MAX_FILES

if TYPE_CHECKING:
    from whisper_api.jobs.service import JobService
    from whisper_api.store.jobs import Job

__all__ = ["is_known", "job_before", "jobs_before", "key_of_file"]


def key_of_file(key: str, number: int) -> str:
    """The key of one job of several: no client can send this character.

    Args:
        key: of the request.
        number: of the file, from 0.
    """
    return f"{key}\x1f{number}"


def is_known(service: JobService, owner: str, key: str | None) -> bool:
    """Whether a key has made a job before: then its request most likely makes none, whatever comes with it.

    Args:
        service: the door to the jobs.
        owner: whose key it is.
        key: as the client sent it, if it did.
    """
    return key is not None and service.has_submitted(owner, _keys_of(key))


def job_before(service: JobService, owner: str, key: str | None, fingerprint: str | None) -> Job | None:
    """The job that a request with one file has made before.

    Args:
        service: the door to the jobs.
        owner: whose key it is.
        key: as the client sent it, if it did.
        fingerprint: of the request.

    Raises:
        IdempotencyConflict: the key came with something else.
    """
    if key is None:
        return None
    return service.find_submitted(owner, dict.fromkeys(_keys_of(key), fingerprint)).get(key)


def jobs_before(
    service: JobService, owner: str, key: str | None, fingerprints: Mapping[int, str | None]
) -> dict[int, Job]:
    """The jobs that a request with several files has made before, by the number of the file.

    Args:
        service: the door to the jobs.
        owner: whose key it is.
        key: as the client sent it, if it did.
        fingerprints: of each file and all that came with it.

    Raises:
        IdempotencyConflict: the key came with something else.
    """
    if key is None:
        return {}
    # All that there may be: of a file that was refused, no job is there to tell a different request by.
    numbers = {key_of_file(key, number): number for number in range(MAX_FILES)}
    wanted = {file_key: fingerprints.get(number) for file_key, number in numbers.items()}
    found = service.find_submitted(owner, {key: None, **wanted})
    return {numbers[file_key]: job for file_key, job in found.items() if file_key in numbers}


def _keys_of(key: str) -> tuple[str, ...]:
    """Of all jobs that a request with this key may have made."""
    return (key, *(key_of_file(key, number) for number in range(MAX_FILES)))
