"""One request that becomes several jobs: what is wrong with one file is said beside it, and the others are accepted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from whisper_api.errors import DeviceError, Draining, IdempotencyConflict, InvalidOption, ModelError, WhisperApiError
from whisper_api.server.middleware.auth import check_key
from whisper_api.server.query import idempotency_key, status_path
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.responses.problems import Problem, problem_of
from whisper_api.server.state import ServerState, blocking, caller_of, owner_of, state_of
from whisper_api.server.uploads.fetch.url_uploads import check_enabled, fetched
from whisper_api.server.uploads.fetch.urls import file_name_of
from whisper_api.server.uploads.file_parts import Part
from whisper_api.server.uploads.idempotency import jobs_before, key_of_file
from whisper_api.server.uploads.multi_file import receive_several
from whisper_api.server.uploads.submission_responses import FileError, FileOutcome
from whisper_api.server.uploads.submitting import Wanted, limits_of, reserved, submit
from whisper_api.server.uploads.upload_turn import upload_turn
from whisper_api.server.uploads.uploads import Upload

if TYPE_CHECKING:
    from whisper_api.jobs.service import Reservation
    from whisper_api.store.jobs import Job

__all__ = ["accept_several"]

# Of one request at a time: others want to fetch, too.
FETCHES_TOGETHER = 4
# What is wrong with a file says nothing of the others; this is wrong with all of them.
WRONG_WITH_ALL = (InvalidOption, ModelError, DeviceError, Draining, IdempotencyConflict)


async def accept_several(
    request: Request, read: Callable[[Upload, Path], Wanted], *, purpose: str = "several"
) -> tuple[FileOutcome, ...]:
    """Make jobs of a request that has any number of files, or addresses in their reservation.

    A full queue refuses the request before the upload is read, and each file as it comes. With an ``Idempotency-Key``,
    the same request again gives the same jobs, and tries again what was refused.

    Args:
        request: whose body was not read yet.
        read: says for each file what is wanted, in a thread; its errors are the answer to the whole request.
        purpose: belongs to what an ``Idempotency-Key`` stands for.

    Returns:
        What became of each file, in the order in which they were sent. At least one was accepted.

    Raises:
        Problem: 400, 408 or 413; ``no_file_accepted`` has in its ``jobs`` why each was refused.
        WhisperApiError: what is wrong with all of them.
        ClientDisconnect: the client has gone.
    """
    state = state_of(request)
    key = idempotency_key(request)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(upload_turn(request))
        take = stack.enter_context(state.form_bytes.using(caller_of(request)))
        reserve = await stack.enter_async_context(_places(state, owner_of(request), key))
        parts: list[Part] = await unless_draining(
            state,
            receive_several(
                request,
                reserve,
                take,
                limits_of(state.config),
                state.uploads,
                fingerprint=key is not None,
                purpose=purpose,
            ),
        )
        if any(part.url is not None for part in parts):
            check_enabled(state.config)
        fingerprints = {part.number: part.fingerprint for part in parts}
        jobs = await blocking(state.uploads, jobs_before, state.service, owner_of(request), key, fingerprints)
        waiting = [part for part in parts if part.upload is not None and part.number not in jobs]
        await blocking(state.reads, check_key, request)
        wanted = await blocking(state.uploads, _read_all, read, waiting)
        await _fetch_all(state, waiting, caller_of(request))
        for part in waiting:
            if part.error is None:
                await _submit(state, part, wanted[part.number], key, jobs)
    outcomes = tuple(_outcome(request, part, jobs.get(part.number)) for part in parts)
    if not jobs:
        raise _none_accepted(outcomes)
    return outcomes


@contextlib.asynccontextmanager
async def _places(state: ServerState, owner: str, key: str | None) -> AsyncIterator[Callable[[], Reservation]]:
    """Makes a reservation at each call, in a thread; releases those that were not submitted."""
    given: list[Reservation] = []
    async with reserved(state, owner, key) as first:
        spare = [first]

        def reserve() -> Reservation:
            reservation = spare.pop() if spare else state.service.reserve(owner)
            given.append(reservation)
            return reservation

        try:
            yield reserve
        finally:
            unused = [reservation for reservation in given if reservation.open]
            if unused:
                await asyncio.shield(blocking(state.uploads, _release, unused))


def _release(reservations: Sequence[Reservation]) -> None:
    for place in reservations:
        reservation.release()


def _read_all(read: Callable[[Upload, Path], Wanted], parts: Sequence[Part]) -> dict[int, Wanted]:
    """What is wanted for each, before any is accepted: what is wrong with a field is wrong with all."""
    wanted = {}
    for part in parts:
        assert part.upload is not None
        wanted[part.number] = read(part.upload, part.upload.path.parent)
    return wanted


async def _fetch_all(state: ServerState, parts: Sequence[Part], caller: str) -> None:
    turns = asyncio.Semaphore(FETCHES_TOGETHER)

    async def fetch(part: Part) -> None:
        assert part.upload is not None
        try:
            async with turns:
                part.upload = await fetched(state, part.upload, caller)
        except (Problem, WhisperApiError) as error:
            part.error = error

    await unless_draining(state, _gathered(*(fetch(part) for part in parts if part.url is not None)))


async def _gathered(*works: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(*works)


async def _submit(state: ServerState, part: Part, wanted: Wanted, key: str | None, jobs: dict[int, Job]) -> None:
    """Make one a job, or note why it is none."""
    reservation, upload = part.place, part.upload
    assert reservation is not None
    assert upload is not None
    key = None if key is None else key_of_file(key, part.number)
    try:
        jobs[part.number] = await blocking(state.uploads, submit, state, reservation, upload, wanted, key)
    except WRONG_WITH_ALL as error:
        if not jobs:
            raise
        part.error = error
    except (Problem, WhisperApiError) as error:
        part.error = error


def _outcome(request: Request, part: Part, job: Job | None) -> FileOutcome:
    name = part.file_name if part.url is None else file_name_of(part.url)
    if job is not None:
        return FileOutcome(file_name=name, job_id=job.job_id, status_url=status_path(job.job_id))
    assert part.error is not None
    problem = problem_of(part.error)
    return FileOutcome(file_name=name, error=FileError(status=problem.status, code=problem.code, detail=problem.detail))


def _none_accepted(outcomes: tuple[FileOutcome, ...]) -> Problem:
    many = f"None of the {len(outcomes)} files was" if len(outcomes) > 1 else "The file was not"
    return Problem(400, "no_file_accepted", f"{many} accepted; jobs says why for each", jobs=outcomes)
