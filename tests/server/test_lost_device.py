"""A server in a thread of a program whose GPU fails: it stops by itself, loses nothing, and harms no other thread."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import config_in

from server.in_thread import connect, wait_until
from server.inside import AUDIO, problem
from whisper_api import DeviceLost, Server
from whisper_api.jobs.local_executor import EXECUTORS
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor


def test_it_stops_and_the_next_one_runs_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost = True

    def behave(executor: FakeExecutor, job: Job) -> None:
        if lost:
            raise DeviceLost("the device is lost (an illegal memory access was encountered)")

    monkeypatch.setitem(EXECUTORS, "local", lambda config: FakeExecutor(behave=behave))
    config = config_in(tmp_path, port=0, enable_authorization=False)
    server = Server(config)
    with server as url, connect(url) as client:
        waiting = client.post("/transcribe", files={"file": ("a.wav", AUDIO)}, data={"sync": "true"})
        # Its job is not lost, so the client may ask again.
        refused = problem(waiting, 503, "draining")
        assert refused["detail"]
        assert int(waiting.headers["Retry-After"]) >= 1
        wait_until(lambda: server._thread is not None and not server._thread.is_alive())  # noqa: SLF001
    assert "the server has failed" in caplog.text
    assert "illegal memory access" in caplog.text

    lost = False
    with Server(config) as url, connect(url) as client:
        (job,) = client.get("/transcriptions").json()["jobs"]
        status = client.get(f"/transcription/{job['job_id']}", params={"wait": 60}).json()
        assert status["status"] == "Completed"
