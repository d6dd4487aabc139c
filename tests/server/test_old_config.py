"""The configuration file of the server before this one starts this one, and its clients' requests still work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.harness import RunningServer, finish, problem

# Every key of the old server, with numbers and switches as strings, as in its documentation.
OLD_CONFIG = {
    "WHISPER_API_HOST": "127.0.0.1",
    "WHISPER_API_TIMEOUT": "480",
    "WHISPER_API_KEEPALIVE": "480",
    "HTTP_WORKER_NUMBER": "0",
    "WHISPER_MODELS_DIR": "",
    "WHISPER_TMP_FILES": "/tmp/whisper_api",
    "WHISPER_CMD": "/usr/bin/whisperx",
    "WHISPER_OUTPUT_DIR": "/tmp/whisper_output",
    "WHISPER_OUTPUT_FORMAT": "txt",
    "WHISPER_DEVICE": "cpu",
    "WHISPER_DEVICE_INDEX": "0",
    "WHISPER_JOB_RETENTION_HOURS": "48",
    "WHISPER_CLEANUP_INTERVAL_HOURS": "12",
    "WHISPER_HF_TOKEN_FILE": "hf_token.txt",
    "HF_TOKEN": "hf_NotARealToken",
    "MAX_FILE_SIZE": "536870912",
    "ENABLE_AUTHORIZATION": "true",
    "ENABLE_CONCURRENCY": "false",
    "MAX_CONCURRENT_JOBS": "6",
    "SYNC_REQUEST_TIMEOUT_SECONDS": "1800",
    "DEFAULT_SYNC_MODE": "false",
    "RUST_LOG": "info",
    "WHISPER_API_PORT": "8181",
}


@pytest.fixture(scope="module")
def old(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, base_model_dir: Path, ecapa_path: Path
) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("old")
    places = {"WHISPER_MODELS_DIR": models_dir, "WHISPER_TMP_FILES": directory / "uploads"}
    server = RunningServer(directory, models_dir, {**OLD_CONFIG, **places}, arguments=("--model", "base"))
    port = server.port
    server.settings = {key: str(value) for key, value in server.settings.items() if key in OLD_CONFIG}
    server.settings["WHISPER_API_PORT"] = str(port)
    with server:
        yield server


@pytest.fixture(scope="module")
def key(old: RunningServer) -> str:
    """The key that the first start made and printed."""
    [found] = set(re.findall(r"wk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", old.log))
    return str(found)


def test_the_file_has_every_key_of_the_old_server(old: RunningServer) -> None:
    assert len(OLD_CONFIG) == 23
    assert set(old.settings) == set(OLD_CONFIG)
    written = old.config_file.read_text()
    assert 'WHISPER_API_TIMEOUT = "480"' in written
    assert 'ENABLE_CONCURRENCY = "false"' in written


def test_the_log_names_keys_without_effect(old: RunningServer) -> None:
    for name in ("WHISPER_CMD", "WHISPER_OUTPUT_DIR"):
        assert f"{name} has no effect" in old.log
    assert "unknown key" not in old.log


def test_the_values_are_in_force(old: RunningServer, key: str) -> None:
    with old.client(key) as client:
        status = client.get("/status").json()
    assert status["server"]["port"] == str(old.port)
    assert (status["server"]["timeout"], status["server"]["keepalive"]) == (480, 480)
    assert status["processing"]["concurrent_mode"] is False
    assert status["processing"]["max_concurrent_jobs"] == 6
    assert status["resources"] == {
        **status["resources"],
        "max_file_size": 536870912,
        "job_retention_hours": 48,
        "cleanup_interval_hours": 12,
    }
    assert status["security"]["authorization_enabled"] is True


def test_the_requests_of_its_clients_work(old: RunningServer, key: str, speech: bytes) -> None:
    fields = {
        "language": "en",
        "model": "base",
        "diarize": "true",
        "prompt": "A telephone call.",
        "hf_token": "",
        "response_format": "srt",
        "device": "cpu",
        "device_index": "0",
        "sync": "false",
    }
    with old.client(key) as client:
        accepted = client.post("/transcription", data=fields, files={"file": ("call.wav", speech, "audio/wav")})
        assert accepted.status_code == 202
        assert set(accepted.json()) == {"job_id", "status_url"}
        status = finish(client, accepted.json()["job_id"])
        assert status["status"] == "Completed"
        result = client.get(f"{accepted.json()['status_url']}/result").json()
        assert {"text", "language", "segments"} <= set(result)
        assert result["text"].startswith("1\n00:00:0")
        assert "[SPEAKER_00]: " in result["text"]
        removed = client.delete(accepted.json()["status_url"])
        assert removed.json() == {"success": True, "message": "Job canceled successfully"}


def test_its_defects_are_gone(old: RunningServer, key: str, hello: bytes) -> None:
    with old.client("any-token-will-do") as client:
        problem(client.get("/status"), 401)
    assert "any-token-will-do" not in old.log
    with old.client(key) as client:
        answer = client.post("/transcribe", data={"sync": "true", "language": "en"}, files={"file": hello})
        assert answer.status_code == 200
        assert answer.json()["segments"]
        job_id = client.post("/transcribe", data={"model": "large-v1"}, files={"file": hello}).json()["job_id"]
        early = client.get(f"/transcription/{job_id}/result")
        assert early.status_code == 409
        assert json.loads(early.text)["error"]
        assert finish(client, job_id)["status"] == "Failed"
        problem(client.get(f"/transcription/{job_id}/result"), 409, "job_failed")


def test_the_tokens_of_its_file_are_not_shown(old: RunningServer, key: str) -> None:
    assert "hf_NotARealToken" not in old.log
    assert old.log.count(key) == 1
    checked = old.command("serve", "--check")
    assert checked.returncode == 0
    assert 'HF_TOKEN = "***"' in checked.stdout
    assert f"WHISPER_API_PORT = {old.port}" in checked.stdout


def test_a_misspelt_key_is_named_with_the_right_one(old: RunningServer) -> None:
    old.settings["WHISPER_API_PROT"] = "1"
    checked = old.command("serve", "--check")
    del old.settings["WHISPER_API_PROT"]
    assert checked.returncode == 0
    assert "did you mean WHISPER_API_PORT?" in checked.stderr + checked.stdout
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"{old.url}/livez").status_code == 200
