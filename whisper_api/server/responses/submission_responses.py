"""What a submission is answered with."""

from __future__ import annotations

import msgspec

__all__ = ["Accepted", "AcceptedFiles", "FileError", "FileOutcome"]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A job was accepted: it will be run whatever happens to the process.

    Attributes:
        job_id: a UUID.
        status_url: the path to ask for its status at, to be put behind the server's address with any prefix it has.
    """

    job_id: str
    status_url: str


class FileError(msgspec.Struct, frozen=True, kw_only=True):
    """Why one file of several did not become a job.

    Attributes:
        status: of HTTP, that it would have had alone.
        code: one word for programs.
        detail: one sentence for people: what is wrong and what to do.
    """

    status: int
    code: str
    detail: str


class FileOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one file of several: a job, or an error.

    Attributes:
        file_name: what the client called it, when it did.
        job_id: a UUID; not there for a file that was refused.
        status_url: as of one file; not there for a file that was refused.
        error: why the file was refused; not there otherwise.
    """

    file_name: str | None
    job_id: str | msgspec.UnsetType = msgspec.UNSET
    status_url: str | msgspec.UnsetType = msgspec.UNSET
    error: FileError | msgspec.UnsetType = msgspec.UNSET


class AcceptedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What became of several files.

    Attributes:
        jobs: one for each file, in the order in which they were sent.
    """

    jobs: tuple[FileOutcome, ...]
