"""The one way by which an upload becomes a job: the form is received and read, and the job submitted.

A caller has a bounded number of uploads on their way. An upload takes a place in the queue only when it is whole, so
uploads that never end keep nobody else out.

::

    job, wanted = await accept(request, read, purpose="/v1/audio/transcriptions", join=True)

``read(upload, directory)`` runs in a thread: it reads ``upload.fields``, writes what belongs beside the upload into
``directory``, and returns the request's options (:class:`Wanted`; :class:`~whisper_api.server.uploads.forms.UploadForm`
is one).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.requests import Request

from whisper_api.config import Config
from whisper_api.jobs.service import Submission
from whisper_api.schema import RenderOptions, TranscriptionOptions
from whisper_api.server.middleware.auth import check_key
from whisper_api.server.query import idempotency_key
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.state import ServerState, blocking, caller_of, owner_of, state_of
from whisper_api.server.uploads.fetch.url_uploads import check_enabled, fetched
from whisper_api.server.uploads.idempotency import is_known, job_before
from whisper_api.server.uploads.multipart import FILE_FIELD
from whisper_api.server.uploads.upload_turn import upload_turn
from whisper_api.server.uploads.uploads import Limits, Upload, receive_upload

if TYPE_CHECKING:
    from whisper_api.jobs.service import Reservation
    from whisper_api.store.jobs import Job

__all__ = ["MAX_FIELD_BYTES", "Wanted", "accept", "limits_of", "reserved", "submit"]

# A known speaker's ten seconds as a data URL are two million characters, and there may be four.
MAX_FIELD_BYTES = 16 << 20


class Wanted(Protocol):
    """What the fields of a form ask for; attributes as those of a :class:`~whisper_api.jobs.service.Submission`."""

    @property
    def options(self) -> TranscriptionOptions: ...
    @property
    def output_format(self) -> str: ...
    @property
    def render_options(self) -> RenderOptions: ...
    @property
    def keep_result(self) -> bool: ...
    @property
    def hf_token(self) -> str | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def metadata(self) -> dict[str, Any] | None: ...
    @property
    def known_speakers(self) -> tuple[str, ...]: ...


W = TypeVar("W", bound=Wanted)


async def accept(
    request: Request,
    read: Callable[[Upload, Path], W],
    *,
    purpose: str = "",
    join: bool = False,
    not_to_join: frozenset[str] = frozenset(),
    raw: bool = False,
    file_fields: tuple[str, ...] = (FILE_FIELD,),
    headerless: bool = False,
) -> tuple[Job, W]:
    """Make a job of a request that has one file, or in its place the address of one.

    What is refused is refused as early as it can be told: a full queue before the upload is read, a file that is too
    large while it comes, fields that cannot be used before anything is fetched, what is not audio before it is queued.
    The ``Idempotency-Key`` is honoured. The job's id is noted in the request's scope, for the log.

    Args:
        request: whose body was not read yet.
        read: says what is wanted, in a thread; its errors are the answer.
        purpose: belongs to what an ``Idempotency-Key`` stands for: the same upload for another purpose is another one.
        join, not_to_join: as in :class:`~whisper_api.jobs.service.Submission`.
        raw: whether the body may be the recording itself, with the fields in the query.
        file_fields: names of the fields that may hold the file.
        headerless: as in :func:`~whisper_api.server.uploads.uploads.receive_upload`.

    Returns:
        The job, which may have been there before, and what was read.

    Raises:
        Problem: 400, 408 or 413, and its code says what is wrong.
        InvalidAudio: the file is not audio.
        WhisperApiError: as :meth:`~whisper_api.jobs.service.JobService.reserve` and ``submit`` raise.
        ClientDisconnect: the client has gone.
    """
    state = state_of(request)
    key = idempotency_key(request)
    owner = owner_of(request)
    # A client that comes again needs no other place than that of the job it has left.
    spare = state.waiters.left(owner) if join else 0
    async with upload_turn(request), reserved(state, owner, key, spare) as reservation:
        upload: Upload = await unless_draining(
            state,
            receive_upload(
                request,
                reservation.directory,
                dataclasses.replace(limits_of(state.config), file_fields=file_fields),
                state.uploads,
                fingerprint=join or key is not None,
                purpose=purpose,
                raw=raw,
                headerless=headerless,
            ),
        )
        if upload.url is not None:
            check_enabled(state.config)
        # An upload may take hours.
        await blocking(state.reads, check_key, request)
        wanted = await blocking(state.uploads, read, upload, reservation.directory)
        job = await blocking(state.uploads, job_before, state.service, reservation.owner, key, upload.fingerprint)
        if job is None and join and upload.url is not None:
            # What was fetched for a job that is there need not be there a second time.
            coming = _submission(reservation, upload, wanted, key, join, not_to_join)
            job = await blocking(state.uploads, state.service.find_to_join, coming)
        if job is None:
            if upload.url is not None:
                upload = await unless_draining(state, fetched(state, upload, caller_of(request)))
            job = await blocking(state.uploads, submit, state, reservation, upload, wanted, key, join, not_to_join)
    request.scope["job_id"] = job.job_id
    return job, wanted


def submit(
    state: ServerState,
    reservation: Reservation,
    upload: Upload,
    wanted: Wanted,
    key: str | None,
    join: bool = False,
    not_to_join: frozenset[str] = frozenset(),
) -> Job:
    """Look into an upload that has come whole, and make it a job. Blocks.

    Raises:
        InvalidAudio: it is not audio.
        AudioTooLong: its header states more than ``MAX_AUDIO_SECONDS``.
        InvalidOption: it has no such audio track.
        WhisperApiError: as :meth:`~whisper_api.jobs.service.JobService.submit` raises.
    """
    submission = _submission(reservation, upload, wanted, key, join, not_to_join, _length(state.config, upload, wanted))
    return state.service.submit(submission, reservation)


def _submission(
    reservation: Reservation,
    upload: Upload,
    wanted: Wanted,
    key: str | None,
    join: bool,
    not_to_join: frozenset[str],
    audio_seconds: float | None = None,
) -> Submission:
    return Submission(
        job_id=reservation.job_id,
        owner=reservation.owner,
        options=wanted.options,
        output_format=wanted.output_format,
        render_options=wanted.render_options,
        keep_result=wanted.keep_result,
        file_name=upload.file_name,
        audio_bytes=upload.size,
        audio_seconds=audio_seconds,
        hf_token=wanted.hf_token,
        warnings=wanted.warnings,
        idempotency_key=key,
        fingerprint=upload.fingerprint,
        metadata=wanted.metadata,
        known_speakers=wanted.known_speakers,
        join=join,
        not_to_join=not_to_join,
    )


@contextlib.asynccontextmanager
async def reserved(state: ServerState, owner: str, key: str | None, spare: int = 0) -> AsyncIterator[Reservation]:
    """The id and the directory of a job whose upload is to come; what was not submitted is removed however this ends.

    Args:
        state: the server's.
        owner: for whom.
        key: the request's ``Idempotency-Key``. One that comes again is let in even when the queue is full, since it
            is answered with the job that is there.
        spare: how many of the owner's jobs do not count.

    Raises:
        QueueFull, CallerLimit, Draining: not now.
    """

    def take() -> Reservation:
        return state.service.reserve(owner, spare=spare + is_known(state.service, owner, key)).__enter__()

    reservation = await blocking(state.uploads, take)
    try:
        yield reservation
    finally:
        if reservation.open:
            # Files are removed in it, and that must not be left undone because the request is ended meanwhile.
            await asyncio.shield(blocking(state.uploads, reservation.__exit__, None, None, None))


def limits_of(config: Config) -> Limits:
    """What one upload may take."""
    return Limits(
        max_file_size=config.max_file_size,
        timeout_seconds=config.timeout_seconds,
        max_field_bytes=MAX_FIELD_BYTES,
        min_bytes_per_second=config.min_upload_bytes_per_second,
        upload_seconds=config.upload_timeout_seconds,
    )


def _length(config: Config, upload: Upload, wanted: Wanted) -> float | None:
    from whisper_api.engine.audio.decode import probe

    with io.FileIO(upload.path) as file:
        # As the client knows it, for the message that it gets when this is not audio.
        file.name = upload.file_name or "the file"
        return probe(
            file, audio_track=wanted.options.audio_track, max_seconds=config.max_audio_seconds or None
        ).duration
