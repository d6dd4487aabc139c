"""The configuration: the effect of each key on the server, where the other tests do not show it.

Limits, the queue and retention stand in test_contract_errors.py and test_contract_jobs.py, the old file in
test_old_config.py, the order of the sources in tests/test_config.py.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.conftest import Busy, Start
from server.harness import RunningServer, finish, job_of, post, problem, submit, until
from whisper_api.config import settings

# The test that shows the effect of each key; the key occurs in that test or in the settings of its server.
SHOWN_BY = {
    "WHISPER_API_HOST": "test_host_and_port",
    "WHISPER_API_PORT": "test_host_and_port",
    "WHISPER_METRICS_HOST": "test_metrics.py",
    "WHISPER_METRICS_PORT": "test_metrics.py",
    "WHISPER_API_TIMEOUT": "test_contract_errors.py: 408",
    "WHISPER_API_KEEPALIVE": "test_an_idle_connection_is_closed",
    "HTTP_WORKER_NUMBER": "test_the_status_reports_the_configuration",
    "MAX_CONNECTIONS": "test_connections.py",
    "MAX_RESPONSE_MEMORY": "test_response_budget.py",
    "WHISPER_MODELS_DIR": "test_contract_errors.py: 422",
    "WHISPER_TMP_FILES": "test_data_and_uploads_are_kept_in_the_configured_directories",
    "WHISPER_DATA_DIR": "test_data_and_uploads_are_kept_in_the_configured_directories",
    "WHISPER_OUTPUT_FORMAT": "test_defaults_of_the_form",
    "WHISPER_MODEL": "test_the_status_reports_the_configuration",
    "MODEL_ALIASES": "test_openai_names.py",
    "WHISPER_LANGUAGE": "test_defaults_of_the_form",
    "WHISPER_DEVICE": "test_a_server_whose_device_is_missing_is_not_ready",
    "WHISPER_DEVICE_INDEX": "test_the_status_reports_the_configuration",
    "WHISPER_COMPUTE_TYPE": "test_the_other_settings",
    "WHISPER_BATCH_SIZE": "test_the_other_settings",
    "WHISPER_ENCODER": "test_the_other_settings",
    "MODEL_KEEP_ALIVE_SECONDS": "test_the_other_settings",
    "PRELOAD_MODELS": "test_models_are_loaded_at_the_start",
    "WHISPER_MODEL_DOWNLOADS": "jobs/test_model_downloads.py",
    "WHISPER_JOB_RETENTION_HOURS": "test_contract_jobs.py: everything goes",
    "WHISPER_CLEANUP_INTERVAL_HOURS": "test_contract_jobs.py: only what was delivered",
    "WHISPER_RESULT_GRACE_SECONDS": "test_contract_jobs.py: only what was delivered",
    "MAX_FILE_SIZE": "test_contract_errors.py: 413",
    "MAX_AUDIO_SECONDS": "test_contract_errors.py: 413",
    "MAX_AUDIO_MEMORY": "test_decoded_audio_beyond_the_memory_goes_to_a_file",
    "ENABLE_CONCURRENCY": "test_contract_errors.py: 503",
    "MAX_CONCURRENT_JOBS": "test_contract_errors.py: 503",
    "MAX_QUEUED_JOBS": "test_contract_errors.py: 503",
    "MAX_JOB_ATTEMPTS": "jobs/test_recovery.py",
    "MAX_JOBS_PER_KEY": "test_contract_errors.py: 429",
    "MAX_SPEAKERS_PER_KEY": "test_speakers.py",
    "MAX_UPLOADS_PER_KEY": "test_slow_uploads.py: shares",
    "MAX_UPLOADS_PER_ADDRESS": "test_slow_uploads.py: shares",
    "WHISPER_RATE_LIMIT": "test_limits.py",
    "WHISPER_QUOTA": "test_limits.py",
    "WHISPER_AUTH_FAILURE_LIMIT": "test_limits.py: wrong keys",
    "WHISPER_USAGE_RETENTION_DAYS": "jobs/test_usage.py",
    "MIN_UPLOAD_BYTES_PER_SECOND": "test_slow_uploads.py: configured",
    "UPLOAD_TIMEOUT_SECONDS": "test_slow_uploads.py: configured",
    "WHISPER_STALL_SECONDS": "test_the_other_settings",
    "WHISPER_SHUTDOWN_GRACE_SECONDS": "test_stop.py",
    "WHISPER_TLS_CERT_FILE": "test_http.py: TLS",
    "WHISPER_TLS_KEY_FILE": "test_http.py: TLS",
    "WHISPER_ROOT_PATH": "test_proxies.py",
    "WHISPER_TRUSTED_PROXIES": "test_behind_proxies.py",
    "ENABLE_URL_UPLOADS": "test_url_uploads.py",
    "URL_FETCH_TIMEOUT_SECONDS": "test_url_uploads.py",
    "URL_PRIVATE_HOSTS": "test_url_uploads.py",
    "ENABLE_AUTHORIZATION": "test_http.py: TLS",
    "ALLOWED_ORIGINS": "test_auth.py",
    "WHISPER_HF_TOKEN_FILE": "test_tokens_are_masked",
    "HF_TOKEN": "test_tokens_are_masked",
    "SYNC_REQUEST_TIMEOUT_SECONDS": "test_contract_jobs.py: takes too long",
    "DEFAULT_SYNC_MODE": "test_the_other_settings",
    "WHISPER_AUDIT_RETENTION_DAYS": "test_audit.py",
    "ENABLE_WEBHOOKS": "test_webhooks.py",
    "WEBHOOK_PRIVATE_HOSTS": "test_webhooks.py",
    "WHISPER_LOG_LEVEL": "test_the_other_settings",
    "WHISPER_LOG_FORMAT": "test_the_log_as_json",
    "WHISPER_CMD": "test_old_config.py",
    "WHISPER_OUTPUT_DIR": "test_old_config.py",
}


def test_no_key_is_forgotten() -> None:
    assert {setting.key for setting in settings()} == set(SHOWN_BY)
    here = globals()
    assert all(where in here for where in SHOWN_BY.values() if ".py" not in where)


def test_host_and_port(server: RunningServer) -> None:
    assert f"http://127.0.0.1:{server.port}" in server.log
    taken = RunningServer(server.directory / "second", server.directory, {"WHISPER_API_PORT": server.port})
    taken.start(wait=False)
    assert taken.wait_stopped() == 2
    assert str(server.port) in taken.log
    with server.client() as client:
        assert client.get("/livez").status_code == 200


def test_two_servers_do_not_share_a_database(server: RunningServer) -> None:
    second = RunningServer(
        server.directory / "third",
        server.directory,
        {"WHISPER_DATA_DIR": server.data_dir, "WHISPER_TMP_FILES": server.uploads_dir},
    )
    second.start(wait=False)
    assert second.wait_stopped() == 1
    assert "another" in second.log.lower()
    assert "Traceback" not in second.log


def test_the_status_reports_the_configuration(strict: RunningServer) -> None:
    with strict.client() as client:
        body = client.get("/status").json()
    assert body["server"]["worker_number"] == 3
    assert body["server"]["timeout"] == 3
    assert body["server"]["keepalive"] == 2
    assert body["server"]["uptime_seconds"] > 0
    processing = body["processing"]
    assert (processing["concurrent_mode"], processing["max_concurrent_jobs"]) == (True, 2)
    assert (processing["device"], processing["device_index"]) == ("cpu", "0")
    assert (processing["default_output_format"], processing["sync_timeout"]) == ("srt", 1)
    assert processing["model"] == "base"
    assert body["resources"]["max_file_size"] == 4_000_000


def test_an_idle_connection_is_closed(strict: RunningServer) -> None:
    with strict.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 200")


def test_data_and_uploads_are_kept_in_the_configured_directories(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        finish(client, submit(client, hello))
    assert (strict.directory / "uploads").is_dir()
    with closing(sqlite3.connect(f"file:{strict.directory / 'data' / 'jobs.db'}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] >= 1
    for path in (strict.data_dir, strict.uploads_dir):
        assert path.stat().st_mode & 0o077 == 0, "for its owner only"
    assert not (strict.directory / "var").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_decoded_audio_beyond_the_memory_goes_to_a_file(strict: RunningServer, hours: bytes, busy: Busy) -> None:
    """``MAX_AUDIO_MEMORY`` is 0 here, so every job's audio is mapped from a file without a name."""

    def mapped() -> bool:
        return f"{strict.uploads_dir}/" in "".join(
            line for line in Path(f"/proc/{strict.pid}/maps").read_text().splitlines() if line.endswith("(deleted)")
        )

    with strict.client() as client:
        with busy(client, hours):
            until(mapped)
        until(lambda: not mapped())


