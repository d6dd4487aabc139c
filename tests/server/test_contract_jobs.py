"""Jobs: the queue, cancelling, lists, whose they are, when their results go, and repeating a request."""

from __future__ import annotations

import contextlib
import socket
import struct
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.conftest import Busy, Start
from server.harness import RunningServer, finish, job_of, post, problem, submit, until

# --- the queue and cancelling ---


def positions(client: httpx.Client, jobs: list[str]) -> list[int | None]:
    return [client.get(f"/transcription/{job_id}").json().get("queue_position") for job_id in jobs]


def test_jobs_wait_in_the_order_they_came(client: httpx.Client, busy: Busy, hello: bytes, hours: bytes) -> None:
    with busy(client, hours):
        jobs = [submit(client, hello) for _ in range(4)]
        assert positions(client, jobs) == [1, 2, 3, 4]
        client.delete(f"/transcription/{jobs[1]}")
        assert positions(client, jobs) == [1, None, 2, 3]
        client.delete(f"/transcription/{jobs[0]}")
        assert positions(client, jobs) == [None, None, 1, 2]
    ended = [finish(client, job_id) for job_id in jobs]
    assert [status["status"] for status in ended] == ["Canceled", "Canceled", "Completed", "Completed"]
    assert ended[2]["finished_at"] <= ended[3]["started_at"]


def test_the_next_job_starts_when_one_is_stopped(
    server: RunningServer, client: httpx.Client, busy: Busy, hello: bytes, hours: bytes
) -> None:
    with busy(client, hours) as running:
        waiting = submit(client, hello)
    assert finish(client, waiting)["status"] == "Completed"
    stopped = client.get(f"/transcription/{running}").json()
    assert stopped["status"] == "Canceled"
    assert "finished_at" in stopped
    problem(client.get(f"/transcription/{running}/result"), 409, "job_canceled")
    assert not (server.uploads_dir / running).exists()


def test_canceling_twice_is_fine(client: httpx.Client, busy: Busy, hello: bytes, hours: bytes) -> None:
    with busy(client, hours):
        waiting = submit(client, hello)
        for _ in range(2):
            assert client.delete(f"/transcription/{waiting}").status_code == 200
    done = submit(client, hello)
    finish(client, done)
    for _ in range(2):
        assert client.delete(f"/transcription/{done}").status_code == 200
    assert client.get(f"/transcription/{done}").json()["status"] == "Completed"


def test_a_job_that_failed_is_removed_altogether(client: httpx.Client, stranger: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello, model="large-v1")
    assert finish(client, job_id)["status"] == "Failed"
    problem(stranger.delete(f"/transcription/{job_id}"), 404, "job_not_found")
    assert job_id in _all_jobs(client)
    assert client.delete(f"/transcription/{job_id}").status_code == 200
    problem(client.get(f"/transcription/{job_id}"), 404, "job_not_found")
    assert job_id not in _all_jobs(client)


def test_the_files_of_a_canceled_job_are_removed(
    server: RunningServer, client: httpx.Client, busy: Busy, hello: bytes, hours: bytes
) -> None:
    with busy(client, hours):
        waiting = submit(client, hello)
        assert (server.uploads_dir / waiting / "audio").stat().st_size == len(hello)
        client.delete(f"/transcription/{waiting}")
        assert not (server.uploads_dir / waiting).exists()


