"""The routes: what each takes, and the shape of what it answers."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from server.conftest import Busy
from server.harness import RunningServer, finish, job_of, post, problem, submit, until

STAGES = {"queue", "load", "decode", "vad", "asr", "align", "diarize", "done"}


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    assert when.utcoffset() == timedelta(0)
    return when


# --- POST ---


@pytest.mark.parametrize("path", ["/transcribe", "/transcription"])
def test_an_upload_makes_a_job(client: httpx.Client, hello: bytes, path: str) -> None:
    response = post(client, hello, path=path)
    assert response.status_code == 202
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert set(body) == {"job_id", "status_url"}
    assert uuid.UUID(body["job_id"]).version == 4
    assert body["status_url"] == f"/transcription/{body['job_id']}"
    assert urljoin(path, response.headers["Location"]).endswith(body["status_url"])
    assert int(response.headers["Retry-After"]) >= 1
    assert finish(client, body["job_id"])["status"] == "Completed"


@pytest.mark.parametrize("path", ["/transcribe", "/transcription"])
def test_a_synchronous_upload_answers_with_the_result(client: httpx.Client, hello: bytes, path: str) -> None:
    response = post(client, hello, path=path, sync="true")
    assert response.status_code == 200
    body = response.json()
    assert "hello" in body["text"].lower()
    assert body["language"] == "en"
    assert len(body["segments"]) == 1


# --- GET /transcription/{job_id} ---


def test_the_status_of_a_job_that_has_ended(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello)
    status = finish(client, job_id)
    assert status["job_id"] == job_id
    assert status["status"] == "Completed"
    assert moment(status["created_at"]) <= moment(status["started_at"]) <= moment(status["finished_at"])
    assert status["audio_seconds"] == pytest.approx(1.0, abs=0.01)
    assert status.get("progress", 1.0) == 1.0
    assert not {"queue_position", "error", "eta_seconds"}.intersection(status)
    assert status.get("warnings", []) == []
    assert client.get(f"/transcription/{job_id}").json() == status


def test_the_status_of_a_job_that_runs_and_of_one_that_waits(
    client: httpx.Client, busy: Busy, hello: bytes, hours: bytes
) -> None:
    with busy(client, hours) as running:
        waiting = submit(client, hello)
        status = client.get(f"/transcription/{waiting}").json()
        assert status["status"] == "Queued"
        assert status["queue_position"] == 1
        assert moment(status["created_at"])
        assert not {"started_at", "finished_at", "error"}.intersection(status)
        status = client.get(f"/transcription/{running}").json()
        assert status["status"] == "Processing"
        assert 0.0 <= status["progress"] < 1.0
        assert status["stage"] in STAGES - {"queue", "done"}
        assert status["audio_seconds"] > 1000
        assert moment(status["created_at"]) <= moment(status["started_at"])
        assert status.get("eta_seconds", 1.0) > 0
        assert not {"queue_position", "finished_at", "error"}.intersection(status)
    assert finish(client, waiting)["status"] == "Completed"


def test_the_progress_of_a_job_rises(client: httpx.Client, busy: Busy, hours: bytes) -> None:
    seen: list[float] = []
    with busy(client, hours) as job_id:
        deadline = time.monotonic() + 120
        while len(set(seen)) < 4:
            assert time.monotonic() < deadline, seen
            seen.append(client.get(f"/transcription/{job_id}").json()["progress"])
            time.sleep(0.02)
    assert seen == sorted(seen)


def test_the_time_left_is_known_once_a_job_has_ended(
    client: httpx.Client, busy: Busy, speech: bytes, hours: bytes
) -> None:
    assert finish(client, submit(client, speech))["status"] == "Completed"
    with busy(client, hours) as job_id:
        assert client.get(f"/transcription/{job_id}").json()["eta_seconds"] > 0


def test_waiting_ends_when_the_status_changes(client: httpx.Client, busy: Busy, hello: bytes, hours: bytes) -> None:
    answers: list[dict[str, Any]] = []
    with busy(client, hours):
        waiting = submit(client, hello)
        # The timeout of the client is shorter than the wait that it asks for.
        waiter = threading.Thread(
            target=lambda: answers.append(
                client.get(f"/transcription/{waiting}", params={"wait": 60}, timeout=45).json()
            )
        )
        waiter.start()
        assert client.delete(f"/transcription/{waiting}").status_code == 200
        waiter.join()
    assert [answer["status"] for answer in answers] == ["Canceled"]


def test_waiting_for_a_job_that_has_ended_answers_at_once(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello)
    finish(client, job_id)
    status = client.get(f"/transcription/{job_id}", params={"wait": 60}, timeout=45).json()
    assert status["status"] == "Completed"


def test_waiting_ends_when_the_time_is_over(client: httpx.Client, busy: Busy, hours: bytes) -> None:
    with busy(client, hours) as job_id:
        begun = time.monotonic()
        status = client.get(f"/transcription/{job_id}", params={"wait": 1}).json()
        assert status["status"] == "Processing"
        assert time.monotonic() - begun >= 0.9


@pytest.mark.parametrize("seconds", ["-1", "61", "soon", "nan", "inf", "1e9"])
def test_a_wait_is_from_0_to_60_seconds(client: httpx.Client, hello: bytes, seconds: str) -> None:
    job_id = submit(client, hello)
    body = problem(client.get(f"/transcription/{job_id}", params={"wait": seconds}), 400)
    assert "wait" in body["detail"]
    finish(client, job_id)


# --- DELETE /transcription/{job_id} ---


def test_a_job_that_waits_is_canceled(client: httpx.Client, busy: Busy, hello: bytes, hours: bytes) -> None:
    with busy(client, hours):
        waiting = submit(client, hello)
        response = client.delete(f"/transcription/{waiting}")
        assert response.status_code == 200
        assert response.json() == {"success": True, "message": "Job canceled successfully"}
        assert client.get(f"/transcription/{waiting}").json()["status"] == "Canceled"


def test_a_job_that_has_ended_loses_its_result(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello)
    finish(client, job_id)
    response = client.delete(f"/transcription/{job_id}")
    assert response.status_code == 200
    assert response.json() == {"success": True, "message": "Job canceled successfully"}
    problem(client.get(f"/transcription/{job_id}/result"), 410, "result_gone")


def test_a_job_that_runs_is_stopped_by_force_only(client: httpx.Client, hours: bytes) -> None:
    job_id = submit(client, hours, file_name="long.mp3")
    finish(client, job_id, "Processing")
    body = problem(client.delete(f"/transcription/{job_id}"), 409, "job_processing")
    assert body["error"] == "Cannot cancel a job that is currently processing"
    problem(client.delete(f"/transcription/{job_id}", params={"force": "false"}), 409, "job_processing")
    response = client.delete(f"/transcription/{job_id}", params={"force": "true"})
    assert response.status_code == 200
    assert response.json()["success"] is True
    assert client.get(f"/transcription/{job_id}").json()["status"] == "Canceled"


# --- GET /status ---


def test_the_state_of_the_server(client: httpx.Client, server: RunningServer) -> None:
    response = client.get("/status")
    assert response.status_code == 200
    body = response.json()
    assert body["server"]["host"] == "127.0.0.1"
    assert body["server"]["port"] == str(server.port)
    assert (body["server"]["timeout"], body["server"]["keepalive"]) == (480, 480)
    assert body["server"]["worker_number"] >= 0
    processing = body["processing"]
    assert processing["concurrent_mode"] is False
    assert processing["max_concurrent_jobs"] == 6
    assert (processing["device"], processing["device_index"]) == ("cpu", "0")
    assert processing["default_output_format"] == "txt"
    assert processing["default_sync_mode"] is False
    assert processing["sync_timeout"] == 1800
    resources = body["resources"]
    assert resources["max_file_size"] == 536870912
    assert (resources["job_retention_hours"], resources["cleanup_interval_hours"]) == (48, 1)
    assert body["security"] == {"authorization_enabled": True, "role": "user"}
    assert body["queue_state"] == {"queued_jobs": 0, "processing_jobs": 0, "oldest_wait_seconds": None}


def test_the_queue_is_counted(client: httpx.Client, busy: Busy, hello: bytes, hours: bytes) -> None:
    with busy(client, hours):
        waiting = [submit(client, hello) for _ in range(2)]
        state = client.get("/status").json()["queue_state"]
        assert 0 <= state.pop("oldest_wait_seconds") < 60
        assert state == {"queued_jobs": 2, "processing_jobs": 1}
        for job_id in waiting:
            assert client.delete(f"/transcription/{job_id}").status_code == 200
        state = client.get("/status").json()["queue_state"]
        assert state == {"queued_jobs": 0, "processing_jobs": 1, "oldest_wait_seconds": None}


# --- OPTIONS ---


@pytest.mark.parametrize("path", ["/transcription", "/transcribe"])
def test_options_need_no_key(server: RunningServer, path: str) -> None:
    with server.client(key="") as nobody:
        response = nobody.options(
            path, headers={"Origin": "https://somewhere.example", "Access-Control-Request-Method": "POST"}
        )
    assert response.status_code in (200, 204)
    assert {"POST", "OPTIONS"} <= {method.strip() for method in response.headers["Allow"].split(",")}
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    allowed = response.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed
    assert "content-type" in allowed


def test_pages_of_other_origins_may_read_responses_when_keys_are_needed(client: httpx.Client) -> None:
    response = client.get("/status", headers={"Origin": "https://somewhere.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "*"


# --- health ---


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_health_needs_no_key(server: RunningServer, path: str) -> None:
    with server.client(key="") as nobody:
        response = nobody.get(path)
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("application/json")
        assert nobody.head(path).status_code == 200


# --- all of them ---


def test_head_answers_as_get_without_a_body(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello)
    finish(client, job_id)
    for path in (f"/transcription/{job_id}", f"/transcription/{job_id}/result", "/transcriptions", "/status"):
        response = client.head(path)
        assert response.status_code == 200, path
        assert response.content == b""
        assert response.headers["Content-Type"] == client.get(path).headers["Content-Type"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/transcription"),
        ("GET", "/transcribe"),
        ("POST", "/status"),
        ("PUT", "/transcriptions"),
        ("GET", "/detect-language"),
        ("DELETE", "/readyz"),
        ("PATCH", "/transcription/0b5f0d3e-6a43-4c52-9d5e-2f6f6b1f8a11"),
        ("DELETE", "/transcription/0b5f0d3e-6a43-4c52-9d5e-2f6f6b1f8a11/result"),
    ],
)
def test_another_method_is_405(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"]


def test_another_path_is_404(client: httpx.Client) -> None:
    for path in ("/assets/nothing", "/nothing", "/transcription/", "/transcribe/x/y", "/transcription/../status/x"):
        problem(client.get(path), 404)


def test_a_request_keeps_its_id(client: httpx.Client, server: RunningServer) -> None:
    mine = f"my-request.{uuid.uuid4().hex}"
    assert client.get("/status", headers={"X-Request-ID": mine}).headers["X-Request-ID"] == mine
    # The log line of a request is written while its response is sent.
    until(lambda: mine in server.log)
    body = problem(client.get("/nothing", headers={"X-Request-ID": mine}), 404)
    assert body["request_id"] == mine
    for bad in ("a b", "x" * 129, "a;b", '"'):
        made = client.get("/livez", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
        assert made
        assert made != bad


def test_a_request_without_an_id_gets_one_of_its_own(client: httpx.Client) -> None:
    ids = {client.get("/livez").headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3


def test_the_address_in_location_is_the_jobs(client: httpx.Client, hello: bytes) -> None:
    response = post(client, hello)
    status = client.get(response.headers["Location"])
    assert status.status_code == 200
    assert status.json()["job_id"] == job_of(response)
    finish(client, job_of(response))
