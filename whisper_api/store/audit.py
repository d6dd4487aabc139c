"""The table of the audit trail. Entries are only added, and the oldest ones removed.

Triggers of the schema refuse to change an entry, to remove an entry before an older one, and to remove an entry of the
last day. They protect the trail from mistakes of programs, not from a person who can write the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from whisper_api.audit_records import ALL_RECORDS, AuditFilter, AuditRecord
from whisper_api.store.tables import Tables, where

_COLUMNS = tuple(name for name in AuditRecord.__struct_fields__ if name != "seq")
_INSERT = f"INSERT INTO audit ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_SELECT = f"SELECT seq, {', '.join(_COLUMNS)} FROM audit"
# Entries that one transaction removes, so that other writers do not wait for long.
_REMOVED_AT_A_TIME = 10_000
_READ_AT_A_TIME = 1000


class AuditTable(Tables):
    """The entries of the audit trail."""

    def add_audit(self, records: Sequence[AuditRecord], *, synced: bool) -> None:
        """Add entries.

        Args:
            records: in the order of the trail; their ``seq`` is ignored.
            synced: whether they must survive a loss of power; see :meth:`Database.write`.
        """
        with self.database.write(synced=synced) as connection:
            connection.executemany(_INSERT, (_values(record) for record in records))

    def audit_page(
        self, filter: AuditFilter = ALL_RECORDS, *, limit: int, before_seq: int | None = None
    ) -> list[AuditRecord]:
        """Entries, the newest first.

        Args:
            filter: conditions.
            limit: most entries to return.
            before_seq: only entries before the one with this number; None to begin with the newest.
        """
        found, values = where({"seq < ?": before_seq, **_conditions(filter)})
        return [_record(row) for row in self._rows(f"{_SELECT} {found} ORDER BY seq DESC LIMIT ?", *values, limit)]

    def audit_records(self, filter: AuditFilter = ALL_RECORDS) -> Iterator[AuditRecord]:
        """All entries, the oldest first, read a part at a time."""
        last = 0
        while True:
            later, values = where({"seq > ?": last, **_conditions(filter)})
            rows = self._rows(f"{_SELECT} {later} ORDER BY seq LIMIT ?", *values, _READ_AT_A_TIME)
            yield from map(_record, rows)
            if len(rows) < _READ_AT_A_TIME:
                return
            last = rows[-1]["seq"]

    def expire_audit(self, before: float) -> int:
        """Remove the oldest entries, until the first one at or after a time.

        Args:
            before: seconds since 1970; at least a day ago.

        Returns:
            The number of removed entries.
        """
        first_kept = "COALESCE((SELECT MIN(seq) FROM audit WHERE time >= ?), (SELECT MAX(seq) + 1 FROM audit))"
        removed = 0
        while True:
            with self.database.write() as connection:
                gone = connection.execute(
                    "DELETE FROM audit WHERE seq < MIN("
                    f"{first_kept}, (SELECT MIN(seq) FROM audit) + {_REMOVED_AT_A_TIME})",
                    (before,),
                ).rowcount
            removed += gone
            if gone < _REMOVED_AT_A_TIME:
                return removed


def _conditions(filter: AuditFilter) -> dict[str, object]:
    return {
        "time >= ?": filter.since,
        "time < ?": filter.until,
        # The key's id or name; below, the whole action or its first part.
        "? IN (key_id, name)": filter.key,
        "? IN (action, substr(action, 1, instr(action, '.') - 1))": filter.action,
    }


def _values(record: AuditRecord) -> list[object]:
    return [record.time.timestamp(), *(getattr(record, name) for name in _COLUMNS[1:])]


def _record(row: sqlite3.Row) -> AuditRecord:
    values = dict(row)
    return AuditRecord(time=datetime.fromtimestamp(values.pop("time"), timezone.utc), **values)
