"""The text of clients in the job database, stored so that a deletion leaves nothing of it in the file.

SQLite's ``secure_delete`` overwrites what is deleted. But when SQLite splits or joins pages of a table, it moves rows
from page to page and leaves their old copies behind in the unused part of a page, and ``secure_delete`` does not reach
these copies. SQLite never copies overflow pages, though: they hold the end of a row that is too long for its page
(https://www.sqlite.org/fileformat2.html#ovflpgs), and ``secure_delete`` overwrites them whole. So every text stands
behind a padding that fills the part of the row outside the overflow pages, and indexes hold digests instead of text.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

import msgspec

__all__ = ["PAGE_BYTES", "JobText", "delete_text", "digest", "padded", "put_text"]

PAGE_BYTES = 4096
# No row keeps more than a page outside its overflow pages. JSON may begin with spaces, so nobody has to remove them.
_PADDING = b" " * PAGE_BYTES
DIGEST_BYTES = 16


class JobText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client wrote in a submission, and sentences that may repeat words of it.

    The fields mean the same as in :class:`~whisper_api.store.rows.Job`; the prompt and the hotwords are those of the
    job's options.
    """

    prompt: str | None = None
    hotwords: str | None = None
    file_name: str | None = None
    hf_token: str | None = None
    metadata: dict[str, Any] | None = None
    known_speakers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None
    idempotency_key: str | None = None


def padded(content: bytes) -> bytes:
    """JSON as the database stores it: behind spaces, so that all of it stands in overflow pages."""
    return _PADDING + content


def digest(text: str) -> str:
    """What an index holds in place of a text: 128 bits of BLAKE2b (RFC 7693) as hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).hexdigest()


def put_text(connection: sqlite3.Connection, seq: int, text: JobText) -> None:
    """Store the text of a job in place of its earlier text.

    Args:
        connection: in a transaction.
        seq: number of the job.
        text: what to store; an empty one only removes the earlier text.
    """
    content = msgspec.json.encode(text)
    if content == b"{}":
        connection.execute("DELETE FROM job_texts WHERE seq = ?", (seq,))
    else:
        connection.execute("INSERT OR REPLACE INTO job_texts (seq, content) VALUES (?, ?)", (seq, padded(content)))


def delete_text(connection: sqlite3.Connection, seq: int, error: str | None = None) -> None:
    """Remove all that a client wrote in a submission.

    Args:
        connection: in a transaction.
        seq: number of the job.
        error: a sentence of the server's own that takes the text's place.
    """
    put_text(connection, seq, JobText(error=error))
    connection.execute("DELETE FROM job_metadata WHERE seq = ?", (seq,))
