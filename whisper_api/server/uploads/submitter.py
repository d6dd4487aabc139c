"""What a request with files becomes: reservations, jobs that it has made before, and new jobs."""

from __future__ import annotations

import asyncio
import functools
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from whisper_api import errors
from whisper_api.config import Config
from whisper_api.jobs.admission import Submission
from whisper_api.options import TranscriptionOptions
from whisper_api.records import made_of
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import ServerState, blocking
from whisper_api.server.uploads.forms import UploadForm
from whisper_api.server.uploads.incoming import FILE_FIELD, MAX_FILES, IncomingFile, Limits
from whisper_api.server.uploads.known_speakers import write_recordings
from whisper_api.server.uploads.pace import pace_rules
from whisper_api.server.uploads.storing import StoredFile

if TYPE_CHECKING:
    from whisper_api.jobs.admission import Reservation
    from whisper_api.store.rows import Job

# Errors of the whole request, and not of one of its files.
REQUEST_ERRORS = (
    errors.InvalidOption,
    errors.ModelError,
    errors.DeviceError,
    errors.Draining,
    errors.IdempotencyConflict,
)

# Ten seconds of a known speaker are two million characters as a data URL, and a form may have four speakers.
MAX_FIELD_BYTES = 16 << 20
MAX_HEADER_BYTES = 32 << 10
# A file name of 255 characters may have four bytes for each character, and a header may contain it twice.
FILE_HEADER_BYTES = 2 << 10

F = TypeVar("F", bound=UploadForm)


@dataclass(frozen=True)
class UploadRules:
    """The rules of a route for its uploads.

    Attributes:
        purpose: part of the request's identity: the same upload for another purpose is another request.
        raw: whether the body may be the recording itself, with the fields in the query.
        json: whether the body may be JSON.
        file_fields: names of the fields that may contain the file.
        headerless: whether the file is samples without a header, as
            :class:`~whisper_api.server.uploads.storing.HeaderlessFile` stores them.
        max_files: most files of one request.
        join, not_to_join: as in :class:`~whisper_api.jobs.service.Submission`.
    """

    purpose: str = ""
    raw: bool = False
    json: bool = False
    file_fields: tuple[str, ...] = (FILE_FIELD,)
    headerless: bool = False
    max_files: int = 1
    join: bool = False
    not_to_join: frozenset[str] = frozenset()

    @property
    def takes_many(self) -> bool:
        """Whether each file is accepted or refused on its own."""
        return self.max_files > 1

    def limits(self, config: Config) -> Limits:
        """The limits of one upload."""
        return Limits(
            max_file_size=config.max_file_size,
            pace=pace_rules(config.timeout_seconds, config.min_upload_bytes_per_second, config.upload_timeout_seconds),
            max_field_bytes=MAX_FIELD_BYTES,
            max_header_bytes=MAX_HEADER_BYTES + (self.max_files * FILE_HEADER_BYTES if self.takes_many else 0),
            file_fields=self.file_fields,
            max_files=self.max_files,
        )


SEVERAL = UploadRules(purpose="several", max_files=MAX_FILES)


