"""No event of a job is lost or invented, no matter when the server is killed and how the receiver fails."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import until
from forked import Forked
from receiver import receiver

from server.harness import RunningServer
from server.inside import AUDIO
from whisper_api import Client, TranscriptionOptions
from whisper_api.cli.main import main
from whisper_api.client import responses
from whisper_api.errors import Canceled
from whisper_api.jobs import webhook_sender
from whisper_api.jobs.local_executor import EXECUTORS
from whisper_api.store.jobs import DATABASE_NAME, JobStore
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

KILLS = 10
JOBS = 40
JOBS_OF_A_LIFE = JOBS // KILLS
# A kill comes so much later than the last job of its life.
MOST_SECONDS = 0.1
CLIENTS = 2
# What the jobs do. The first one runs until it has had all of its attempts.
PROMPTS = ("stuck", *("fine", "fine", "fail", "hold") * (JOBS // 4))
ENDS = {"Completed": "completed", "Failed": "failed", "Canceled": "canceled"}


def by_prompt(executor: FakeExecutor, job: Job) -> None:
    match job.options.prompt:
        case "fail":
            raise ValueError("it cannot be transcribed")
        case "hold" | "stuck":
            while not executor.cancels[job.job_id].wait(0.01):
                pass
            raise Canceled
        case _:
            pass


def serve_without_models() -> int:
    """Run the command line with an executor that loads no model, and with attempts that follow each other fast."""
    EXECUTORS["local"] = lambda config: FakeExecutor("Hello.", behave=by_prompt)
    webhook_sender.DELAYS = (0.15,) * 60  # type: ignore[assignment]
    return main()


def pending(server: RunningServer) -> int:
    """The number of pending deliveries of a server that was killed."""
    with contextlib.closing(JobStore(server.data_dir / DATABASE_NAME)) as store:
        return store.pending_deliveries()


class FastServer(RunningServer):
    def launch(self, arguments: list[str], environment: dict[str, str]) -> Forked:
        given = ["whisper-api", *arguments]
        return Forked(serve_without_models, given, self.directory, environment, self.log_file, self.log_file)


@pytest.fixture
def server(tmp_path: Path, models_dir: Path) -> Iterator[RunningServer]:
    settings = {
        "ENABLE_WEBHOOKS": True,
        "ENABLE_CONCURRENCY": True,
        "MAX_CONCURRENT_JOBS": 4,
        "MAX_JOB_ATTEMPTS": 2,
        "WHISPER_LANGUAGE": "en",
    }
    server = FastServer(tmp_path / "server", models_dir, settings)
    yield server
    server.close()


def test_each_event_arrives_verified_with_one_id_when_the_server_is_killed_ten_times(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In continuous integration the seed is fixed.
    drawn = 0 if os.environ.get("CI") else random.SystemRandom().randrange(1_000_000)
    seed = int(os.environ.get("CRASH_SEED") or drawn)
    print(f"CRASH_SEED={seed}")
    chance = random.Random(seed)
    # Nobody else uses this server: there is no need to spare it.
    monkeypatch.setattr(responses, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(responses, "LONGEST_PAUSE", 0.1)
    lives = [chance.uniform(0.0, MOST_SECONDS) for _ in range(KILLS)]
    answers = random.Random(seed)
    pending_at_kills = 0
    # Each entry lets a client submit one more job.
    turns = threading.Semaphore(0)
    waiting = [*PROMPTS]
    jobs = dict[str, str]()

    def answer(path: str) -> tuple[int, dict[str, str]]:
        time.sleep(answers.choice((0.0, 0.0, 0.02)))
        return answers.choice((200, 500)), {}

    with receiver(answer) as receiving:
        server.settings["WEBHOOK_PRIVATE_HOSTS"] = receiving.host
        key = server.user_key
        server.start()
        with Client(server.url, key) as client:
            endpoint = client.create_webhook(receiving.url("/endpoint"))
            secrets = {
                "/endpoint": client.webhook_secret(endpoint.endpoint_id).secret,
                "/own": client.webhook_secret().secret,
            }

        def work() -> None:
            with Client(server.url, key, timeout=5, retries=1000) as client:
                while turns.acquire() and waiting:
                    prompt = waiting.pop(0)
                    options = TranscriptionOptions(prompt=prompt)
                    job_id = client.submit(AUDIO, options, webhook_url=receiving.url("/own"))
                    jobs[job_id] = prompt
                    if prompt == "hold":
                        client.cancel(job_id, force=True)

        with ThreadPoolExecutor(CLIENTS) as pool, contextlib.ExitStack() as stack:
            # When the test fails, the clients end as well.
            stack.callback(turns.release, CLIENTS)
            stack.callback(waiting.clear)
            clients = [pool.submit(work) for _ in range(CLIENTS)]
            for life, seconds in enumerate(lives, 1):
                turns.release(JOBS_OF_A_LIFE)
                until(lambda life=life: len(jobs) > JOBS_OF_A_LIFE * life - CLIENTS, "jobs are submitted")  # type: ignore[misc]
                time.sleep(seconds)
                server.kill()
                pending_at_kills += bool(pending(server))
                server.start(wait=False)
            # For the jobs that are left, and for the ends of the clients.
            turns.release(len(PROMPTS) + CLIENTS)
            for each in clients:
                each.result()
        assert pending_at_kills

        with Client(server.url, key, retries=1000) as client:
            (stuck,) = (job_id for job_id, prompt in jobs.items() if prompt == "stuck")
            while client.status(stuck).status not in ENDS:
                server.kill()
                server.start()
            assert client.status(stuck).status == "Failed"
            states = {job_id: client.wait(job_id).status for job_id in jobs}
            expected = {(job_id, path) for job_id in jobs for path in secrets}
            until(lambda: not [*client.webhook_deliveries("Pending")], "all is delivered")
            deliveries = [*client.webhook_deliveries()]
        assert {"Completed", "Failed", "Canceled"} == {*states.values()}
        paths = {endpoint.endpoint_id: "/endpoint", None: "/own"}
        listed = {each.delivery_id: (each.job_id, paths[each.endpoint_id]) for each in deliveries}
        assert len(deliveries) == len(expected)
        assert {*listed.values()} == expected
        assert {each.state for each in deliveries} == {"Delivered"}

        arrived = defaultdict[tuple[str, str], set[str]](set)
        taken = set[tuple[str, str]]()
        for told in receiving.told:
            event = told.event(secrets[told.path])
            job_id = event["data"]["job_id"]
            assert event["type"] == f"transcription.{ENDS[states[job_id]]}"
            assert event["data"]["status"] == states[job_id]
            assert listed[told.id] == (job_id, told.path)
            arrived[job_id, told.path].add(told.id)
            if told.status == 200:
                taken.add((job_id, told.path))
        assert taken == expected
        assert all(len(ids) == 1 for ids in arrived.values())
        # Half of the attempts failed.
        assert len(receiving.told) > 1.3 * len(expected)
