"""The parts of a form with several files, as they come; ``multipart.py`` reads a form with one file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whisper_api.errors import CallerLimit
from whisper_api.server.uploads.multipart import (
    FILE_FIELD,
    URL_FIELD,
    FormReader,
    Limits,
    display_name,
    invalid_form,
    no_file,
    shown,
    too_large,
)
from whisper_api.server.uploads.storing import StoredFile
from whisper_api.server.uploads.uploads import Upload

if TYPE_CHECKING:
    from whisper_api.jobs.service import Reservation

__all__ = ["MAX_FILES", "ComingFile", "Part", "SeveralReader"]

MAX_FILES = 100
# Of files that are refused and read to their end nevertheless, for what comes after them.
MAX_SKIPPED_BYTES = 1 << 30
RETRY_SECONDS = 30.0


@dataclass
class Part:
    """One file of several.

    Attributes:
        number: 0 for the first.
        file_name: the client's name for it, fit for display.
        url: where it is to be fetched from, when it did not come itself.
        reservation: in the queue; None for one that got none.
        upload: what was received, once the form is whole; None for one that was refused.
        error: why it is refused.
        fingerprint: of the whole request and this number.
    """

    number: int
    file_name: str | None
    url: str | None = None
    reservation: Reservation | None = None
    upload: Upload | None = None
    error: Exception | None = None
    fingerprint: str | None = None


class ComingFile:
    """A file that comes: written while nothing is wrong with it, counted and hashed in any case.

    Args:
        part: of the form.
        max_bytes: that the file may have.
        take: counts bytes on the disk, and says whether there is room for them.
        hashed: whether to compute a digest.
    """

    def __init__(self, part: Part, max_bytes: int, take: Callable[[int], bool], *, hashed: bool) -> None:
        self.part = part
        self.size = 0
        self._max_bytes = max_bytes
        self._take = take
        self._digest = hashlib.sha256() if hashed else None
        self.file = None if part.reservation is None else StoredFile(part.reservation.directory)

    @property
    def digest(self) -> bytes:
        return (self._digest or hashlib.sha256()).digest()

    def write(self, data: memoryview) -> None:
        self.size += len(data)
        if self._digest is not None:
            self._digest.update(data)
        if self.part.error is None and self.size > self._max_bytes:
            self.part.error = too_large(self.size, self._max_bytes)
        if self.part.error is None and self.file is not None:
            if self._take(len(data)):
                self.file.write(data)
            else:
                self.part.error = CallerLimit(
                    "Your unfinished forms take as much of the disk as they may: send fewer files at a time",
                    RETRY_SECONDS,
                )

    def end(self) -> None:
        if self.file is None:
            return
        if self.part.error is None:
            self.file.commit()
            return
        self.file.close()
        # The rest of the form may take long to come.
        self.file.remove()


class SeveralReader(FormReader):
    """Reads a form with several files.

    Args:
        boundary, limits: as those of a form with one.
        begin: called for each file: its name and what is wrong with it already.

    Attributes:
        parts: all files and addresses.
        coming: those of them that come, or came, themselves.
    """

    def __init__(self, boundary: bytes, limits: Limits, begin: Callable[[Part], ComingFile]) -> None:
        super().__init__(boundary, limits, lambda data: None)
        self.coming: list[ComingFile] = []
        self.parts: list[Part] = []
        self._begin = begin
        self._skipped = 0
        self._part: Part | None = None
        self._current: ComingFile | None = None

    @property
    def has_file(self) -> bool:
        return bool(self.parts)

    def _begin_file(self, file_name: str) -> None:
        self._part = self._new_part(display_name(file_name))
        self._named = bool(file_name)
        if self._field != FILE_FIELD:
            self._part.error = no_file(f'the part {shown(self._field)} is a file, and only "{FILE_FIELD}" may be one')

    def _text_for_file(self) -> None:
        self._begin_file("")
        self._named = True
        assert self._part is not None
        self._part.error = no_file(f'the field "{FILE_FIELD}" is text')

    def _file_data(self, data: memoryview) -> None:
        self.size += len(data)
        coming = self._started()
        coming.write(data)
        if coming.part.error is not None:
            self._skipped += len(data)
            if self._skipped > MAX_SKIPPED_BYTES:
                raise coming.part.error

    def _end_file(self) -> None:
        if self._current is None and not self._named:
            # What a browser sends of a field that was left alone.
            self._part = None
            return
        self._started().end()
        self._part = self._current = None

    def _add_field(self, name: str, text: str) -> None:
        if name == URL_FIELD:
            if text.strip():
                part = self._new_part(None)
                part.url = text.strip()
                self.parts.append(part)
            return
        super()._add_field(name, text)

    def _new_part(self, file_name: str | None) -> Part:
        if len(self.parts) >= MAX_FILES:
            raise invalid_form(f"it has more than {MAX_FILES} files")
        return Part(len(self.parts), file_name)

    def _started(self) -> ComingFile:
        if self._current is None:
            assert self._part is not None
            self.parts.append(self._part)
            self._current = self._begin(self._part)
            self.coming.append(self._current)
        return self._current
