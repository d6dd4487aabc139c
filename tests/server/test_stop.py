"""Stopping: no new work, open requests end properly, nothing that was accepted is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import httpx

from server.conftest import Start
from server.harness import PATIENCE_SECONDS, finish, job_of, post, problem, submit, until


def in_background(call: Any) -> tuple[threading.Thread, list[httpx.Response | Exception]]:
    """Run a request in a thread. The response is appended to the list."""
    got: list[httpx.Response | Exception] = []

    def run() -> None:
        try:
            got.append(call())
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def taken(thread: threading.Thread, got: list[httpx.Response | Exception]) -> httpx.Response:
    thread.join(PATIENCE_SECONDS)
    assert isinstance(got[0], httpx.Response), got
    return got[0]


def test_a_stop_puts_the_running_job_back_and_it_runs_after_the_next_start(
    start_server: Start, hello: bytes, hours: bytes, speech: bytes
) -> None:
    server = start_server({"WHISPER_SHUTDOWN_GRACE_SECONDS": 1})
    with server.client() as client, server.client() as second, server.client() as third:
        running = submit(client, hours, file_name="long.mp3")
        finish(client, running, "Processing")
        waiting = [submit(client, speech) for _ in range(2)]
        poll = in_background(lambda: second.get(f"/transcription/{waiting[0]}", params={"wait": 60}, timeout=50))
        sync = in_background(lambda: post(third, hello, sync="true"))
        until(lambda: client.get("/status").json()["queue_state"]["queued_jobs"] == 3)

        server.send(signal.SIGTERM)
        answered = taken(*poll)
        assert answered.status_code == 200
        assert answered.json()["status"] == "Queued"
        answered = taken(*sync)
        problem(answered, 503, "draining")
        assert int(answered.headers["Retry-After"]) >= 1
    assert server.wait_stopped() == 0
    assert "Traceback" not in server.log

    server.restart()
    with server.client() as client:
        status = finish(client, running, "Processing")
        assert status["status"] == "Processing"
        assert client.get(f"/transcription/{waiting[0]}").json()["queue_position"] == 1
        assert client.delete(f"/transcription/{running}", params={"force": "true"}).status_code == 200
        for job_id in waiting:
            assert finish(client, job_id)["status"] == "Completed"
            assert "New Jersey" in client.get(f"/transcription/{job_id}/result").json()["text"]
        jobs = client.get("/transcriptions").json()["jobs"]
        until(lambda: not any(client.get("/status").json()["queue_state"].values()))
        assert len(jobs) == 4, "the synchronous request's job is done too, for whom asks for it"
        until(lambda: not list(server.uploads_dir.glob("*/*")))


def test_no_new_work_while_it_stops_and_a_second_signal_ends_it(
    start_server: Start, hello: bytes, hours: bytes
) -> None:
    server = start_server({"WHISPER_SHUTDOWN_GRACE_SECONDS": 600})
    with server.client() as client:
        running = submit(client, hours, file_name="long.mp3")
        finish(client, running, "Processing")
        waiting = submit(client, hello)
        server.send(signal.SIGINT)
        until(lambda: client.get("/readyz").status_code == 503)
        problem(client.get("/readyz"), 503, "draining")
        refused = post(client, hello)
        problem(refused, 503, "draining")
        assert int(refused.headers["Retry-After"]) >= 1
        assert client.get("/livez").status_code == 200
        assert client.get(f"/transcription/{running}").json()["status"] == "Processing"
        assert client.get(f"/transcription/{waiting}").json()["status"] == "Queued"
        assert client.delete(f"/transcription/{waiting}").status_code == 200
        assert server.running
    server.send(signal.SIGINT)
    assert server.wait_stopped() != 0
    server.restart()
    with server.client() as client:
        assert finish(client, running, "Processing")["status"] == "Processing"
        assert client.get(f"/transcription/{waiting}").json()["status"] == "Canceled"


def test_the_running_job_may_end_within_the_grace_period(
    start_server: Start, cut: Callable[[float, float], bytes]
) -> None:
    server = start_server({"WHISPER_SHUTDOWN_GRACE_SECONDS": 600})
    with server.client() as client, server.client() as second:
        # The audio is long enough to run when the signal comes, and short enough for the test to wait.
        sync = in_background(lambda: post(second, cut(0.0, 30.0), sync="true"))
        until(lambda: client.get("/status").json()["queue_state"]["processing_jobs"] == 1)
        server.send(signal.SIGTERM)
        answered = taken(*sync)
        assert answered.status_code == 200
        assert "New Jersey" in answered.json()["text"]
    assert server.wait_stopped() == 0
    assert "completed" in server.log


def test_an_idle_server_stops_at_once_and_lets_the_port_go(start_server: Start, hello: bytes) -> None:
    server = start_server()
    with server.client() as client:
        # The connection stays open and idle.
        job_id = job_of(post(client, hello))
        finish(client, job_id)
        assert server.stop() == 0
    server.start()
    with server.client() as client:
        assert client.get(f"/transcription/{job_id}/result").status_code == 200
