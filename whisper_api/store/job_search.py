"""The conditions under which a job stands on a page: SQL and the values in it."""

from __future__ import annotations

from whisper_api.schema import JobState
from whisper_api.store.metadata import searched
from whisper_api.store.texts import digest

__all__ = ["conditions"]


def conditions(
    *,
    owner: str | None,
    state: JobState | None,
    before_seq: int | None,
    metadata_key: str | None,
    metadata_value: str | None,
    created_after: float | None,
    created_before: float | None,
) -> tuple[str, list[object]]:
    """A WHERE clause for the table of jobs, and its values. What is None is no condition.

    Args:
        owner: whose.
        state: in which state.
        before_seq: submitted before the job with this number.
        metadata_key: with this at the top of its metadata.
        metadata_value: with this as its value, as text or as JSON.
        created_after: submitted then or later; seconds since 1970.
        created_before: submitted earlier; seconds since 1970.
    """
    searching = metadata_key is not None
    wanted: dict[str, object] = {
        # What a search by metadata finds is the owner's alone. Were it asked for again, or the state without the sign
        # that keeps it from the planner, SQLite would go through an index of all jobs and sort what it finds.
        "owner = ?": None if searching else owner,
        "+state = ?" if searching else "state = ?": state,
        "seq < ?": before_seq,
        "created_at >= ?": created_after,
        "created_at < ?": created_before,
    }
    clauses = [condition for condition, value in wanted.items() if value is not None]
    values = [value for value in wanted.values() if value is not None]
    if metadata_key is not None:
        search, those = _with_metadata(owner, metadata_key, metadata_value)
        clauses.append(search)
        values += those
    return (f"WHERE {' AND '.join(clauses)}" if clauses else ""), values


def _with_metadata(owner: str | None, key: str, value: str | None) -> tuple[str, list[object]]:
    wanted: list[tuple[str, list[object]]] = [("key = ?", [digest(key)])]
    # The index begins with the owner; somebody who sees all jobs has it read from end to end.
    if owner is not None:
        wanted.insert(0, ("owner = ?", [owner]))
    if value is not None:
        texts = searched(value)
        wanted.append((f"value IN ({', '.join('?' * len(texts))})", [digest(text) for text in texts]))
    clauses = " AND ".join(clause for clause, _ in wanted)
    return f"seq IN (SELECT seq FROM job_metadata WHERE {clauses})", [each for _, values in wanted for each in values]
