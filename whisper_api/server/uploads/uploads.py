"""Uploads: from the socket to the disk as they come, counted, and gone without a trace when they fail."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from whisper_api.errors import InvalidOption
from whisper_api.server.uploads.headerless import HeaderlessFile
from whisper_api.server.uploads.multipart import (
    FILE_FIELD,
    HOW_TO_SEND,
    URL_FIELD,
    FormReader,
    Limits,
    boundary_of,
    media_type_of,
    too_large,
)
from whisper_api.server.uploads.raw_body import HOW_TO_SEND_RAW, RawReader, is_audio
from whisper_api.server.uploads.receiving import Reception, receive
from whisper_api.server.uploads.storing import StoredFile
from whisper_api.server.uploads.urlencoded import MEDIA_TYPE, FieldsReader

__all__ = ["Limits", "Upload", "fingerprint_of", "receive_upload", "stated_bytes_of", "url_of"]


@dataclass(frozen=True)
class Upload:
    """An upload that has come whole, its file on the disk.

    Attributes:
        path: of the file.
        size: bytes of it.
        fingerprint: SHA-256 over file and fields, if it was asked for: equal when all of them are.
        file_name: the client's name for it, for people; never a path.
        fields: name and value of each text field, in order.
        url: where the file is to be fetched from; nothing is at its path before that.
    """

    path: Path
    size: int
    fingerprint: str | None
    file_name: str | None
    fields: tuple[tuple[str, str], ...]
    url: str | None = None


async def receive_upload(
    request: Request,
    directory: Path,
    limits: Limits,
    pool: Executor,
    *,
    fingerprint: bool = False,
    purpose: str = "",
    raw: bool = False,
    headerless: bool = False,
) -> Upload:
    """Receive a form with one file, or in its place its address. Parsing and writing happen in the pool's threads.

    Args:
        request: whose body was not read yet.
        directory: made for the file, mode 0700, and removed with all it holds when this fails in any way.
        limits: what the upload may take.
        pool: threads for blocking work.
        fingerprint: whether to compute one.
        purpose: goes into it: the same upload for another purpose has another one.
        raw: whether the body may be the recording itself, with the fields in the query.
        headerless: whether the file holds samples without a header, as
            :class:`~whisper_api.server.uploads.headerless.HeaderlessFile` takes them.

    Returns:
        The upload, which a power cut no longer undoes.

    Raises:
        Problem: 400, 408 or 413, and its code says what is wrong.
        StorageFull: no space is left on the disk.
        StorageError: the file cannot be written for another reason.
        ClientDisconnect: the client has gone.
    """
    stated = stated_bytes_of(request)
    if stated is not None and stated > limits.max_file_size + limits.max_field_bytes + limits.max_other_bytes:
        raise too_large(stated, limits.max_file_size)
    file = StoredFile(directory, hashed=fingerprint)
    content_type = request.headers.get("content-type", "")
    how_to_send = HOW_TO_SEND_RAW if raw else HOW_TO_SEND
    samples = HeaderlessFile(file) if headerless else None
    write = file.write if samples is None else samples.write
    form: FormReader | FieldsReader | RawReader
    if media_type_of(content_type) == MEDIA_TYPE:
        form = FieldsReader(limits, how_to_send=how_to_send)
    elif raw and is_audio(media_type_of(content_type)):
        if stated is not None and stated > limits.max_file_size:
            raise too_large(stated, limits.max_file_size)
        form = RawReader(request, limits, write, stated)
    else:
        form = FormReader(boundary_of(content_type, how_to_send), limits, write, stated)
    reception = _Reception(directory, file, samples, form, purpose if fingerprint else None)
    return await receive(request, reception, limits.pace, pool)


def url_of(fields: Iterable[tuple[str, str]]) -> str | None:
    """The address in a form's fields that the audio is to be fetched from.

    Raises:
        InvalidOption: there is more than one.
    """
    urls = [value.strip() for name, value in fields if name == URL_FIELD and value.strip()]
    if len(urls) > 1:
        raise InvalidOption(URL_FIELD, "expected one; POST /transcriptions takes several")
    return urls[0] if urls else None


def fingerprint_of(digest: bytes, fields: Iterable[tuple[str, str]], purpose: str = "") -> str:
    """SHA-256, in hexadecimal, over what a request is.

    Args:
        digest: of its file.
        fields: name and value of each, in order.
        purpose: what it is for; empty for a transcription.
    """
    whole = hashlib.sha256(digest)
    # Sorted by name alone: of a field that comes twice, the last counts.
    texts = [text for field in sorted(fields, key=lambda field: field[0]) for text in field]
    for text in [*texts, purpose] if purpose else texts:
        data = text.encode()
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()


class _Reception(Reception[Upload]):
    """One upload on its way to the disk."""

    def __init__(
        self,
        directory: Path,
        file: StoredFile,
        samples: HeaderlessFile | None,
        form: FormReader | FieldsReader | RawReader,
        purpose: str | None,
    ) -> None:
        super().__init__(form)
        self._directory = directory
        self._file = file
        self._headerless = samples
        self._form = form
        self._purpose = purpose

    def _finished(self) -> Upload:
        fields = tuple(self._form.fields)
        url = url_of(fields)
        file_name = None
        if isinstance(self._form, RawReader) or (isinstance(self._form, FormReader) and self._form.has_file):
            if url is not None:
                raise InvalidOption(URL_FIELD, f"give either this or {FILE_FIELD}, not both")
            if self._headerless is not None:
                self._headerless.finish()
            self._file.commit()
            file_name = self._form.file_name
        else:
            # Known speakers go there before the file does.
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fingerprint = None if self._purpose is None else fingerprint_of(self._file.digest, fields, self._purpose)
        return Upload(self._file.path, self._file.size, fingerprint, file_name, fields, url)

    def _undo(self) -> None:
        self._file.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def stated_bytes_of(request: Request) -> int | None:
    """How long a body is, if its header says."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None
