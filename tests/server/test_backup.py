"""``whisper-api backup`` beside a real server that works, and ``restore`` for another one."""

from __future__ import annotations

import signal
from pathlib import Path

from server.conftest import Start
from server.harness import RunningServer, finish, submit


def test_another_server_goes_on_from_a_backup(
    start_server: Start, tmp_path: Path, models_dir: Path, hello: bytes, hours: bytes
) -> None:
    server, backup = start_server(), tmp_path / "backup.db"
    with server.client() as client:
        done = [submit(client, hello, keep_result="true") for _ in range(2)]
        for job_id in done:
            finish(client, job_id)
        results = {job_id: client.get(f"/transcription/{job_id}/result").json() for job_id in done}
        long = submit(client, hours, file_name="long.mp3")
        waiting = submit(client, hello, keep_result="true", file_name="waits.wav")
        finish(client, long, "Processing")
        made = server.command("backup", str(backup), "--audio")
        assert made.returncode == 0, made.stderr
        assert "2 unfinished jobs, the audio of 2" in made.stderr
        assert backup.stat().st_mode & 0o777 == 0o600
        refused = server.command("restore", str(backup))
        assert refused.returncode == 1
        assert "Another server works on" in refused.stderr
        assert submit(client, hello) not in (long, waiting)
    user_key = server.user_key
    server.stop(signal.SIGKILL)

    with_backup = RunningServer(tmp_path / "other", models_dir, {"PRELOAD_MODELS": False})
    restored = with_backup.command("restore", str(backup))
    assert restored.returncode == 0, restored.stderr
    assert "2 jobs wait, 0 failed" in restored.stderr
    with with_backup, with_backup.client(user_key) as client:
        assert client.delete(f"/transcription/{long}?force=true").status_code == 200
        assert {each: client.get(f"/transcription/{each}/result").json() for each in done} == results
        assert finish(client, waiting)["file_name"] == "waits.wav"
        assert client.get(f"/transcription/{waiting}/result").json()["text"] == results[done[0]]["text"]
        assert {job["job_id"] for job in client.get("/transcriptions").json()["jobs"]} == {*done, long, waiting}