def test_defaults_of_the_form(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        job_id = submit(client, hello, language=None)
        finish(client, job_id)
        result = client.get(f"/transcription/{job_id}/result").json()
    assert result["language"] == "en"
    assert result["text"].startswith("1\n00:00:")


def test_models_are_loaded_at_the_start(server: RunningServer, start_server: Start) -> None:
    with server.client() as client:
        assert client.get("/status").json()["resources"]["resident_models"] >= 1
    lazy = start_server({"PRELOAD_MODELS": False})
    with lazy.client() as client:
        assert client.get("/status").json()["resources"]["resident_models"] == 0


def test_the_other_settings(start_server: Start, hello: bytes, hours: bytes) -> None:
    changes = {
        "DEFAULT_SYNC_MODE": True,
        "MODEL_KEEP_ALIVE_SECONDS": 0,
        "WHISPER_COMPUTE_TYPE": "float32",
        "WHISPER_BATCH_SIZE": 2,
        "WHISPER_ENCODER": "ctranslate2",
        "WHISPER_LOG_LEVEL": "warning",
        "WHISPER_STALL_SECONDS": 0.001,
    }
    server = start_server(changes)
    with server.client() as client:
        status = client.get("/status").json()
        assert status["processing"]["default_sync_mode"] is True
        assert status["processing"]["compute_type"] == "float32"
        answer = post(client, hello, sync=None)
        assert answer.status_code == 200
        assert answer.json()["text"].strip() == "Hello"
        finish(client, job_of(post(client, hello, sync="false")))
        assert client.get("/status").json()["resources"]["resident_models"] == 0
        assert " INFO " not in server.log
        job_id = submit(client, hours, sync="false")
        finish(client, job_id, "Processing")
        # Every work item takes longer than a millisecond.
        answers: list[httpx.Response] = []

        def is_stalled() -> bool:
            answers.append(client.get("/readyz"))
            return answers[-1].status_code != 200

        until(is_stalled)
        problem(answers[-1], 503, "stalled")
        assert client.get("/livez").status_code == 200
        assert client.delete(f"/transcription/{job_id}", params={"force": "true"}).status_code == 200
    until(lambda: "stall" in server.log)


def test_the_log_as_json(strict: RunningServer, hello: bytes) -> None:
    with strict.client() as client:
        response = post(client, hello, headers={"X-Request-ID": "find-me"}, file_name="secret-name.wav", prompt="Hush")
        finish(client, job_of(response))

    def logged() -> list[dict[str, Any]]:
        whole = strict.log.rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    until(lambda: any(line.get("request_id") == "find-me" for line in logged()))
    lines = logged()
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    job_id = job_of(response)
    [access] = [line for line in lines if line.get("request_id") == "find-me" and line["logger"].endswith("access")]
    assert (access["method"], access["path"], access["status"]) == ("POST", "/transcribe", 202)
    assert access["job_id"] == job_id
    events = [line["message"] for line in lines if line.get("job_id") == job_id and line["logger"].endswith("jobs")]
    for word in ("submitted", "started", "completed"):
        assert any(word in event for event in events), events
    for secret in ("secret-name", "Hush", "Hello", strict.user_key):
        assert secret not in strict.log


def test_tokens_are_masked(server: RunningServer) -> None:
    secret = "hf_SomethingVerySecret"
    named = RunningServer(server.directory / "named", server.directory, {"HF_TOKEN": f" {secret} "})
    filed = RunningServer(server.directory / "filed", server.directory, {"WHISPER_HF_TOKEN_FILE": "token"})
    filed.directory.mkdir()
    (filed.directory / "token").write_text(f"\n {secret}\n\n")
    for one, origin in ((named, "whisper_api.conf"), (filed, "token")):
        done = one.command("serve", "--check")
        assert done.returncode == 0, done.stderr
        [line] = [line for line in done.stdout.splitlines() if line.startswith("HF_TOKEN ")]
        assert '"***"' in line
        assert origin in line
        assert secret not in done.stdout + done.stderr


def test_a_server_whose_device_is_missing_is_not_ready(start_server: Start) -> None:
    wrong = start_server({"WHISPER_DEVICE": "cuda:99", "PRELOAD_MODELS": True}, wait=False)
    with wrong.client(key="") as nobody:

        def has_failed() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return bool(nobody.get("/readyz").json()["code"] == "failed")
            return False

        until(has_failed)
        detail = problem(nobody.get("/readyz"), 503)["detail"]
    assert "cuda" in detail
    assert "Traceback" not in wrong.log


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("WHISPER_API_PORT", "eighty"),
        ("MAX_FILE_SIZE", 0),
        ("WHISPER_OUTPUT_FORMAT", "docx"),
        ("ENABLE_CONCURRENCY", "perhaps"),
        ("WHISPER_TLS_CERT_FILE", "chain.pem"),
        ("WHISPER_API_HOST", "no.such.host.invalid"),
    ],
)
def test_a_bad_value_is_named_at_the_start(server: RunningServer, key: str, value: object) -> None:
    one = RunningServer(server.directory / f"bad-{key}", server.directory, {key: value})
    one.start(wait=False)
    assert one.wait_stopped() == 2
    assert key in one.log
    assert "Traceback" not in one.log


def test_settings_by_environment_and_flag(server: RunningServer) -> None:
    one = RunningServer(
        server.directory / "flags", server.directory, environment={"WHISPER_MODEL": "tiny", "WHISPER_LANGUAGE": "de"}
    )
    done = one.command("serve", "--check", "--model", "small")
    assert done.returncode == 0, done.stderr
    found = {line.split(" = ")[0]: line for line in done.stdout.splitlines() if " = " in line}
    assert '"small"' in found["WHISPER_MODEL"]
    assert "command line" in found["WHISPER_MODEL"]
    assert '"de"' in found["WHISPER_LANGUAGE"]
    assert "environment" in found["WHISPER_LANGUAGE"]
    assert "default" in found["MAX_QUEUED_JOBS"]
    assert set(found) == {setting.key for setting in settings()}
