"""Files that bring libav down, or claim more than they hold: the server and its other jobs are untouched."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from silence import hours_of_silence, without_length

from server.conftest import Start
from server.harness import finish, job_of, post, problem, submit

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

WORD = b"ABORT THE DECODER PROCESS"
# Every Python process of the server imports this at its start. Only the decoder process reads files with pread.
INJECTED = f"""
import os
real = os.pread
def pread(descriptor, size, offset):
    block = real(descriptor, size, offset)
    if {WORD!r} in block:
        os.abort()
    return block
os.pread = pread
"""


def wav(seconds: float, *, stated: int | None = None, word_at: int | None = None) -> bytes:
    samples = bytearray(int(32000 * seconds))
    if word_at is not None:
        samples[word_at : word_at + len(WORD)] = WORD
    size = len(samples) if stated is None else stated
    head = b"RIFF" + min(size + 36, 2**32 - 1).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += bytes([1, 0, 1, 0]) + (16000).to_bytes(4, "little") + (32000).to_bytes(4, "little") + bytes([2, 0, 16, 0])
    return head + b"data" + size.to_bytes(4, "little") + bytes(samples)


def peak_memory(pid: int) -> int:
    """The peak memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_hostile_files_harm_neither_the_server_nor_another_job(
    start_server: Start, tmp_path: Path, cut: Callable[[float, float], bytes]
) -> None:
    (tmp_path / "injected").mkdir()
    (tmp_path / "injected" / "sitecustomize.py").write_text(INJECTED)
    path = os.pathsep.join([str(tmp_path / "injected"), os.environ.get("PYTHONPATH", "")])
    server = start_server({"ENABLE_CONCURRENCY": True, "MAX_CONCURRENT_JOBS": 2}, environment={"PYTHONPATH": path})
    good = cut(0.0, 20.0)
    with server.client() as client:
        expected = finish(client, submit(client, good))
        assert expected["status"] == "Completed"
        pid, before = server.pid, peak_memory(server.pid)
        other = submit(client, good)

        # The decoder aborts at the probe, so the upload is refused.
        answer = problem(post(client, wav(1.0, word_at=100)), 415, "invalid_audio")
        assert "SIGABRT" in answer["detail"]
        # The decoder aborts while it decodes, so the job fails.
        status = finish(client, submit(client, wav(60.0, word_at=1_800_000), sync="false"))
        assert status["status"] == "Failed"
        assert "SIGABRT" in status["error"]
        # A file of one second whose header states 4 GB lasts one second.
        status = finish(client, submit(client, wav(1.0, stated=2**32 - 40)))
        assert status["status"] == "Completed"
        # A hundred hours in 94 kB are refused by the header, or by their length when the header states none.
        hundred = hours_of_silence(100)
        problem(post(client, hundred, file_name="a.flac"), 413, "audio_too_long")
        status = finish(client, job_of(post(client, without_length(hundred), file_name="b.flac")))
        assert status["status"] == "Failed"
        assert "MAX_AUDIO_SECONDS" in status["error"]

        assert finish(client, other)["status"] == "Completed"
        again = [client.get(f"/transcription/{job_id}/result").text for job_id in (expected["job_id"], other)]
        assert again[0] == again[1]
        assert server.pid == pid
        assert peak_memory(pid) - before < 150e6
