"""Quotas: no number of clients exceeds them, a restart forgets nothing, and what was given back is there again."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from fakes import Services, config_in, ended, holding, running, submit

from whisper_api.access.keys import KeyRing
from whisper_api.access.quotas import LEAST_BYTES_PER_SECOND, Quotas
from whisper_api.errors import InvalidAudio, QuotaExceeded
from whisper_api.jobs.service import JobService
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job
from whisper_api.store.usage import Allowance, Charge, day_of
from whisper_api.testing import FakeExecutor

CLIENTS = 200


def left(service: JobService, owner: str) -> dict[str, int]:
    return {each.policy: each.remaining for each in service.usage.quotas.standings(owner)}


def key_of(service: JobService, name: str = "alice") -> str:
    return KeyRing(service.store).create(name)[0].key_id


def race(service: JobService, owner: str, clients: int = CLIENTS, **fields: Any) -> list[str]:
    """Submit a job from each client at the same time. Returns the ids of the accepted jobs."""
    together = threading.Barrier(clients)

    def client() -> str | None:
        together.wait()
        try:
            return submit(service, owner=owner, **fields)
        except QuotaExceeded:
            return None

    with ThreadPoolExecutor(clients) as pool:
        return [job_id for each in [pool.submit(client) for _ in range(clients)] if (job_id := each.result())]


def test_two_hundred_clients_get_what_the_quotas_have_and_no_more_also_after_a_restart(serve: Services) -> None:
    settings: dict[str, Any] = {"quota": "120 jobs/day; 25 minutes/month", "max_jobs_per_key": 0}
    service = serve(FakeExecutor(held=True), **settings)
    alice, bob = key_of(service), key_of(service, "bob")
    # 20 minutes of 10 seconds each: the jobs are the lower bound.
    assert len(race(service, alice, audio_seconds=10.0)) == 120
    assert left(service, alice) == {"jobs-day": 0, "audio-month": 300}
    service = serve(FakeExecutor(held=True), **settings)
    assert race(service, alice, 20) == []
    # Nobody else is touched. The audio is the lower bound here: 37 times 40 seconds are less than 25 minutes.
    assert left(service, bob) == {"jobs-day": 120, "audio-month": 1500}
    assert len(race(service, bob, audio_seconds=40.0)) == 37
    assert left(service, bob) == {"jobs-day": 83, "audio-month": 20}
    submit(service, owner=bob, audio_seconds=20.0)
    with pytest.raises(QuotaExceeded, match="all 25 minutes of this month are used"):
        service.reserve(bob)


def test_what_is_given_back_and_what_is_not(serve: Services) -> None:
    def behave(executor: FakeExecutor, job: Job) -> None:
        if job.options.prompt == "ours":
            raise RuntimeError("a fault of the server")
        if job.options.prompt == "theirs":
            raise InvalidAudio("no audio")
        if job.options.prompt == "hold":
            holding(release)(executor, job)

    release = threading.Event()
    service = serve(FakeExecutor(behave=behave), quota="10 jobs/day; 10 minutes/day")
    alice = key_of(service)
    ended(service, submit(service, owner=alice, audio_seconds=100.0, prompt="ours"))
    assert left(service, alice) == {"jobs-day": 10, "audio-day": 600}
    ended(service, submit(service, owner=alice, audio_seconds=100.0, prompt="theirs"))
    assert left(service, alice) == {"jobs-day": 9, "audio-day": 500}
    # A transcript of the fake executor has ten seconds of audio, and these count.
    ended(service, submit(service, owner=alice, audio_seconds=100.0))
    assert left(service, alice) == {"jobs-day": 8, "audio-day": 490}
    # Without a stated length, the size counts until the job has ended.
    first = submit(service, owner=alice, audio_seconds=None, audio_bytes=30 * LEAST_BYTES_PER_SECOND, prompt="hold")
    running(service, first)
    assert left(service, alice) == {"jobs-day": 7, "audio-day": 460}
    waiting = submit(service, owner=alice, audio_seconds=100.0)
    assert left(service, alice) == {"jobs-day": 6, "audio-day": 360}
    service.cancel(waiting, alice)
    assert left(service, alice) == {"jobs-day": 7, "audio-day": 460}
    release.set()
    ended(service, first)
    assert left(service, alice) == {"jobs-day": 7, "audio-day": 480}
    # The same upload joins its job, and costs nothing.
    same: dict[str, Any] = {"owner": alice, "join": True, "fingerprint": "same"}
    assert submit(service, **same) == submit(service, **same)
    assert left(service, alice)["jobs-day"] == 6
    service.cancel(first, alice)
    assert left(service, alice)["jobs-day"] == 6


def test_a_job_that_was_canceled_while_it_ran_stays_charged(serve: Services) -> None:
    service = serve(FakeExecutor(held=True), quota="10 jobs/day")
    alice = key_of(service)
    job_id = submit(service, owner=alice)
    running(service, job_id)
    service.cancel(job_id, alice, force=True)
    assert left(service, alice) == {"jobs-day": 9}


def test_a_recording_that_is_too_long_for_the_rest_is_refused_with_the_reason(serve: Services) -> None:
    service = serve(FakeExecutor(held=True), quota="10 minutes/day")
    alice = key_of(service)
    submit(service, owner=alice, audio_seconds=300.0)
    with pytest.raises(QuotaExceeded) as refused:
        submit(service, owner=alice, audio_seconds=301.0)
    assert "5 of the 10 minutes of this day are left, and the recording counts as 5.1" in str(refused.value)
    assert refused.value.policies == ("audio-day",)
    assert 0 < refused.value.retry_after <= 86400
    with pytest.raises(QuotaExceeded, match="counts as 720 by its size, because its file does not state its length"):
        submit(service, owner=alice, audio_seconds=None, audio_bytes=10**9)
    submit(service, owner=alice, audio_seconds=300.0)


def test_a_keys_own_quota_wins(serve: Services) -> None:
    service = serve(FakeExecutor(held=True), quota="1 job/day")
    free, few, plain = (key_of(service, name) for name in ("free", "few", "plain"))
    with service.store.database.write() as connection:
        connection.execute("UPDATE keys SET quota = 'none' WHERE key_id = ?", (free,))
        connection.execute("UPDATE keys SET quota = '2 jobs/month' WHERE key_id = ?", (few,))
    assert (left(service, free), left(service, few), left(service, plain)) == ({}, {"jobs-month": 2}, {"jobs-day": 1})
    assert [len(race(service, owner, 5)) for owner in (free, few, plain)] == [5, 2, 1]


def test_days_and_months_begin_at_midnight_in_utc(store: JobStore, tmp_path: Path) -> None:
    alice = KeyRing(store).create("alice")[0].key_id
    now = 0.0
    config = config_in(tmp_path, quota="1 job/day; 2 jobs/month")
    quotas = Quotas(store, config, lambda: now)

    def at(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()

    def use(number: int) -> None:
        job = Job(
            job_id=f"job {number}", owner=alice, options=options, output_format="txt", audio_bytes=1, created_at=now
        )
        store.add(job, charge=Charge("base", 1.0, quotas.allowances(alice)))

    from whisper_api.options import TranscriptionOptions

    options = TranscriptionOptions()
    now = at("2026-12-30T23:59:59")
    use(1)
    with pytest.raises(QuotaExceeded) as refused:
        quotas.check(alice)
    assert refused.value.retry_after == 1
    assert "2026-12-31T00:00:00Z" in str(refused.value)
    now = at("2026-12-31T00:00:00")
    quotas.check(alice)
    use(2)
    with pytest.raises(QuotaExceeded) as refused:
        quotas.check(alice)
    assert refused.value.retry_after == 86400
    assert refused.value.policies == ("jobs-day", "jobs-month")
    now = at("2027-01-01T00:00:00")
    quotas.check(alice)
    december, january = quotas.standings(alice)
    assert (december.remaining, january.remaining, january.window_seconds) == (1, 2, 31 * 86400)


def test_nothing_is_charged_without_a_quota_where_no_usage_is_recorded(serve: Services) -> None:
    service = serve(FakeExecutor(), usage_retention_days=0)
    alice = key_of(service)
    service.usage.count_request(alice)
    ended(service, submit(service, owner=alice))
    assert service.usage.report(None).rows == ()
    service = serve(FakeExecutor(), usage_retention_days=0, quota="5 jobs/day")
    ended(service, submit(service, owner=alice))
    assert left(service, alice) == {"jobs-day": 4}
    today = day_of(time.time())
    allowances = [Allowance("", "jobs", 1, today), Allowance("", "audio_seconds", 1, today)]
    assert service.store.used_of(alice, allowances) == [1, 10.0]
