"""Metadata that clients store with their jobs, and the search for it."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from server.harness import RunningServer, finish, job_of, post, problem, submit
from whisper_api import Client
from whisper_api.job_values import Correction, Corrections

METADATA: list[dict[str, Any] | None] = [
    {"case": "17", "pages": 3, "open": True},
    {"case": 17, "from": {"desk": "a"}, "name": "Ünïcodé 日本"},
    {"case": "17", "pages": 3.0, "open": None},
    None,
]


@pytest.fixture(scope="module")
def owner(server: RunningServer, hello: bytes) -> tuple[str, list[str]]:
    """A new key and its jobs, oldest first; the third one Failed."""
    key = server.key(f"searcher-{uuid.uuid4().hex[:8]}")
    with server.client(key) as client:
        jobs = []
        for number, metadata in enumerate(METADATA):
            fields: dict[str, Any] = {"model": "large-v1"} if number == 2 else {}
            if metadata is not None:
                fields["metadata"] = json.dumps(metadata)
            jobs.append(submit(client, hello, keep_result="true", **fields))
        for job_id in jobs:
            finish(client, job_id)
    return key, jobs


@pytest.fixture
def mine(server: RunningServer, owner: tuple[str, list[str]]) -> Any:
    with server.client(owner[0]) as client:
        yield client


def found(client: httpx.Client, jobs: list[str], **query: Any) -> list[int]:
    """The numbers of the jobs that a search finds, oldest first, with pages of one job."""
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        response = client.get("/transcriptions", params={"limit": 1, **query, **after})
        assert response.status_code == 200, response.text
        body = response.json()
        seen += [job["job_id"] for job in body["jobs"]]
        if body["next"] is None:
            return sorted(jobs.index(job_id) for job_id in seen)
        after = {"after": body["next"]}


def test_metadata_comes_back(mine: httpx.Client, owner: tuple[str, list[str]]) -> None:
    listed = {job["job_id"]: job for job in mine.get("/transcriptions").json()["jobs"]}
    for number, (job_id, metadata) in enumerate(zip(owner[1], METADATA, strict=True)):
        bodies = [mine.get(f"/transcription/{job_id}").json(), listed[job_id]]
        if number != 2:
            bodies.append(mine.get(f"/transcription/{job_id}/result").json())
        assert [body.get("metadata") for body in bodies] == [metadata] * len(bodies)
        assert all(("metadata" in body) == (metadata is not None) for body in bodies)


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({"metadata_key": "case"}, [0, 1, 2]),
        ({"metadata_key": "case", "metadata_value": "17"}, [0, 1, 2]),
        ({"metadata_key": "case", "metadata_value": '"17"'}, [0, 2]),
        ({"metadata_key": "case", "metadata_value": "17", "status": "Failed"}, [2]),
        ({"metadata_key": "pages", "metadata_value": "3"}, [0, 2]),
        ({"metadata_key": "open", "metadata_value": "true"}, [0]),
        ({"metadata_key": "open", "metadata_value": "null"}, [2]),
        ({"metadata_key": "name", "metadata_value": "Ünïcodé 日本"}, [1]),
        ({"metadata_key": "from"}, [1]),
        ({"metadata_key": "desk"}, []),
        ({"metadata_key": "from", "metadata_value": '{"desk": "a"}'}, []),
        ({"metadata_key": "case' OR '1'='1"}, []),
        ({"status": "Completed"}, [0, 1, 3]),
    ],
)
def test_jobs_are_found_by_metadata(
    mine: httpx.Client, owner: tuple[str, list[str]], query: dict[str, str], numbers: list[int]
) -> None:
    assert found(mine, owner[1], **query) == numbers


def test_jobs_are_found_by_time(mine: httpx.Client, owner: tuple[str, list[str]]) -> None:
    jobs = owner[1]
    times = [mine.get(f"/transcription/{job_id}").json()["created_at"] for job_id in jobs]
    for number, when in enumerate(times):
        # The server rounds times down to milliseconds.
        assert found(mine, jobs, created_after=when) == list(range(number, 4))
        assert found(mine, jobs, created_before=when) == list(range(number))
    zone = timezone(timedelta(hours=-5, minutes=-30))
    second = datetime.fromisoformat(times[1].replace("Z", "+00:00")).astimezone(zone).isoformat()
    assert found(mine, jobs, created_after=second, created_before=times[3]) == [1, 2]
    assert found(mine, jobs, created_after=second, metadata_key="open") == [2]
    assert found(mine, jobs, created_after="9999-12-31T23:59:59Z") == []


def test_the_jobs_of_others_are_not_found(
    server: RunningServer, client: httpx.Client, owner: tuple[str, list[str]]
) -> None:
    assert client.get("/transcriptions", params={"metadata_key": "pages"}).json()["jobs"] == []
    with server.client(server.admin_key) as admin:
        assert found(admin, owner[1], metadata_key="pages", metadata_value="3") == [0, 2]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"metadata_value": "17"}, "metadata_key"),
        ({"created_after": "yesterday"}, "created_after: expected a time with its zone"),
        ({"created_after": "1893456000"}, "created_after"),
        ({"created_before": "2030-01-01"}, "created_before"),
        ({"created_before": "2030-01-01T00:00:00"}, "created_before"),
        ({"created_before": "2030-13-01T00:00:00Z"}, "created_before"),
    ],
)
def test_a_search_that_cannot_be_is_refused(mine: httpx.Client, query: dict[str, str], says: str) -> None:
    assert says in problem(mine.get("/transcriptions", params=query), 400, "invalid_field")["detail"]


@pytest.mark.parametrize(
    "metadata", ["x", "[]", '"x"', "17", '{"a": }', json.dumps({"a": "x" * 16_384}), '{"a":' * 70 + "1" + "}" * 70]
)
def test_metadata_is_a_json_object_of_16_kilobytes(mine: httpx.Client, hello: bytes, metadata: str) -> None:
    assert "metadata" in problem(post(mine, hello, metadata=metadata), 400, "invalid_field")["detail"]


def test_metadata_of_the_largest_size_is_kept(client: httpx.Client, hello: bytes) -> None:
    metadata = {"a": "é" * ((16_384 - 8) // 2)}
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    assert len(text.encode()) == 16_384
    job_id = job_of(post(client, hello, metadata=text))
    assert finish(client, job_id)["metadata"] == metadata


def test_the_python_client_keeps_finds_and_corrects(server: RunningServer, hello: bytes) -> None:
    key = server.key(f"caller-{uuid.uuid4().hex[:8]}")
    begun = datetime.now(timezone.utc) - timedelta(minutes=5)
    with Client(server.url, key) as client:
        job_id = client.submit(hello, metadata={"case": " "}, keep_result=True)
        client.submit(hello)
        client.wait(job_id)
        assert [job.job_id for job in client.jobs(metadata_key="case", metadata_value=" ")] == [job_id]
        assert len(list(client.jobs(created_after=begun))) == 2
        assert list(client.jobs(created_before=begun)) == []
        segment = client.result(job_id).segments[0]
        place = 0 if segment.words else None
        given = Corrections(words=(Correction(segment=segment.id, word=place, text="Ahoy"),))
        assert client.correct(job_id, given) == client.corrections(job_id) == given
        result = client.result(job_id)
        assert result.metadata == {"case": " "}
        assert "Ahoy" in result.segments[0].text
        for job in client.jobs():
            client.wait(job.job_id)