def test_audio_goes_when_its_job_ends(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    for fields in ({}, {"model": "large-v1"}):
        job_id = submit(client, hello, **fields)
        finish(client, job_id)
        until(lambda place=server.uploads_dir / job_id: not place.exists())  # type: ignore[misc]


# --- whose jobs ---


def test_a_job_of_another_key_is_not_found(
    server: RunningServer, client: httpx.Client, stranger: httpx.Client, admin: httpx.Client, hello: bytes
) -> None:
    job_id = submit(client, hello)
    finish(client, job_id)
    paths = [("GET", f"/transcription/{job_id}"), ("GET", f"/transcription/{job_id}/result")]
    for method, path in [*paths, ("DELETE", f"/transcription/{job_id}")]:
        body = problem(stranger.request(method, path), 404, "job_not_found")
        assert body["error"] == f"Job not found: {job_id}"
    assert job_id not in _all_jobs(stranger)
    for _, path in paths:
        assert admin.get(path).status_code == 200
    assert job_id in _all_jobs(admin)
    assert job_id in _all_jobs(client)
    assert admin.delete(f"/transcription/{job_id}").status_code == 200


def test_another_ones_job_cannot_be_stopped(
    client: httpx.Client, stranger: httpx.Client, busy: Busy, hello: bytes, hours: bytes
) -> None:
    with busy(client, hours) as running:
        waiting = submit(client, hello)
        for job_id in (running, waiting):
            problem(stranger.delete(f"/transcription/{job_id}", params={"force": "true"}), 404, "job_not_found")
            problem(stranger.get(f"/transcription/{job_id}", params={"wait": 1}), 404, "job_not_found")
        assert client.get(f"/transcription/{running}").json()["status"] == "Processing"
        assert client.get(f"/transcription/{waiting}").json()["status"] == "Queued"
        client.delete(f"/transcription/{waiting}")


# --- lists ---


def _all_jobs(client: httpx.Client, **query: Any) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        given = {**query, **({"after": after} if after else {})}
        body = client.get("/transcriptions", params=given).json()
        assert set(body) == {"jobs", "next"}
        found += [job["job_id"] for job in body["jobs"]]
        after = body["next"]
        if after is None:
            return found


@pytest.fixture(scope="module")
def lister(server: RunningServer, hello: bytes) -> tuple[str, list[str]]:
    """A new key and its five jobs, oldest first: one Failed, the others Completed."""
    key = server.key(f"lister-{uuid.uuid4().hex[:8]}")
    with server.client(key) as client:
        jobs = [submit(client, hello, **({"model": "large-v1"} if number == 2 else {})) for number in range(5)]
        for job_id in jobs:
            finish(client, job_id)
    return key, jobs


def test_the_newest_job_comes_first(server: RunningServer, lister: tuple[str, list[str]]) -> None:
    key, jobs = lister
    with server.client(key) as client:
        body = client.get("/transcriptions").json()
        assert [job["job_id"] for job in body["jobs"]] == jobs[::-1]
        assert body["next"] is None
        for job in body["jobs"]:
            assert job == client.get(f"/transcription/{job['job_id']}").json()


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 6])
def test_a_list_is_read_page_by_page(server: RunningServer, lister: tuple[str, list[str]], limit: int) -> None:
    key, jobs = lister
    with server.client(key) as client:
        assert len(client.get("/transcriptions", params={"limit": limit}).json()["jobs"]) == min(limit, 5)
        assert _all_jobs(client, limit=limit) == jobs[::-1]


def test_pages_do_not_shift_when_jobs_are_added(
    server: RunningServer, lister: tuple[str, list[str]], hello: bytes
) -> None:
    key, jobs = lister
    with server.client(key) as client:
        first = client.get("/transcriptions", params={"limit": 2}).json()
        added = submit(client, hello, keep_result="true")
        second = client.get("/transcriptions", params={"limit": 2, "after": first["next"]}).json()
        finish(client, added)
        seen = [job["job_id"] for job in (*first["jobs"], *second["jobs"])]
        assert len(set(seen)) == 4
        assert added not in seen
        jobs.append(added)


def test_a_list_of_one_state(server: RunningServer, lister: tuple[str, list[str]]) -> None:
    key, jobs = lister
    with server.client(key) as client:
        assert _all_jobs(client, status="Failed", limit=1) == [jobs[2]]
        assert _all_jobs(client, status="Completed", limit=2) == [job for job in jobs[::-1] if job != jobs[2]]
        assert _all_jobs(client, status="Queued") == []


# --- repeating a request ---


def test_a_repeated_request_makes_no_second_job(client: httpx.Client, hello: bytes) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = submit(client, hello, headers=headers)
    assert submit(client, hello, headers=headers) == first
    finish(client, first)
    assert submit(client, hello, headers=headers) == first
    assert client.get(f"/transcription/{first}/result").status_code == 200
    assert submit(client, hello, headers={"Idempotency-Key": uuid.uuid4().hex}) != first
    assert submit(client, hello) != first


def test_a_repeated_key_with_another_payload_is_refused(client: httpx.Client, hello: bytes, speech: bytes) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    submit(client, hello, headers=headers)
    problem(post(client, speech, headers=headers), 422, "idempotency_conflict")
    problem(post(client, hello, headers=headers, beam_size="2"), 422, "idempotency_conflict")


def test_keys_of_two_callers_are_two_keys(client: httpx.Client, stranger: httpx.Client, hello: bytes) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    assert submit(client, hello, headers=headers) != submit(stranger, hello, headers=headers)


