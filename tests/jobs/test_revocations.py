"""The jobs of a revoked key end with a reason, whether or not the server runs at the time."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Services, ended, idle, new_service, running, submit, uploads

from whisper_api.access.keys import KeyRing
from whisper_api.cli.main import main
from whisper_api.errors import JobCanceled
from whisper_api.jobs import revocations
from whisper_api.jobs.revocations import REASON
from whisper_api.testing import FakeExecutor


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.05)


def revoke_elsewhere(directory: Path, name: str) -> None:
    """Revoke a key with the command line, which does not know the running server."""
    assert main(["keys", "revoke", name, "--data-dir", str(directory / "data")]) == 0


def test_waiting_and_running_jobs_of_a_revoked_key_end_within_seconds(serve: Services, tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    ring = KeyRing(service.store)
    leaving, staying = ring.create("leaving")[0].key_id, ring.create("staying")[0].key_id
    runs = submit(service, owner=leaving)
    running(service, runs)
    waits, others = submit(service, owner=leaving), submit(service, owner=staying)
    revoke_elsewhere(tmp_path, "leaving")
    for job_id in (runs, waits):
        status = ended(service, job_id)
        assert (status.status, status.error) == ("Canceled", REASON)
        with pytest.raises(JobCanceled, match="revoked"):
            service.result(job_id, None)
    running(service, others)
    assert uploads(tmp_path) == [others]
    executor.release()
    assert ended(service, others).status == "Completed"
    idle(service)
    assert executor.started == [runs, others]


def test_a_job_that_was_submitted_while_its_key_was_revoked_ends_too(serve: Services, tmp_path: Path) -> None:
    service = serve(FakeExecutor(held=True))
    key = KeyRing(service.store).create("leaving")[0].key_id
    # The request was accepted before the key was revoked.
    revoke_elsewhere(tmp_path, "leaving")
    assert ended(service, submit(service, owner=key)).error == REASON


def test_jobs_of_a_key_that_was_revoked_while_no_server_ran_are_not_begun(serve: Services, tmp_path: Path) -> None:
    before = new_service(tmp_path)
    key = KeyRing(before.store).create("leaving")[0].key_id
    left, kept = submit(before, owner=key), submit(before)
    before.close()
    revoke_elsewhere(tmp_path, "leaving")
    executor = FakeExecutor()
    service = serve(executor)
    assert ended(service, kept).status == "Completed"
    assert (service.status(left, None).status, service.status(left, None).error) == ("Canceled", REASON)
    idle(service)
    assert executor.started == [kept]
    assert uploads(tmp_path) == []


def test_results_of_a_revoked_key_stay_for_admins(serve: Services, tmp_path: Path) -> None:
    service = serve()
    key = KeyRing(service.store).create("leaving")[0].key_id
    job_id = submit(service, "done", owner=key)
    ended(service, job_id)
    revoke_elsewhere(tmp_path, "leaving")
    assert service.store.jobs_of_revoked_keys() == []
    assert service.result(job_id, None)[1].text == "done"
