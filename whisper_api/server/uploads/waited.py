"""Jobs that nobody but the request itself knows of: canceled when its client goes, joined when it comes again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from whisper_api.server.query import idempotency_key
from whisper_api.server.state import owner_of, state_of
from whisper_api.server.uploads.multipart import FILE_FIELD
from whisper_api.server.uploads.submitting import Wanted, accept
from whisper_api.server.uploads.uploads import Upload

if TYPE_CHECKING:
    from whisper_api.store.jobs import Job

__all__ = ["waited_job"]

W = TypeVar("W", bound=Wanted)


@contextlib.asynccontextmanager
async def waited_job(
    request: Request,
    read: Callable[[Upload, Path], W],
    *,
    purpose: str,
    file_fields: tuple[str, ...] = (FILE_FIELD,),
    headerless: bool = False,
) -> AsyncIterator[tuple[Job, W]]:
    """Make a job of a request, and while open, wait for it.

    A client that goes away meanwhile cancels the job, after some seconds in which the same upload joins it. A client
    that has sent an ``Idempotency-Key`` says that it will come back, and cancels nothing.

    Args:
        request, read, purpose, file_fields, headerless: as :func:`~whisper_api.server.uploads.submitting.accept` takes
            them. The purpose names every option that does not stand in the form.

    Yields:
        The job, which may have been there before, and what was read.
    """
    state, owner = state_of(request), owner_of(request)
    with contextlib.ExitStack() as waiting:
        with state.waiters.uploading(owner) as given_up:
            job, wanted = await accept(
                request,
                read,
                purpose=purpose,
                join=True,
                not_to_join=given_up,
                file_fields=file_fields,
                headerless=headerless,
            )
            cancel = idempotency_key(request) is None
            waiting.enter_context(state.waiters.waiting(job.job_id, owner, cancel=cancel))
        yield job, wanted