def test_requests_repeated_at_the_same_time_make_one_job(server: RunningServer, hello: bytes) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}

    def send(_: int) -> str:
        with server.client() as client:
            return submit(client, hello, headers=headers)

    with ThreadPoolExecutor(6) as pool:
        jobs = set(pool.map(send, range(6)))
    assert len(jobs) == 1
    with server.client() as client:
        finish(client, jobs.pop())


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none(client: httpx.Client, hello: bytes, key: str) -> None:
    assert "Idempotency-Key" in problem(post(client, hello, headers={"Idempotency-Key": key}), 400)["detail"]


def test_a_repeated_synchronous_request_gets_the_same_result(client: httpx.Client, hello: bytes) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    answers = [post(client, hello, headers=headers, sync="true") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


# --- when results go ---


def _gone(client: httpx.Client, job_id: str) -> bool:
    """Whether a result is gone. Uses HEAD, which does not count as a delivery."""
    return client.head(f"/transcription/{job_id}/result").status_code == 410


def test_a_second_format_can_be_had_within_the_grace_period(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello)
    finish(client, job_id)
    for query in ({}, {"format": "srt"}, {}):
        assert client.get(f"/transcription/{job_id}/result", params=query).status_code == 200


def test_only_delivered_results_are_removed_after_the_grace(strict: RunningServer, hello: bytes) -> None:
    """The delivered result is the last one, so the others had more time to disappear."""
    with strict.client() as client:

        def made(**fields: Any) -> str:
            job_id = submit(client, hello, **fields)
            assert finish(client, job_id)["status"] == "Completed"
            return job_id

        kept, looked_at, broken_off, delivered = made(keep_result="true"), made(), made(), made()
        assert client.get(f"/transcription/{kept}/result").status_code == 200
        assert client.head(f"/transcription/{looked_at}/result").status_code == 200
        with strict.connect() as connection:
            _break_off(connection, f"/transcription/{broken_off}/result", strict.user_key)
        assert client.get(f"/transcription/{delivered}/result", params={"format": "vtt"}).status_code == 200
        until(lambda: _gone(client, delivered))
        assert not _gone(client, kept)
        assert not _gone(client, looked_at)
        assert not _gone(client, broken_off)
        problem(client.get(f"/transcription/{delivered}/result"), 410, "result_gone")
        assert client.get(f"/transcription/{delivered}").json()["status"] == "Completed"
        assert client.get(f"/transcription/{broken_off}/result").status_code == 200
        until(lambda: _gone(client, broken_off))
        assert client.get(f"/transcription/{kept}/result").status_code == 200


def _break_off(connection: socket.socket, path: str, key: str) -> None:
    """Send a request and leave before the response."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def test_a_synchronous_answer_is_a_delivery(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        response = post(client, hello, sync="true")
        job_id = client.get("/transcriptions", params={"limit": 1}).json()["jobs"][0]["job_id"]
        if response.status_code == 202:
            # The machine was too slow for the limit of this server, so nothing was delivered.
            assert job_of(response) == job_id
            finish(client, job_id)
            assert client.get(f"/transcription/{job_id}/result").status_code == 200
        until(lambda: _gone(client, job_id))


def test_a_synchronous_request_that_takes_too_long_goes_on_without_its_caller(
    strict: RunningServer, hours: bytes
) -> None:
    with strict.client() as client:
        response = post(client, hours, sync="true", file_name="long.mp3")
        job_id = job_of(response)
        assert response.headers["Location"].endswith(job_id)
        assert int(response.headers["Retry-After"]) >= 1
        assert finish(client, job_id, "Processing")["status"] == "Processing"
        assert client.delete(f"/transcription/{job_id}", params={"force": "true"}).status_code == 200


def test_everything_goes_after_the_retention_time(start_server: Start, hello: bytes) -> None:
    server = start_server()
    with server.client() as client:
        kept = submit(client, hello, keep_result="true")
        failed = submit(client, hello, model="large-v1")
        for job_id in (kept, failed):
            finish(client, job_id)
        orphan = server.uploads_dir / str(uuid.uuid4())
        orphan.mkdir()
        (orphan / "audio").write_bytes(hello)
        server.restart()
        assert client.get(f"/transcription/{kept}/result").status_code == 200
        assert client.get(f"/transcription/{failed}").json()["status"] == "Failed"
        assert not orphan.exists()
        server.restart({"WHISPER_JOB_RETENTION_HOURS": 0.01 / 3600})
        for job_id in (kept, failed):
            problem(client.get(f"/transcription/{job_id}"), 404, "job_not_found")
            problem(client.get(f"/transcription/{job_id}/result"), 404, "job_not_found")
        assert client.get("/transcriptions").json() == {"jobs": [], "next": None}
