"""Refusals: one test for each status, and that every one of them is a problem in JSON."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from silence import hours_of_silence, without_length

from server.conftest import Busy, Start
from server.harness import RunningServer, finish, post, problem, submit

# A model of the catalogue that these tests cannot download.
ABSENT_MODEL = "large-v1"
NO_JOB = "0b5f0d3e-6a43-4c52-9d5e-2f6f6b1f8a11"


def protected(job_id: str) -> list[tuple[str, str]]:
    return [
        ("POST", "/transcribe"),
        ("POST", "/transcription"),
        ("GET", f"/transcription/{job_id}"),
        ("GET", f"/transcription/{job_id}/result"),
        ("DELETE", f"/transcription/{job_id}"),
        ("GET", f"/transcription/{job_id}/events"),
        ("GET", f"/transcription/{job_id}/corrections"),
        ("PUT", f"/transcription/{job_id}/corrections"),
        ("POST", "/transcriptions"),
        ("POST", "/detect-language"),
        ("GET", "/transcriptions"),
        ("GET", "/status"),
    ]


# --- 400 ---


def test_400_without_a_file(client: httpx.Client) -> None:
    body = problem(client.post("/transcribe", files={"language": (None, "en")}), 400, "no_file")
    assert "file" in body["detail"].lower()


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/json", b'{"file": "x"}'),
        ("application/x-www-form-urlencoded", b"language=en"),
        ("multipart/form-data", b"--x\r\n\r\n--x--\r\n"),
        ("text/plain", b"hello"),
        ("", b""),
    ],
)
def test_400_for_a_body_that_is_no_form(client: httpx.Client, content_type: str, content: bytes) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    body = problem(client.post("/transcribe", content=content, headers=headers), 400, "not_multipart")
    assert "multipart/form-data" in body["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
        b'--y\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--y--\r\n',
        b"--x\r\nno header\r\n\r\nabc\r\n--x--\r\n",
        b"--x\r\nContent-Type: audio/wav\r\n\r\nabc\r\n--x--\r\n",
    ],
    ids=["empty", "no parts", "cut short", "another boundary", "broken header", "a part without a name"],
)
def test_400_for_a_form_that_is_broken(client: httpx.Client, content: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    body = problem(client.post("/transcribe", content=content, headers=headers), 400)
    assert body["code"] in ("invalid_form", "no_file")


def test_400_for_two_files(client: httpx.Client, hello: bytes) -> None:
    files = [("file", ("a.wav", hello)), ("file", ("b.wav", hello))]
    problem(client.post("/transcribe", files=files), 400, "invalid_form")


def test_400_for_an_invalid_query_of_the_job_list(client: httpx.Client) -> None:
    for query in ({"status": "Sleeping"}, {"limit": "0"}, {"limit": "many"}, {"limit": "-1"}, {"after": "nowhere"}):
        problem(client.get("/transcriptions", params=query), 400)


def test_400_for_a_force_that_is_neither_true_nor_false(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello)
    finish(client, job_id)
    problem(client.delete(f"/transcription/{job_id}", params={"force": "perhaps"}), 400)


# --- 401 ---


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer wk_00000000_" + "A" * 43,
        "Basic dXNlcjpwYXNz",
        "Bearer wk_" + "é" * 20,
        "Bearer " + "x" * 5000,
    ],
)
def test_401_without_a_known_key(server: RunningServer, authorization: str | None) -> None:
    headers = httpx.Headers({} if authorization is None else {"Authorization": authorization}, "latin-1")
    with server.client(key="") as nobody:
        for method, path in protected(str(uuid.uuid4())):
            response = nobody.request(method, path, headers=headers)
            body = problem(response, 401)
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
            assert "key" in body["detail"].lower()
    assert "dXNlcjpwYXNz" not in server.log


def test_401_for_a_key_with_another_secret_or_another_ending(server: RunningServer) -> None:
    key = server.user_key
    wrong = [key[:-1], key + "A", key[:-1] + ("A" if key[-1] != "A" else "B"), key.upper(), f"{key} {key}"]
    with server.client(key="") as nobody:
        for token in wrong:
            response = nobody.get("/status", headers={"Authorization": f"Bearer {token}"})
            problem(response, 401)
            assert token not in server.log


def test_401_once_a_key_is_revoked(server: RunningServer) -> None:
    with server.client(server.key("tests-revoked")) as client:
        assert client.get("/status").status_code == 200
        assert server.command("keys", "revoke", "tests-revoked").returncode == 0
        problem(client.get("/status"), 401)


def test_401_comes_before_an_upload_is_read(server: RunningServer, hello: bytes) -> None:
    with server.client(key="") as nobody:
        problem(post(nobody, hello * 500), 401)


def test_the_scheme_is_written_in_any_case(server: RunningServer) -> None:
    with server.client(key="") as client:
        for scheme in ("bearer", "BEARER", "Bearer"):
            headers = {"Authorization": f"{scheme} {server.user_key}"}
            assert client.get("/status", headers=headers).status_code == 200


def test_no_key_is_ever_logged(server: RunningServer, client: httpx.Client) -> None:
    client.get("/status")
    assert server.user_key not in server.log
    _, _, secret = server.user_key.split("_", 2)  # the secret may have underscores of its own
    assert secret not in server.log


# --- 404 ---


@pytest.mark.parametrize("job_id", [NO_JOB, "1", "x" * 300, "%00", "..%2f..%2fetc%2fpasswd", "caf%C3%A9"])
def test_404_for_an_unknown_job(client: httpx.Client, job_id: str) -> None:
    for method, path in protected(job_id)[2:5]:
        body = problem(client.request(method, path), 404)
        assert body["code"] in ("job_not_found", "not_found")
    if "%" not in job_id:
        assert problem(client.get(f"/transcription/{job_id}"), 404)["error"] == f"Job not found: {job_id}"


# --- 409 ---


def test_409_for_a_result_before_the_job_has_ended(
    client: httpx.Client, busy: Busy, hello: bytes, hours: bytes
) -> None:
    with busy(client, hours) as running:
        waiting = submit(client, hello)
        for job_id in (running, waiting):
            response = client.get(f"/transcription/{job_id}/result")
            problem(response, 409, "job_not_finished")
            assert int(response.headers["Retry-After"]) >= 1
        client.delete(f"/transcription/{waiting}")


def test_409_for_the_result_of_a_job_that_failed(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello, model=ABSENT_MODEL)
    status = finish(client, job_id)
    assert status["status"] == "Failed"
    assert ABSENT_MODEL in status["error"]
    assert status["finished_at"]
    body = problem(client.get(f"/transcription/{job_id}/result"), 409, "job_failed")
    assert ABSENT_MODEL in body["detail"]


def test_409_for_the_result_of_a_job_that_was_canceled(
    client: httpx.Client, busy: Busy, hello: bytes, hours: bytes
) -> None:
    with busy(client, hours):
        job_id = submit(client, hello)
        client.delete(f"/transcription/{job_id}")
        problem(client.get(f"/transcription/{job_id}/result"), 409, "job_canceled")


# --- 410: see test_contract_jobs.py ---

# --- 413 ---


def test_413_for_a_file_that_is_too_large(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        response = post(client, hello + bytes(4_000_000))
        body = problem(response, 413, "file_too_large")
        found, _, rest = body["error"].removeprefix("File too large: ").partition(" bytes exceeds limit of ")
        assert int(found) > 4_000_000
        assert rest == "4000000 bytes"
        assert strict.running


def test_a_file_of_the_largest_size_is_accepted(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        exact = hello + bytes(4_000_000 - len(hello))
        assert finish(client, submit(client, exact))["status"] == "Completed"
        problem(post(client, exact + b"\0"), 413, "file_too_large")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_413_for_a_small_file_that_lasts_a_hundred_hours(
    strict: RunningServer, hello: bytes, hours: bytes, busy: Busy
) -> None:
    """Every route refuses the file at no cost, while the job of another key goes on."""

    def resident() -> int:
        status = Path(f"/proc/{strict.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    attack = hours_of_silence(100)
    assert len(attack) < 100_000
    with strict.client() as client, busy(client, hours) as running:
        before = resident()
        for path in ("/transcribe", "/detect-language", "/v1/audio/transcriptions"):
            response = post(client, attack, path=path, language=None, align=None, diarize=None)
            assert response.status_code == 413, response.text
            assert "100.0 hours" in response.text
            assert "audio_too_long" in response.text
        problem(post(client, attack), 413, "audio_too_long")
        several = client.post("/transcriptions", files=[("file", ("a.flac", attack)), ("file", ("b.wav", hello))])
        first, second = several.json()["jobs"]
        assert (first["error"]["status"], first["error"]["code"]) == (413, "audio_too_long")
        # The other job fills its own buffers meanwhile; a hundred hours would take 23 GB.
        assert resident() - before < 500e6
        assert client.get(f"/transcription/{running}").json()["status"] == "Processing"
        finish(client, second["job_id"])


def test_413_for_a_file_whose_header_hides_how_long_it_is(start_server: Start) -> None:
    server = start_server({"MAX_AUDIO_SECONDS": 600, "MAX_AUDIO_MEMORY": 1_000_000})
    attack = without_length(hours_of_silence(10))
    with server.client() as client:
        body = problem(post(client, attack, sync="true"), 413, "audio_too_long")
        assert "MAX_AUDIO_SECONDS" in body["detail"]
        response = client.post("/v1/audio/transcriptions", files={"file": ("a.flac", attack)})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "audio_too_long")
        status = finish(client, submit(client, attack))
        assert (status["status"], "audio may last" in status["error"]) == ("Failed", True)


# --- 415 ---


def test_415_for_a_file_that_is_no_audio(client: httpx.Client) -> None:
    body = problem(post(client, b"Dear all,\n\nplease find attached no audio.\n" * 50), 415, "invalid_audio")
    assert "text" in body["detail"]


# --- 422 ---


def test_422_for_diarization_without_a_model(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        problem(post(client, hello, diarize="true"), 422, "model_unavailable")
        job_id = submit(client, hello, diarize=None)
        status = finish(client, job_id)
        assert status["status"] == "Completed"
        for warnings in (status["warnings"], client.get(f"/transcription/{job_id}/result").json()["warnings"]):
            assert any("speaker" in warning for warning in warnings)


def test_422_for_a_model_that_only_an_administrator_may_have_downloaded(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        body = problem(post(client, hello, model=ABSENT_MODEL), 422, "model_unavailable")
    assert "WHISPER_MODEL_DOWNLOADS" in body["detail"]
    assert f"models pull {ABSENT_MODEL}" in body["detail"]
    with strict.client(strict.admin_key) as client:
        assert finish(client, submit(client, hello, model=ABSENT_MODEL))["status"] == "Failed"


def test_422_when_a_synchronous_job_has_no_model(client: httpx.Client, hello: bytes) -> None:
    body = problem(post(client, hello, model=ABSENT_MODEL, sync="true"), 422, "model_unavailable")
    assert ABSENT_MODEL in body["detail"]


# --- 429 and 503 ---


def test_429_for_one_caller_and_503_for_a_full_queue(strict: RunningServer, hello: bytes, hours: bytes) -> None:
    """The server runs two jobs and queues three; each key may have three unfinished jobs."""
    jobs: list[tuple[httpx.Client, str]] = []
    second_key = strict.key("second")
    with strict.client() as first, strict.client(second_key) as second, strict.client(strict.admin_key) as third:

        def take(client: httpx.Client, audio: bytes) -> str:
            job_id = submit(client, audio, file_name="long.mp3")
            jobs.append((client, job_id))
            return job_id

        def refused(client: httpx.Client, status: int, code: str) -> dict[str, Any]:
            response = post(client, hello)
            assert int(response.headers["Retry-After"]) >= 1
            return problem(response, status, code)

        try:
            for job_id in [take(first, hours), take(first, hours)]:
                finish(first, job_id, "Processing")
            waiting = [(first, take(first, hello))]
            refused(first, 429, "caller_limit")
            waiting += [(second, take(second, hello)) for _ in range(2)]
            positions = [client.get(f"/transcription/{job_id}").json()["queue_position"] for client, job_id in waiting]
            assert positions == [1, 1, 2]
            refused(third, 503, "queue_full")
            queues = [each.get("/status").json()["queue_state"] for each in (first, second, third)]
            own, others, everybody = ((queue["queued_jobs"], queue["processing_jobs"]) for queue in queues)
            assert (own, others, everybody) == ((1, 2), (2, 0), (3, 2))
            client, job_id = waiting[1]
            assert client.delete(f"/transcription/{job_id}").status_code == 200
            jobs.append((third, submit(third, hello)))
        finally:
            for client, job_id in reversed(jobs):
                client.delete(f"/transcription/{job_id}", params={"force": "true"})


# --- 408 ---


def test_408_for_a_sender_that_has_fallen_silent(strict: RunningServer) -> None:
    head = (
        "POST /transcribe HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {strict.user_key}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 10000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
    )
    with strict.connect() as connection:
        connection.sendall(head.encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b'"code":"slow_sender"' in answer