class Submitter(Generic[F]):
    """Reserves ids and directories for the files of one request, and makes jobs of the files. Its methods block.

    Attributes:
        form: the values of the form, which apply to all files; set by :meth:`find_earlier`, as ``files``.
        files: the files of the request.
        jobs: number of the file to its job.
    """

    form: F
    files: Sequence[IncomingFile]

    def __init__(self, state: ServerState, owner: str, key: str | None, rules: UploadRules) -> None:
        self.jobs: dict[int, Job] = {}
        self._state = state
        self._owner = owner
        self._key = key
        # Number of the file to the idempotency key of its job.
        self._keys: dict[int, str] = {}
        self._rules = rules
        # The reservation that was made before the body was read, until a file takes it.
        self._first: Reservation | None = None
        # A canceled request does not stop the thread that makes a reservation.
        self._lock = threading.Lock()
        self._reservations: dict[Path, Reservation] = {}
        self._ended = False

    def reserve(self, extra_slots: int) -> None:
        """Make the first reservation, so that a full queue refuses the request before its body is read.

        Args:
            extra_slots: number of the owner's jobs that do not count towards the limits.

        Raises:
            QueueFull, CallerLimit, QuotaExceeded, Draining: the service accepts no job now.
        """
        service = self._state.service
        # A request with a known Idempotency-Key passes a full queue, because most likely it makes no new job.
        is_known = self._key is not None and service.has_submitted(self._owner, keys_of(self._key))
        self._first = self._kept(service.reserve(self._owner, extra_slots=extra_slots + is_known))

    def new_directory(self) -> Path:
        """The directory for one more file.

        Raises:
            QueueFull, CallerLimit, QuotaExceeded, Draining: the service accepts no job now.
        """
        reservation, self._first = self._first or self._kept(self._state.service.reserve(self._owner)), None
        return reservation.directory

    def _kept(self, reservation: Reservation) -> Reservation:
        with self._lock:
            self._reservations[reservation.directory] = reservation
            ended = self._ended
        if ended:
            # The request was canceled while this thread made the reservation.
            reservation.release()
        return reservation

    async def release_unused(self) -> None:
        """Remove the files that did not become jobs."""
        with self._lock:
            self._ended = True
            unused = [reservation for reservation in self._reservations.values() if reservation.open]

        def release() -> None:
            for reservation in unused:
                reservation.release()

        if unused:
            # Shielded, because a canceled request must not leave its files.
            await asyncio.shield(blocking(self._state.uploads, release))

    @property
    def to_fetch(self) -> list[tuple[IncomingFile, StoredFile, str]]:
        """The files to fetch, each with the file on the disk and the URL."""
        return [(file, stored, file.url) for file, stored in self._pending if file.url is not None]

    @functools.cached_property
    def _options(self) -> TranscriptionOptions:
        """The options with the terms of their vocabulary as they are now: later changes do not affect the jobs."""
        return self._state.service.vocabularies.resolved(self._owner, self.form.options)

    @property
    def _pending(self) -> list[tuple[IncomingFile, StoredFile]]:
        return [
            (file, file.stored)
            for file in self.files
            if file.stored is not None and file.error is None and file.number not in self.jobs
        ]

    def find_earlier(self, form: F, files: Sequence[IncomingFile]) -> None:
        """Find the jobs that the same request has made before.

        Args:
            form: the values of the form.
            files: the files of the request.

        Raises:
            IdempotencyConflict: the key was used before with another payload.
        """
        self.form, self.files = form, files
        service = self._state.service
        if self._key is not None:
            many = self._rules.takes_many
            self._keys = {file.number: file_key(self._key, file.number) if many else self._key for file in files}
            # All keys that the request may use. Other jobs with one of these keys belong to another payload.
            keys: dict[str, str | None] = dict.fromkeys(keys_of(self._key))
            keys |= {self._keys[file.number]: file.fingerprint for file in self.files}
            found = service.find_submitted(self._owner, keys)
            for file in self.files:
                if (key := self._keys[file.number]) in found:
                    self.jobs[file.number] = found[key]
                    # The queue may refuse the file this time, but the file already has a job.
                    file.error = None
        if self._pending:
            # An unknown vocabulary is an error before anything is fetched.
            _ = self._options
        if self._rules.join:
            # A file with an existing job is not fetched again.
            for file, stored, _ in self.to_fetch:
                job = service.find_to_join(self._submission(file, stored, audio_seconds=None))
                if job is not None:
                    self.jobs[file.number] = job

    def submit(self) -> None:
        """Probe the files and submit their jobs.

        Raises:
            WhisperApiError: an error of the whole request, or of its only file.
        """
        for file, stored in self._pending:
            self._submit(file, stored)

    def _submit(self, file: IncomingFile, stored: StoredFile) -> None:
        try:
            write_recordings(self.form.known_speakers, stored.directory)
            seconds = _length(self._state.config, stored, file.file_name, self.form.options)
            submission = self._submission(file, stored, seconds)
            self.jobs[file.number] = self._state.service.submit(submission, self._reservations[stored.directory])
        except (Problem, errors.WhisperApiError) as error:
            if not self._rules.takes_many or (isinstance(error, REQUEST_ERRORS) and not self.jobs):
                raise
            file.error = error

    def _submission(self, file: IncomingFile, stored: StoredFile, audio_seconds: float | None) -> Submission:
        form = self.form
        return made_of(
            form,
            Submission,
            job_id=self._reservations[stored.directory].job_id,
            owner=self._owner,
            options=self._options,
            file_name=file.file_name,
            audio_bytes=stored.size,
            audio_seconds=audio_seconds,
            idempotency_key=self._keys.get(file.number),
            fingerprint=file.fingerprint,
            known_speakers=tuple(speaker.name for speaker in form.known_speakers),
            join=self._rules.join,
            not_to_join=self._rules.not_to_join,
        )


def _length(config: Config, stored: StoredFile, file_name: str | None, options: TranscriptionOptions) -> float | None:
    """Seconds of a recording, by its header.

    Raises:
        InvalidAudio: the file is not audio.
        AudioTooLong: its header states more than ``MAX_AUDIO_SECONDS``.
        InvalidOption: the audio track does not exist, or there are too many channels to separate them.
    """
    from whisper_api.engine.audio.decode import probe

    with io.FileIO(stored.path) as file:
        # Error messages contain the client's name of the file.
        file.name = file_name or "the file"
        most = config.max_audio_seconds or None
        return probe(file, audio_track=options.audio_track, channels=options.channels, max_seconds=most).duration


def file_key(key: str, number: int) -> str:
    """The idempotency key of one job of several, with a separator that no client can send.

    Args:
        key: the request's idempotency key.
        number: number of the file, from 0.
    """
    return f"{key}\x1f{number}"


def keys_of(key: str) -> tuple[str, ...]:
    """The idempotency keys of all jobs that a request with this key may have made."""
    return (key, *(file_key(key, number) for number in range(MAX_FILES)))
