"""The texts of clients in the job database, stored so that a deletion leaves nothing of them in the file.

SQLite's ``secure_delete`` overwrites deleted content. But when SQLite splits or joins pages of a table, it moves rows
from page to page and leaves their old copies in the unused part of a page, where ``secure_delete`` does not reach them.
SQLite never copies overflow pages, which hold the end of a row that is too long for its page
(https://www.sqlite.org/fileformat2.html#ovflpgs), and ``secure_delete`` overwrites overflow pages whole. Therefore a
padding in front of every text fills the part of the row outside the overflow pages, and indexes hold digests.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any, TypeVar

import msgspec

from whisper_api.errors import StorageError
from whisper_api.trace_context import JobTrace

T = TypeVar("T")

PAGE_BYTES = 4096
# At most one page of a row lies outside its overflow pages. JSON may begin with spaces, so no reader removes them.
_PADDING = b" " * PAGE_BYTES
DIGEST_BYTES = 16


class JobText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The texts of a submission, and sentences of the server that may repeat words of them.

    The fields mean the same as in :class:`~whisper_api.store.rows.Job`; the prompt, the hotwords and the vocabulary
    belong to the job's options.
    """

    prompt: str | None = None
    hotwords: str | None = None
    vocabulary: str | tuple[str, ...] | None = None
    file_name: str | None = None
    hf_token: str | None = None
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None
    idempotency_key: str | None = None
    trace: JobTrace | None = None
    webhook_url: str | None = None
    webhook_include_result: bool = False


def padded(content: bytes) -> bytes:
    """JSON with a padding in front, so that all of it lies in overflow pages."""
    return _PADDING + content


def stored(value: msgspec.Struct) -> bytes:
    """A value as JSON with the padding; :func:`read` inverts it."""
    return padded(msgspec.json.encode(value))


def read(content: str | bytes, kind: type[T], what: str) -> T:
    """The value of a JSON text, with or without padding.

    Args:
        content: the text.
        kind: type of the value.
        what: name of the row, for the error.

    Raises:
        StorageError: the text describes no such value.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise StorageError(f"{what} cannot be read: {error}") from error


def digest(text: str) -> str:
    """The digest of a text for an index: 128 bits of BLAKE2b (RFC 7693) as hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).hexdigest()


def put_text(connection: sqlite3.Connection, seq: int, text: JobText) -> None:
    """Store the text of a job instead of its earlier text.

    Args:
        connection: a connection in a transaction.
        seq: number of the job.
        text: the new text; an empty text only removes the earlier one.
    """
    content = msgspec.json.encode(text)
    if content == b"{}":
        connection.execute("DELETE FROM job_texts WHERE seq = ?", (seq,))
    else:
        connection.execute("INSERT OR REPLACE INTO job_texts (seq, content) VALUES (?, ?)", (seq, padded(content)))


def delete_text(connection: sqlite3.Connection, seq: int, error: str | None = None) -> None:
    """Remove the texts of a submission.

    Args:
        connection: a connection in a transaction.
        seq: number of the job.
        error: a sentence of the server that is stored instead.
    """
    put_text(connection, seq, JobText(error=error))
    connection.execute("DELETE FROM job_metadata WHERE seq = ?", (seq,))
