"""A form while it is received: its text fields in memory, its files on the disk, and the limits of both.

A reader of the request's media type parses the body and calls the methods of :class:`IncomingForm`. The same form takes
one file or many. With one file, the first error ends the request; with many, an error of one file refuses that file.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_api.errors import Busy, CallerLimit, Draining, InvalidOption
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.pace import PaceRules
from whisper_api.server.uploads.part_headers import display_name, file_name_of, shown
from whisper_api.server.uploads.storing import HeaderlessFile, StoredFile

FILE_FIELD = "file"
URL_FIELD = "url"
# The name that Mistral's clients use for the same field.
FILE_URL_FIELD = "file_url"
HOW_TO_SEND = f'Send the audio as multipart/form-data in the field "{FILE_FIELD}" (curl -F {FILE_FIELD}=@call.wav)'
MAX_FILES = 100
# Number of bytes of refused files that are read and dropped to reach the files after them.
MAX_SKIPPED_BYTES = 1 << 30
RETRY_SECONDS = 30.0
EMPTY_DIGEST = hashlib.sha256().digest()


@dataclass(frozen=True)
class Limits:
    """The limits of an upload.

    Attributes:
        max_file_size: most bytes of each file.
        pace: least pace of the whole body.
        max_fields: most text fields, without the URLs of files.
        max_field_bytes: most bytes of all text fields together.
        max_header_bytes: most bytes of the headers of all parts together.
        file_fields: names of the fields that may contain a file.
        max_files: most files and URLs of files; with more than one, an error of one file does not refuse the others.
    """

    max_file_size: int
    pace: PaceRules
    max_fields: int = 100
    max_field_bytes: int = 1 << 20
    max_header_bytes: int = 32 << 10
    file_fields: tuple[str, ...] = (FILE_FIELD,)
    max_files: int = 1

    @property
    def max_other_bytes(self) -> int:
        """Most bytes outside the contents of the parts: headers, boundaries, padding."""
        return 2 * self.max_header_bytes + 512 * (self.max_fields + 2)


@dataclass
class IncomingFile:
    """A file of a form, or the URL of a file.

    Attributes:
        number: 0 for the first.
        file_name: the client's name for the file, fit for display.
        url: the address to fetch the file from; None for a file in the body.
        is_named: whether the client named the file. A browser sends an empty file without a name for a field that its
            user left alone.
        size: bytes in the body so far.
        digest: SHA-256 of those bytes, set at the end of the file when the form computes fingerprints.
        stored: the file on the disk; None for a refused file.
        error: the reason of the refusal; None for an accepted file.
        fingerprint: SHA-256 over the request, and over the file's number when there may be many files; None when the
            form computes no fingerprints.
    """

    number: int
    file_name: str | None
    url: str | None = None
    is_named: bool = True
    size: int = 0
    digest: bytes = EMPTY_DIGEST
    stored: StoredFile | None = None
    error: Exception | None = None
    fingerprint: str | None = None


class IncomingForm:
    """Collects the fields and files of one request. Its methods block on the disk.

    Args:
        limits: the limits of the upload.
        new_directory: returns the directory for one more file; may raise :class:`~whisper_api.errors.Busy`.
        take_bytes: counts bytes on the disk, and returns whether the caller may use them.
        purpose: part of the fingerprints, so that the same upload for another purpose has another fingerprint; None to
            compute no fingerprints.
        headerless: whether the files are samples without a header, as
            :class:`~whisper_api.server.uploads.storing.HeaderlessFile` stores them.

    Attributes:
        limits: the limits of the upload.
        fields: name and value of each text field, in order.
        files: the files, in the order sent.
        file_bytes: bytes of all files so far.
        stated_bytes: ``Content-Length`` of the body, for the message about a file that is too large.
    """

    def __init__(
        self,
        limits: Limits,
        new_directory: Callable[[], Path],
        *,
        take_bytes: Callable[[int], bool] = lambda count: True,
        purpose: str | None = None,
        headerless: bool = False,
    ) -> None:
        self.limits = limits
        self.fields: list[tuple[str, str]] = []
        self.files: list[IncomingFile] = []
        self.file_bytes = 0
        self.stated_bytes = 0
        self._new_directory = new_directory
        self._take_bytes = take_bytes
        self._purpose = purpose
        self._headerless = headerless
        self._field_count = 0
        self._skipped_bytes = 0
        self._has_begun = False
        self._current: IncomingFile | None = None
        self._digest = hashlib.sha256()

    @property
    def takes_many(self) -> bool:
        """Whether the form may have many files."""
        return self.limits.max_files > 1

    def add_field(self, name: str, value: str) -> None:
        """Add a text field, or the URL of a file.

        Args:
            name: name of the field.
            value: its text.

        Raises:
            Problem: the form has too many fields or files.
            InvalidOption: the field is a second URL, and one file is expected.
        """
        if name in (URL_FIELD, FILE_URL_FIELD):
            name = URL_FIELD
            self._add_url(value.strip())
            if self.takes_many:
                return
        else:
            self._field_count += 1
            if self._field_count > self.limits.max_fields:
                raise invalid_form(f"it has more than {self.limits.max_fields} fields")
        self.fields.append((name, value))

    def begin_file(self, field: str, name: str, *, is_text: bool = False) -> None:
        """Begin a file in the body. The next calls are :meth:`write` for its bytes, then :meth:`end_file`.

        Args:
            field: name of the field with the file.
            name: the client's name for the file; empty without a name.
            is_text: whether the client sent the field as text, which is an error.

        Raises:
            Problem: the form has too many files, or its only file cannot be used.
        """
        file = IncomingFile(len(self.files), display_name(name), is_named=bool(name) or is_text)
        if is_text:
            self._refuse(file, no_file(f'the field "{field}" is text'))
        elif self._has_begun and not self.takes_many:
            raise invalid_form("it has more than one file")
        elif field not in self.limits.file_fields:
            allowed = " or ".join(f'"{each}"' for each in self.limits.file_fields)
            self._refuse(file, no_file(f"the part {shown(field)} is a file, and only {allowed} may be one"))
        self._check_file_count()
        self._has_begun = True
        self._current = file
        self._digest = hashlib.sha256()
        if file.is_named:
            self._append(file)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the current file.

        Raises:
            Problem: 413 ``file_too_large``, for the only file of a form.
            StorageError: the file cannot be written.
        """
        file = self._current
        if file is None or not data:
            return
        if not file.is_named and not file.size:
            self._append(file)
        file.size += len(data)
        self.file_bytes += len(data)
        if self._purpose is not None:
            self._digest.update(data)
        if file.error is None and file.size > self.limits.max_file_size:
            self._refuse(file, too_large(max(file.size, self.stated_bytes), self.limits.max_file_size))
        if file.error is None and not self._take_bytes(len(data)):
            detail = "Your unfinished forms take as much of the disk as they may: send fewer files at a time"
            self._refuse(file, CallerLimit(detail, RETRY_SECONDS))
        if file.error is None and file.stored is not None:
            file.stored.write(data)
            return
        self._skipped_bytes += len(data)
        if file.error is not None and self._skipped_bytes > MAX_SKIPPED_BYTES:
            raise file.error

    def end_file(self) -> None:
        """End the current file, which from now on survives a power cut."""
        file, self._current = self._current, None
        if file is None or not (file.is_named or file.size):
            return
        file.digest = self._digest.digest()
        if file.stored is not None and file.error is None:
            file.stored.commit()
        elif file.stored is not None:
            # Removed at once, because the rest of the form may take long to arrive.
            file.stored.discard()

    def finish(self) -> None:
        """End the form: make directories for the files to fetch, and compute the fingerprints.

        Raises:
            Problem: the form has no file.
            InvalidOption: the form has a file and a URL, and one file is expected.
        """
        if not self.files:
            raise no_file("no part holds one")
        if len(self.files) > self.limits.max_files:
            raise InvalidOption(URL_FIELD, f"give either this or {FILE_FIELD}, not both")
        for file in self.files:
            if file.url is not None:
                self._open(file)
        if self._purpose is not None:
            self._add_fingerprints(self._purpose)

    def discard(self) -> None:
        """Close and remove all files."""
        for file in self.files:
            if file.stored is not None:
                file.stored.close()
                shutil.rmtree(file.stored.directory, ignore_errors=True)

    def _add_url(self, url: str) -> None:
        if not url:
            return
        if self.takes_many:
            self._check_file_count()
        elif any(file.url is not None for file in self.files):
            raise InvalidOption(URL_FIELD, "expected one; POST /transcriptions takes several")
        self.files.append(IncomingFile(len(self.files), file_name_of(url), url))

    def _check_file_count(self) -> None:
        if self.takes_many and len(self.files) >= self.limits.max_files:
            raise invalid_form(f"it has more than {self.limits.max_files} files")

    def _append(self, file: IncomingFile) -> None:
        self.files.append(file)
        self._open(file)

    def _open(self, file: IncomingFile) -> None:
        if file.error is not None:
            return
        try:
            directory = self._new_directory()
        except Draining:
            raise
        except Busy as error:
            self._refuse(file, error)
        else:
            file.stored = HeaderlessFile(directory) if self._headerless else StoredFile(directory)

    def _refuse(self, file: IncomingFile, error: Exception) -> None:
        if not self.takes_many:
            raise error
        file.error = error

    def _add_fingerprints(self, purpose: str) -> None:
        if not self.takes_many:
            self.files[0].fingerprint = _fingerprint(self.files[0].digest, self.fields, purpose)
            return
        whole = hashlib.sha256()
        for file in self.files:
            url = (file.url or "").encode()
            whole.update(len(url).to_bytes(8, "big") + url)
            if file.url is None:
                whole.update(file.digest)
        for file in self.files:
            file.fingerprint = _fingerprint(whole.digest(), self.fields, f"{purpose}\0{file.number}")


def _fingerprint(digest: bytes, fields: Sequence[tuple[str, str]], purpose: str) -> str:
    """SHA-256, in hexadecimal, over a request's files, fields and purpose.

    Only the order of fields with the same name changes the fingerprint, because the last of them is used.
    """
    whole = hashlib.sha256(digest)
    texts: Iterable[str] = (text for field in sorted(fields, key=lambda field: field[0]) for text in field)
    for text in [*texts, purpose] if purpose else texts:
        data = text.encode()
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()


def too_large(size: int, limit: int) -> Problem:
    """The error for a file that is too large.

    Args:
        size: bytes of the file or of the body.
        limit: most bytes of a file.
    """
    return Problem(413, "file_too_large", f"File too large: {size} bytes exceeds limit of {limit} bytes")


def invalid_form(reason: str) -> Problem:
    """The error for a form that cannot be read."""
    return Problem(400, "invalid_form", f"The form cannot be read: {reason}")


def no_file(reason: str) -> Problem:
    """The error for a form without a file."""
    return Problem(400, "no_file", f"No file: {reason}. {HOW_TO_SEND}")
