"""No accepted job is lost or runs twice, no matter when the server is killed."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import ids_in, transcript_in

from server.harness import RunningServer
from whisper_api import Client, Engine, JobResult, TranscriptionOptions, render
from whisper_api.client import responses
from whisper_api.store.jobs import JobStore

JOBS = 20
CLIENTS = 8
KILLS = 10
OPTIONS = TranscriptionOptions(model="tiny.en", language="en", align=False, diarize=False)
# The share of the kills during the start. The others come while the server listens, during uploads and jobs.
EARLY = 0.25
EARLY_SECONDS = 0.6
LIFE_SECONDS = 1.6
# Number of jobs that are submitted at once, so that the queue is long from the beginning.
AT_ONCE = CLIENTS
PAUSE_SECONDS = 1.6
DATABASE = {"jobs.db", "jobs.db-wal", "jobs.db-shm"}


@pytest.fixture
def server(tmp_path: Path, models_dir: Path, tiny_en_model_dir: Path) -> Iterator[RunningServer]:
    # The fixture does not start the server, since its first life is as short as the others.
    server = RunningServer(tmp_path / "server", models_dir, {"PRELOAD_MODELS": False})
    yield server
    server.close()


class Slow(io.BytesIO):
    """Audio that is sent slowly, so that some uploads are under way when the server is killed."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.2)
        return super().read(min(size or -1, 16_384))


def wait_for_port(server: RunningServer) -> None:
    while True:
        assert server.running, server.log
        try:
            server.connect().close()
        except OSError:
            time.sleep(0.02)
        else:
            return


def test_no_accepted_job_is_lost_or_done_twice_when_the_server_is_killed(
    server: RunningServer, engine: Engine, cut: Callable[[float, float], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In continuous integration the seed is fixed.
    drawn = 0 if os.environ.get("CI") else random.SystemRandom().randrange(1_000_000)
    seed = int(os.environ.get("CRASH_SEED") or drawn)
    print(f"CRASH_SEED={seed}")
    chance = random.Random(seed)
    # Nobody else uses this server: there is no need to spare it.
    monkeypatch.setattr(responses, "LONGEST_PAUSE", 1.0)
    audio: list[bytes] = []
    texts: list[str] = []
    while len(audio) < JOBS:
        piece = cut(chance.uniform(6.0, 26.0), chance.uniform(2.0, 4.0))
        transcript = engine.transcribe(piece, OPTIONS)
        # What the first attempt does not make out is sampled, and differs from time to time.
        if not any(segment.temperature for segment in transcript.segments):
            audio.append(piece)
            texts.append(render(transcript, "txt"))
    slow = [chance.random() < 0.3 for _ in audio]
    pauses = [0.0 if number < AT_ONCE else chance.uniform(0.0, PAUSE_SECONDS) for number in range(JOBS)]
    early = [chance.random() < EARLY for _ in range(KILLS)]
    lives = [chance.uniform(0.0, EARLY_SECONDS if soon else LIFE_SECONDS) for soon in early]
    print(
        "lives:",
        *(f"{seconds:.1f}{' from the start' if soon else ''}" for seconds, soon in zip(lives, early, strict=True)),
    )
    key = server.user_key
    waiting = [*range(JOBS)]
    jobs: dict[int, str] = {}
    results: dict[int, JobResult] = {}
    lock = threading.Lock()

    def work() -> None:
        with Client(server.url, key, timeout=30, retries=1000) as client:
            while True:
                with lock:
                    if not waiting:
                        return
                    number = waiting.pop(0)
                time.sleep(pauses[number])
                source = Slow(audio[number]) if slow[number] else io.BytesIO(audio[number])
                jobs[number] = client.submit(source, OPTIONS)
                # Some look after their job at once, and the others when all have been sent.
                if number % 3 == 0:
                    results[number] = finished(client, jobs[number])

    def finished(client: Client, job_id: str) -> JobResult:
        status = client.wait(job_id)
        assert status.status == "Completed", f"{status}\n{server.log}"
        return client.result(job_id)

    server.start(wait=False)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(work) for _ in range(CLIENTS)]
        for seconds, soon in zip(lives, early, strict=True):
            if not soon:
                wait_for_port(server)
            time.sleep(seconds)
            server.kill()
            server.start(wait=False)
        server.wait_ready()
        for client_thread in clients:
            client_thread.result()

    with Client(server.url, key) as client:
        ended = {number: finished(client, jobs[number]) for number in range(JOBS)}
        assert {number: ended[number] for number in results} == results
        assert sorted(job.job_id for job in client.jobs()) == sorted(jobs.values())
    assert len(set(jobs.values())) == JOBS
    assert [ended[number].text for number in range(JOBS)] == texts

    # One more start, since that is when what was left behind is removed.
    server.restart()
    assert server.stop() == 0
    assert {path.name for path in server.uploads_dir.iterdir()} == {"server.lock"}
    ours = {path.name for path in server.data_dir.iterdir()} - {server.uploads_dir.name}
    assert ours - DATABASE <= {"server.lock"}
    store = JobStore(server.data_dir / "jobs.db")
    try:
        rows = [store.get(job_id) for job_id in ids_in(store)]
        assert {row.job_id for row in rows if row} == set(jobs.values())
        assert len({row.idempotency_key for row in rows if row}) == JOBS
        for row in filter(None, rows):
            assert row.state == "Completed"
            assert transcript_in(store, row.job_id) is not None
    finally:
        store.close()
