"""Makes jobs of requests with files; every route takes its uploads here.

An upload gets its position in the queue when it is whole, so uploads that never end keep no other caller out. When the
body is whole, one call in a thread reads the options, looks for jobs that the request has made before, probes the files
and submits them. Files at URLs are fetched between reading and submitting.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from whisper_api import errors
from whisper_api.server.auditing import note
from whisper_api.server.middleware.auth import check_key
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.responses.problems import FileError, FileOutcome, Problem, problem_of
from whisper_api.server.responses.results import status_path
from whisper_api.server.state import ServerState, blocking, caller_of, note_quotas, owner_of, state_of
from whisper_api.server.uploads.fetching import check_enabled, fetch_file
from whisper_api.server.uploads.forms import UploadForm
from whisper_api.server.uploads.incoming import IncomingFile, IncomingForm
from whisper_api.server.uploads.receiving import receive, upload_turn
from whisper_api.server.uploads.storing import StoredFile
from whisper_api.server.uploads.submitter import SEVERAL, Submitter, UploadRules

if TYPE_CHECKING:
    from whisper_api.store.rows import Job

# Number of files that one request fetches at a time, so that other requests can fetch too.
FETCHES_AT_A_TIME = 4
MAX_KEY_CHARACTERS = 255
F = TypeVar("F", bound=UploadForm)


async def accept(request: Request, read: Callable[[IncomingForm], F], rules: UploadRules) -> tuple[Job, F]:
    """Make a job of a request with one file, or with the URL of one.

    Errors are found as early as possible: a full queue before the upload is read, a file that is too large while the
    upload arrives, unusable fields before anything is fetched, a file that is not audio before the job is queued. The
    ``Idempotency-Key`` is honoured. The access log gets the job's id from the request's scope.

    Args:
        request: a request whose body was not read yet.
        read: makes values of the form's fields, in a thread; its errors become the response.
        rules: rules for a single file.

    Returns:
        The new or existing job, and the form.

    Raises:
        Problem: 400, 408 or 413; the code says what is wrong.
        InvalidAudio: the file is not audio.
        WhisperApiError: as :meth:`~whisper_api.jobs.service.JobService.reserve` and ``submit`` raise.
        ClientDisconnect: the client has gone.
    """
    submitter = await _accept(request, read, rules)
    (job,) = submitter.jobs.values()
    request.scope["job_id"] = job.job_id
    return job, submitter.form


async def accept_waited(
    request: Request, read: Callable[[IncomingForm], F], rules: UploadRules, waiting: contextlib.ExitStack
) -> tuple[Job, F]:
    """Make a job of a request that waits for the result, or join the job of the same upload.

    When the client goes away, the job is canceled after some seconds in which the same upload may join it. A client
    that sends an ``Idempotency-Key`` comes back later, so its job is not canceled.

    Args:
        request: as with :func:`accept`.
        read: as with :func:`accept`.
        rules: as with :func:`accept`. The purpose contains every option outside of the form.
        waiting: gets a context that marks the client as waiting; close it when the client has its response or has gone.

    Returns:
        The new or existing job, and the form.

    Raises:
        Exception: as with :func:`accept`.
    """
    state, owner = state_of(request), owner_of(request)
    with state.waiters.uploading(owner) as given_up:
        job, form = await accept(request, read, dataclasses.replace(rules, join=True, not_to_join=given_up))
        comes_back = idempotency_key(request) is not None
        waiting.enter_context(state.waiters.waiting(job.job_id, owner, cancel=not comes_back))
    return job, form


async def accept_files(request: Request, read: Callable[[IncomingForm], F]) -> tuple[FileOutcome, ...]:
    """Make jobs of a request with any number of files or URLs of files.

    A full queue refuses the request before the upload is read, and later each further file. With an
    ``Idempotency-Key``, the same request again returns the same jobs, and tries refused files again.

    Args:
        request: a request whose body was not read yet.
        read: makes values of the form's fields, in a thread; its errors become the response to the whole request.

    Returns:
        The outcome of each file, in the order sent. At least one file was accepted.

    Raises:
        Problem: 400, 408 or 413; ``no_file_accepted`` gives in its ``jobs`` the error of each file.
        WhisperApiError: an error of the whole request.
        ClientDisconnect: the client has gone.
    """
    submitter = await _accept(request, read, SEVERAL)
    note(request, *(job.job_id for job in submitter.jobs.values()))
    outcomes = tuple(_outcome(file, submitter.jobs) for file in submitter.files)
    if not submitter.jobs:
        many = f"None of the {len(outcomes)} files was" if len(outcomes) > 1 else "The file was not"
        raise Problem(400, "no_file_accepted", f"{many} accepted; jobs says why for each", jobs=outcomes)
    return outcomes


async def _accept(request: Request, read: Callable[[IncomingForm], F], rules: UploadRules) -> Submitter[F]:
    try:
        return await _receive_and_submit(request, read, rules)
    except errors.QuotaExceeded:
        await blocking(state_of(request).reads, note_quotas, request)
        raise


async def _receive_and_submit(request: Request, read: Callable[[IncomingForm], F], rules: UploadRules) -> Submitter[F]:
    state, owner, caller = state_of(request), owner_of(request), caller_of(request)
    key = idempotency_key(request)
    submitter: Submitter[F] = Submitter(state, owner, key, rules)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(upload_turn(request))
        take_bytes = stack.enter_context(state.form_bytes.using(caller if rules.takes_many else ""))
        # A retrying client reuses the slot of its abandoned job.
        extra_slots = state.waiters.abandoned(owner) if rules.join else 0
        stack.push_async_callback(submitter.release_unused)
        await blocking(state.uploads, submitter.reserve, extra_slots)
        form = IncomingForm(
            rules.limits(state.config),
            submitter.new_directory,
            take_bytes=take_bytes,
            purpose=rules.purpose if rules.join or key is not None else None,
            headerless=rules.headerless,
        )
        receiving = receive(request, form, state.uploads, raw=rules.raw, json=rules.json)
        await unless_draining(state, receiving)
        if any(file.url is not None for file in form.files):
            check_enabled(state.config)

        def read_and_submit() -> None:
            # Checked again, because an upload may take hours in which the key may be revoked.
            check_key(request)
            submitter.find_earlier(read(form), form.files)
            if not submitter.to_fetch:
                submit()

        def submit() -> None:
            submitter.submit()
            # In the same thread, because a change of thread costs more than the reading.
            note_quotas(request)

        await blocking(state.uploads, read_and_submit)
        if submitter.to_fetch:
            await unless_draining(state, _fetch_all(state, submitter.to_fetch, caller, rules))
            await blocking(state.uploads, submit)
    return submitter


async def _fetch_all(
    state: ServerState, files: Sequence[tuple[IncomingFile, StoredFile, str]], caller: str, rules: UploadRules
) -> None:
    turns = asyncio.Semaphore(FETCHES_AT_A_TIME)

    async def fetch(file: IncomingFile, stored: StoredFile, url: str) -> None:
        try:
            async with turns:
                await fetch_file(state, url, stored, caller)
        except (Problem, errors.WhisperApiError) as error:
            if not rules.takes_many:
                raise
            file.error = error

    await asyncio.gather(*(fetch(*each) for each in files))


def _outcome(file: IncomingFile, jobs: Mapping[int, Job]) -> FileOutcome:
    if file.error is None:
        job_id = jobs[file.number].job_id
        return FileOutcome(file_name=file.file_name, job_id=job_id, status_url=status_path(job_id))
    problem = problem_of(file.error)
    error = FileError(status=problem.status, code=problem.code, detail=problem.detail)
    return FileOutcome(file_name=file.file_name, error=error)


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
