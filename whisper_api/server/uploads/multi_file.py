"""A form with several files, or addresses in their reservation: each to a directory of its own as it comes.

What is wrong with one of them is noted with it, and does not stop the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from starlette.requests import Request

from whisper_api.errors import Busy, Draining
from whisper_api.server.uploads.file_parts import MAX_FILES, ComingFile, Part, SeveralReader
from whisper_api.server.uploads.multipart import URL_FIELD, Limits, boundary_of, invalid_form, media_type_of
from whisper_api.server.uploads.receiving import Reception, receive
from whisper_api.server.uploads.storing import StoredFile
from whisper_api.server.uploads.uploads import Upload, fingerprint_of
from whisper_api.server.uploads.urlencoded import MEDIA_TYPE, FieldsReader

if TYPE_CHECKING:
    from whisper_api.jobs.service import Reservation

__all__ = ["Reserve", "Take", "receive_several"]

Reserve = Callable[[], "Reservation"]
Take = Callable[[int], bool]

# A name of 255 characters may have four bytes for each, and stand there twice.
FILE_HEADER_BYTES = 2 << 10


async def receive_several(
    request: Request,
    reserve: Reserve,
    take: Take,
    limits: Limits,
    pool: Executor,
    *,
    fingerprint: bool = False,
    purpose: str = "",
) -> list[Part]:
    """Receive a form with any number of files and addresses. Parsing and writing happen in the pool's threads.

    Args:
        request: whose body was not read yet.
        reserve: asks for one more place; whoever gave this gives the places back.
        take: counts bytes on the disk, and says whether there is room for them.
        limits: what the upload may take; the size is that of each file.
        pool: threads for blocking work.
        fingerprint: whether to compute one.
        purpose: goes into it.

    Returns:
        The files in the order in which they came; those with an error have no upload.

    Raises:
        Problem: 400, 408 or 413: the form as a whole cannot be used.
        StorageFull, StorageError: a file cannot be written.
        Draining: the server stops.
        ClientDisconnect: the client has gone.
    """
    content_type = request.headers.get("content-type", "")
    header_bytes = limits.max_header_bytes + MAX_FILES * FILE_HEADER_BYTES
    limits = dataclasses.replace(limits, max_header_bytes=header_bytes)
    reception = _Reception(content_type, limits, reserve, take, purpose if fingerprint else None)
    return await receive(request, reception, limits.pace, pool)


class _Reception(Reception[list[Part]]):
    """Several files on their way to the disk."""

    def __init__(self, content_type: str, limits: Limits, reserve: Reserve, take: Take, purpose: str | None) -> None:
        self._limits = limits
        self._reserve = reserve
        self._take = take
        self._purpose = purpose
        self._form: SeveralReader | FieldsReader
        if media_type_of(content_type) == MEDIA_TYPE:
            self._form = FieldsReader(limits, MAX_FILES)
        else:
            self._form = SeveralReader(boundary_of(content_type), limits, self._begin)
        super().__init__(self._form)

    def _finished(self) -> list[Part]:
        parts, coming = self._read()
        fields = tuple(self._form.fields)
        whole = self._digest(parts, coming)
        for part in parts:
            if self._purpose is not None:
                part.fingerprint = fingerprint_of(whole, fields, f"{self._purpose}\0{part.number}")
            self._complete(part, coming.get(part.number), fields)
        return parts

    def _undo(self) -> None:
        # The directories go with the places, which whoever gave them takes back.
        if isinstance(self._form, SeveralReader):
            for each in self._form.coming:
                if each.file is not None:
                    each.file.close()

    def _begin(self, part: Part) -> ComingFile:
        self._take_place(part)
        return ComingFile(part, self._limits.max_file_size, self._take, hashed=self._purpose is not None)

    def _take_place(self, part: Part) -> None:
        if part.error is not None:
            return
        try:
            part.reservation = self._reserve()
        except Draining:
            raise
        except Busy as error:
            part.error = error

    def _read(self) -> tuple[list[Part], dict[int, ComingFile]]:
        if isinstance(self._form, SeveralReader):
            return self._form.parts, {coming.part.number: coming for coming in self._form.coming}
        urls = [value.strip() for name, value in self._form.fields if name == URL_FIELD and value.strip()]
        if len(urls) > MAX_FILES:
            raise invalid_form(f"it has more than {MAX_FILES} files")
        self._form.fields = [field for field in self._form.fields if field[0] != URL_FIELD]
        return [Part(number, None, url) for number, url in enumerate(urls)], {}

    def _complete(self, part: Part, coming: ComingFile | None, fields: tuple[tuple[str, str], ...]) -> None:
        if part.url is not None:
            self._take_place(part)
        if part.error is not None or part.reservation is None:
            return
        file = StoredFile(part.reservation.directory) if coming is None or coming.file is None else coming.file
        # Known speakers go there before a file does that is yet to be fetched.
        part.reservation.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.upload = Upload(file.path, file.size, part.fingerprint, part.file_name, fields, part.url)

    def _digest(self, parts: list[Part], coming: dict[int, ComingFile]) -> bytes:
        """Of all files and addresses, in their order."""
        whole = hashlib.sha256()
        for part in parts:
            address = b"" if part.url is None else part.url.encode()
            whole.update(len(address).to_bytes(8, "big") + address)
            if part.number in coming:
                whole.update(coming[part.number].digest)
        return whole.digest()
