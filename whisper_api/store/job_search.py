"""Searching for jobs: the conditions of a page as SQL, and the cursor at which the next page begins."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from whisper_api.errors import InvalidOption
from whisper_api.job_values import JobState
from whisper_api.store.metadata import searched
from whisper_api.store.texts import digest

__all__ = ["ALL_JOBS", "JobFilter", "conditions", "page_of"]

T = TypeVar("T")

# Most entries of a page.
MAX_PAGE = 1000


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to find; a field that is None sets no condition.

    Attributes:
        state: state of the job.
        metadata_key: a key at the top of the job's metadata.
        metadata_value: its value: text, or a number, true, false or null as JSON. Needs ``metadata_key``.
        created_after: the job was submitted then or later; seconds since 1970.
        created_before: the job was submitted earlier; seconds since 1970.
    """

    state: JobState | None = None
    metadata_key: str | None = None
    metadata_value: str | None = None
    created_after: float | None = None
    created_before: float | None = None


ALL_JOBS = JobFilter()


def conditions(owner: str | None, filter: JobFilter, before_seq: int | None) -> tuple[str, list[object]]:
    """A WHERE clause for the table of jobs, and its values.

    Args:
        owner: owner of the jobs; None for the jobs of all owners.
        filter: further conditions.
        before_seq: only jobs submitted before the job with this number; None for all.
    """
    searching = filter.metadata_key is not None
    possible: dict[str, object] = {
        # A search by metadata finds only the owner's jobs. With the owner as a condition here too, or without the plus
        # sign that hides the state from the query planner, SQLite would read an index of all jobs and sort the result.
        "owner = ?": None if searching else owner,
        "+state = ?" if searching else "state = ?": filter.state,
        "seq < ?": before_seq,
        "created_at >= ?": filter.created_after,
        "created_at < ?": filter.created_before,
    }
    clauses = [condition for condition, value in possible.items() if value is not None]
    values = [value for value in possible.values() if value is not None]
    if filter.metadata_key is not None:
        clause, more = _with_metadata(owner, filter.metadata_key, filter.metadata_value)
        clauses.append(clause)
        values += more
    return (f"WHERE {' AND '.join(clauses)}" if clauses else ""), values


def _cursor_of(seq: int) -> str:
    """The cursor for a job's number; opaque to clients."""
    return base64.urlsafe_b64encode(str(seq).encode()).decode().rstrip("=")


def page_of(read: Callable[..., list[T]], limit: int, after: str | None) -> tuple[list[T], str | None]:
    """A page of a list, and the cursor of the next page; None on the last one.

    Args:
        read: gives the entries, newest first: at most ``limit``, and only those before the number ``before_seq``.
        limit: most entries of a page.
        after: the cursor of the page before; None for the first page.

    Raises:
        InvalidOption: the limit or the cursor cannot be used.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidOption("limit", f"expected a whole number from 1 to {MAX_PAGE}")
    found = read(limit=limit + 1, before_seq=None if after is None else _seq_of(after))
    last: Any = found[limit - 1] if len(found) > limit else None
    return found[:limit], None if last is None else _cursor_of(last.seq)


def _seq_of(cursor: str) -> int:
    """The number in a cursor.

    Raises:
        InvalidOption: :func:`_cursor_of` does not give this cursor.
    """
    try:
        seq = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        seq = 0
    # Other texts can be decoded too, and SQLite has no larger integers.
    if not 0 < seq < 1 << 63 or _cursor_of(seq) != cursor:
        raise InvalidOption("after", "expected the value of next in a response")
    return seq


def _with_metadata(owner: str | None, key: str, value: str | None) -> tuple[str, list[object]]:
    conditions: list[tuple[str, list[object]]] = [("key = ?", [digest(key)])]
    # The index begins with the owner; without an owner SQLite reads all of the index.
    if owner is not None:
        conditions.insert(0, ("owner = ?", [owner]))
    if value is not None:
        texts = searched(value)
        conditions.append((f"value IN ({', '.join('?' * len(texts))})", [digest(text) for text in texts]))
    clauses = " AND ".join(clause for clause, _ in conditions)
    flat = [each for _, values in conditions for each in values]
    return f"seq IN (SELECT seq FROM job_metadata WHERE {clauses})", flat
