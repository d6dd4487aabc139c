"""The table of the audit trail: entries are added, found and, the oldest first, removed; nothing else can be done."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from whisper_api.audit_records import AuditFilter, AuditRecord
from whisper_api.errors import StorageError
from whisper_api.store.jobs import JobStore

DAY = 86400.0


def entry(seconds: float, **fields: Any) -> AuditRecord:
    values = {"action": "job.read", "actor": "key", **fields}
    return AuditRecord(time=datetime.fromtimestamp(round(seconds), timezone.utc), **values)


def test_entries_come_back_as_they_were_added(store: JobStore) -> None:
    first = entry(
        time.time(),
        action="job.delete",
        key_id="0badcafe",
        name="Ada",
        role="user",
        target="job",
        address="192.0.2.1",
        request_id="r",
        status=404,
        error="job_not_found",
        count=3,
    )
    second = entry(time.time(), actor="command line")
    store.add_audit([first], synced=True)
    store.add_audit([second], synced=False)
    found = [msgspec.structs.replace(each, seq=0) for each in store.audit_records()]
    assert found == [first, second]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET name = 'x'",
        "UPDATE audit SET count = count + 1 WHERE seq = 1",
        "UPDATE OR REPLACE audit SET seq = 1 WHERE seq = 3",
        "INSERT OR REPLACE INTO audit (seq, time, action, actor, count) VALUES (1, 1.0, 'job.read', 'key', 1)",
        "REPLACE INTO audit (seq, time, action, actor, count) VALUES (3, 1.0, 'job.read', 'key', 1)",
        # Entries of the last day, and entries with an older one before them.
        "DELETE FROM audit",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 3",
    ],
)
def test_an_entry_can_be_neither_changed_nor_taken_out(store: JobStore, statement: str) -> None:
    now = time.time()
    store.add_audit([entry(now - 3 * DAY), entry(now - 2 * DAY), entry(now)], synced=True)
    before = list(store.audit_records())
    with pytest.raises(StorageError, match="audit trail"), store.database.write() as connection:
        connection.execute(statement)
    assert list(store.audit_records()) == before


def test_the_oldest_entries_expire_and_their_numbers_are_never_used_again(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_api.store.audit._REMOVED_AT_A_TIME", 2)
    now = time.time()
    old, new = [entry(now - 9 * DAY + number) for number in range(7)], [entry(now - 2 * DAY), entry(now)]
    store.add_audit([*old, *new], synced=True)
    assert store.expire_audit(now - 5 * DAY) == 7
    assert [each.seq for each in store.audit_records()] == [8, 9]
    assert store.expire_audit(now - 5 * DAY) == 0
    assert store.expire_audit(now - 1.5 * DAY) == 1
    store.add_audit([entry(now)], synced=True)
    assert [each.seq for each in store.audit_records()] == [9, 10]


def test_an_empty_trail_can_expire(store: JobStore) -> None:
    assert store.expire_audit(time.time() - 2 * DAY) == 0
    store.add_audit([entry(time.time() - 9 * DAY)], synced=True)
    assert store.expire_audit(time.time() - 2 * DAY) == 1
    assert list(store.audit_records()) == []


def test_entries_are_found_by_time_key_and_action(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisper_api.store.audit._READ_AT_A_TIME", 2)
    ada, bob = {"key_id": "0badcafe", "name": "Ada"}, {"key_id": "deadbeef", "name": "Bob"}
    store.add_audit(
        [
            entry(10.0, **ada),
            entry(20.0, **bob),
            entry(30.0, **ada, action="job.delete"),
            entry(40.0, **bob, action="speaker.delete"),
            entry(50.0, actor="anyone", action="authentication.fail"),
        ],
        synced=True,
    )

    def found(**conditions: Any) -> list[int]:
        filter = AuditFilter(**conditions)
        oldest_first = [each.seq for each in store.audit_records(filter)]
        assert [each.seq for each in store.audit_page(filter, limit=99)] == oldest_first[::-1]
        return oldest_first

    assert found() == [1, 2, 3, 4, 5]
    assert found(since=20.0, until=40.0) == [2, 3]
    assert found(key="0badcafe") == found(key="Ada") == [1, 3]
    assert found(action="job") == [1, 2, 3]
    assert found(action="job.delete", key="Ada") == [3]
    assert found(action="jo") == found(action="job.") == found(key="nobody") == []
    assert [each.seq for each in store.audit_page(limit=2, before_seq=4)] == [3, 2]
