"""Where a page of jobs ended, as a word that a client hands back."""

from __future__ import annotations

import base64

from whisper_api.errors import InvalidOption

__all__ = ["cursor_of", "seq_of"]


def cursor_of(seq: int) -> str:
    """The word for a job's number."""
    return base64.urlsafe_b64encode(str(seq).encode()).decode().rstrip("=")


def seq_of(cursor: str) -> int:
    """The number that such a word stands for.

    Raises:
        InvalidOption: no page ended so.
    """
    try:
        seq = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        seq = 0
    # Much else can be decoded too; and SQLite knows no larger numbers.
    if not 0 < seq < 1 << 63 or cursor_of(seq) != cursor:
        raise InvalidOption("after", "expected what an answer gave as next")
    return seq
