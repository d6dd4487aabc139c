"""The audit trail: entries are written in batches, durable ones at once, and strangers cannot fill the disk."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest
from fakes import until

from whisper_api.access import audit
from whisper_api.access.audit import AuditTrail, server_record, utc_now
from whisper_api.audit_records import AuditFilter, AuditRecord
from whisper_api.config import Config
from whisper_api.errors import StorageFull
from whisper_api.store.jobs import JobStore

Start = Callable[..., AuditTrail]


class CountedStore(JobStore):
    """Counts the transactions that write entries, and can be out of space."""

    full = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[int] = []

    def add_audit(self, records: list[AuditRecord], *, synced: bool) -> None:  # type: ignore[override]
        if self.full:
            raise StorageFull("No space is left on the disk")
        super().add_audit(records, synced=synced)
        self.batches.append(len(records))


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[CountedStore]:
    store = CountedStore(tmp_path / "jobs.db")
    yield store
    store.close()


@pytest.fixture
def start(counted: CountedStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(audit, "BATCH_SECONDS", 0.05)
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.05)
    trails: list[AuditTrail] = []

    def begin(*, days: int = 90) -> AuditTrail:
        trails.append(AuditTrail(counted, Config(audit_retention_days=days)))
        trails[-1].start()
        return trails[-1]

    yield begin
    for trail in trails:
        trail.close()


def entry(number: int = 0) -> AuditRecord:
    return AuditRecord(time=utc_now(), action="job.read", actor="key", target=str(number))


def test_entries_of_a_moment_are_one_transaction_in_their_order(counted: CountedStore, start: Start) -> None:
    trail = start()
    for number in range(500):
        trail.add(entry(number))
    until(lambda: sum(counted.batches) == 500)
    assert len(counted.batches) <= 2
    assert [each.target for each in counted.audit_records()] == [str(number) for number in range(500)]


def test_a_durable_entry_is_on_the_disk_when_the_call_returns_and_takes_the_waiting_ones_along(
    counted: CountedStore, start: Start, tmp_path: Path
) -> None:
    trail = start()
    trail.add(entry(1))
    trail.write(entry(2))
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        assert other.execute("SELECT target FROM audit ORDER BY seq").fetchall() == [("1",), ("2",)]
    other.close()


def test_what_waits_at_the_end_is_written(counted: CountedStore, start: Start) -> None:
    trail = start()
    trail.add(entry(1))
    trail.refused("192.0.2.1")
    trail.close()
    assert [each.action for each in counted.audit_records()] == ["job.read", "authentication.fail"]


def test_entries_outlast_a_full_disk_and_lost_ones_are_counted(
    counted: CountedStore, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "MAX_WAITING", 3)
    counted.full = True
    trail = start()
    for number in range(5):
        trail.add(entry(number))
    trail.write(entry(9))
    until(lambda: "could not be written yet" in caplog.text)
    assert list(counted.audit_records()) == []
    counted.full = False
    until(lambda: counted.batches)
    found = list(counted.audit_records())
    assert [each.target for each in found] == ["0", "1", "2", "9", None]
    assert (found[-1].action, found[-1].actor, found[-1].count) == ("audit.lose", "server", 2)


def test_failed_authentications_are_a_bounded_number_of_entries(
    counted: CountedStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "REFUSAL_SECONDS", 0.3)
    trail = start()
    addresses = [f"192.0.2.{number}" for number in range(100)]
    for address in addresses * 30:
        trail.refused(address)
    until(lambda: counted.batches)
    found = list(counted.audit_records())
    # An entry for each of the first addresses, and one for all others.
    assert len(found) == audit.REFUSED_ADDRESSES + 1
    assert sum(each.count for each in found) == 3000
    named = {each.address: each.count for each in found}
    assert named.pop(None) == 30 * (100 - audit.REFUSED_ADDRESSES)
    assert named == dict.fromkeys(addresses[: audit.REFUSED_ADDRESSES], 30)
    assert {(each.action, each.actor, each.status, each.error) for each in found} == {
        ("authentication.fail", "anyone", 401, "unauthorized")
    }
    trail.refused("192.0.2.1")
    until(lambda: len(counted.batches) == 2)
    assert counted.audit_page(limit=1)[0].count == 1


def test_attempts_that_the_limit_refuses_are_entries_of_their_own_and_bounded_too(
    counted: CountedStore, start: Start
) -> None:
    trail = start()
    addresses = [f"192.0.2.{number}" for number in range(100)]
    for address in addresses * 3:
        trail.refused(address)
        trail.refused(address, 429)
        trail.refused(address, 429)
    trail.close()
    found = list(counted.audit_records())
    assert len(found) == 2 * (audit.REFUSED_ADDRESSES + 1)
    first = [(each.address, each.status, each.error, each.count) for each in found[:2]]
    assert first == [("192.0.2.0", 401, "unauthorized", 3), ("192.0.2.0", 429, "rate_limit_exceeded", 6)]
    assert {each.action for each in found} == {"authentication.fail"}
    assert sum(each.count for each in found if each.status == 429) == 600


def test_zero_days_record_nothing_and_old_entries_go(counted: CountedStore, start: Start) -> None:
    def at(seconds: float) -> AuditRecord:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
        return msgspec.structs.replace(server_record("job.read"), time=moment)

    now = time.time()
    counted.add_audit([at(now - 95 * 86400), at(now - 3 * 86400), at(now)], synced=True)
    counted.batches.clear()
    kept = start()
    until(lambda: len(list(counted.audit_records())) == 2)
    kept.close()
    trail = start(days=0)
    trail.add(entry())
    trail.write(entry())
    trail.refused("192.0.2.1")
    # The database itself keeps the entries of the last day.
    until(lambda: len(list(counted.audit_records())) == 1)
    trail.close()
    assert counted.batches == []


def test_pages_go_back_in_time_without_a_gap(counted: CountedStore, start: Start) -> None:
    trail = start()
    for number in range(7):
        trail.add(entry(number))
    found: list[str | None] = []
    after = None
    while True:
        page, after = trail.page(AuditFilter(), limit=3, after=after)
        found += [each.target for each in page]
        # Entries that come while somebody reads do not move the pages.
        trail.add(entry(99))
        if after is None:
            break
    assert found == [str(number) for number in reversed(range(7))]
