"""``POST /transcriptions``: several files, each a job of its own, and what is wrong with one of them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import uuid
import wave
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.harness import RunningServer, finish
from server.inside import AUDIO, RawRequest, inside, on_a_loop, problem
from server.upload_server import BOUNDARY, field_part, file_part, form
from whisper_api.errors import StorageFull, UnknownModel
from whisper_api.server.uploads import incoming
from whisper_api.testing import FakeExecutor

TEXT = b"Dear all,\nhow are you?\n"


@pytest.fixture(scope="module")
def speaker() -> str:
    """Three seconds of a tone as a data URL."""
    rate = 8000
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 1, rate, 0, "NONE", ""))
        out.writeframes(bytes(128 + round(99 * math.sin(at / 3)) for at in range(3 * rate)))
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


def audio(number: int) -> bytes:
    """A unique recording."""
    return AUDIO[:-1] + bytes([number])


def files(*named: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", each) for each in named]


async def post(client: httpx.AsyncClient, *named: tuple[str, bytes], key: str = "", **fields: str) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post("/transcriptions", files=files(*named), data=fields, headers=headers)


def accepted(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 202, answer.text
    jobs: list[dict[str, Any]] = answer.json()["jobs"]
    return jobs


# --- one job each ---


@on_a_loop
async def test_each_file_becomes_a_job_in_the_order_sent(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        names = [f"{letter}.wav" for letter in "cab"]
        fields = {"language": "en", "metadata": '{"case": 7}', "keep_result": "true", "output_format": "srt"}
        jobs = accepted(await post(client, *((name, audio(ord(name[0]))) for name in names), **fields))
        assert [job["file_name"] for job in jobs] == names
        assert len({job["job_id"] for job in jobs}) == 3
        for job in jobs:
            assert set(job) == {"file_name", "job_id", "status_url"}
            assert job["status_url"] == f"/transcription/{job['job_id']}"
            status = await app.finish(client, job["job_id"])
            assert (status["status"], status["metadata"]) == ("Completed", {"case": 7})
            text = (await client.get(f"{job['status_url']}/result?format=txt")).text
            assert text.rstrip().endswith(job["file_name"][0])
            kept = app.service.store.get(job["job_id"])
            assert kept is not None
            assert (kept.options.language, kept.keep_result, kept.output_format) == ("en", True, "srt")


@on_a_loop
async def test_fields_hold_for_all_wherever_they_stand(tmp_path: Path) -> None:
    body = form(file_part(audio(1)), field_part("language", "de"), file_part(audio(2)), field_part("task", "translate"))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    async with inside(tmp_path) as app, app.client() as client:
        for job in accepted(await client.post("/transcriptions", content=body, headers=headers)):
            kept = app.service.store.get(job["job_id"])
            assert kept is not None
            assert (kept.options.language, kept.options.task) == ("de", "translate")


@on_a_loop
async def test_a_single_file_gives_a_list_with_one_job(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        assert len(accepted(await post(client, ("a.wav", AUDIO)))) == 1
        # A browser sends an untouched file field like this; it counts as no file.
        alone = file_part(b"", b'filename=""')
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        body = form(alone, file_part(AUDIO), alone)
        assert len(accepted(await client.post("/transcriptions", content=body, headers=headers))) == 1
        problem(await client.post("/transcriptions", content=form(alone), headers=headers), 400, "no_file")


@on_a_loop
async def test_a_single_job_still_has_a_single_file(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        answer = await client.post("/transcribe", files=files(("a.wav", AUDIO), ("b.wav", AUDIO)))
        assert "more than one file" in problem(answer, 400, "invalid_form")["detail"]
        assert app.service.counts() == (0, 0)


# --- a bad one does not stop the others ---


@on_a_loop
async def test_a_bad_file_is_named_and_the_others_are_accepted(tmp_path: Path) -> None:
    async with inside(tmp_path, max_file_size=1000) as app, app.client() as client:
        sent = [
            ("file", ("large.wav", bytes(200_000))),
            ("file", ("a.wav", audio(1))),
            ("file", ("notes.txt", TEXT)),
            ("audio", ("b.wav", audio(2))),
            ("file", ("empty.wav", b"")),
            ("file", ("c.wav", audio(3))),
        ]
        answer = await client.post("/transcriptions", files=sent, data={"language": "en"})
        jobs = accepted(answer)
        assert [job["file_name"] for job in jobs] == [name for _, (name, _) in sent]
        refused = {job["file_name"]: job["error"] for job in jobs if "error" in job}
        assert {name: (error["status"], error["code"]) for name, error in refused.items()} == {
            "large.wav": (413, "file_too_large"),
            "notes.txt": (415, "invalid_audio"),
            "b.wav": (400, "no_file"),
            "empty.wav": (415, "invalid_audio"),
        }
        assert "1000 bytes" in refused["large.wav"]["detail"]
        assert refused["notes.txt"]["detail"].startswith("notes.txt is text")
        assert "'audio'" in refused["b.wav"]["detail"]
        assert not any("job_id" in job for job in jobs if "error" in job)
        good = [job["job_id"] for job in jobs if "error" not in job]
        assert len(good) == 2
        for job_id in good:
            assert (await app.finish(client, job_id))["status"] == "Completed"
        # The request leaves no files and holds no place in the queue.
        await app.until(lambda: not list((tmp_path / "uploads").iterdir()) and app.service.counts() == (0, 0))


@on_a_loop
async def test_files_that_find_no_place_in_the_queue_have_an_error(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True), max_queued_jobs=2) as app, app.client() as client:
        await app.running(client)
        jobs = accepted(await post(client, *((f"{number}.wav", audio(number)) for number in range(4))))
        assert ["error" in job for job in jobs] == [False, False, True, True]
        assert {(job["error"]["status"], job["error"]["code"]) for job in jobs[2:]} == {(503, "queue_full")}
        # The queue is full before the request is read, so the whole request is refused.
        problem(await post(client, ("a.wav", AUDIO)), 503, "queue_full")


@on_a_loop
async def test_a_request_whose_files_are_all_refused_is_an_error_with_the_list_of_files(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for named in ([("a.txt", TEXT), ("b.txt", TEXT)], [("a.txt", TEXT)]):
            body = problem(await post(client, *named), 400, "no_file_accepted")
            assert [(job["file_name"], job["error"]["code"]) for job in body["jobs"]] == [
                (name, "invalid_audio") for name, _ in named
            ]
        assert not list((tmp_path / "uploads").iterdir())
        assert app.service.counts() == (0, 0)


@pytest.mark.parametrize("fields", [{"output_format": "pdf"}, {"metadata": "[]"}, {"sync": "true"}, {"beam_size": "0"}])
@on_a_loop
async def test_a_field_that_cannot_be_used_is_wrong_for_all(tmp_path: Path, fields: dict[str, str]) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        body = problem(await post(client, ("a.wav", AUDIO), ("b.txt", TEXT), **fields), 400, "invalid_field")
        assert next(iter(fields)) in body["detail"]
        assert "jobs" not in body
        assert not list((tmp_path / "uploads").iterdir())
        assert app.service.counts() == (0, 0)


@on_a_loop
async def test_a_default_of_waiting_is_for_single_files(tmp_path: Path) -> None:
    async with inside(tmp_path, default_sync=True) as app, app.client() as client:
        assert len(accepted(await post(client, ("a.wav", AUDIO), ("b.wav", AUDIO)))) == 2


@on_a_loop
async def test_an_unknown_model_is_an_error_of_the_whole_request(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with inside(tmp_path, executor) as app, app.client() as client:
        executor.refusal = UnknownModel("model: no such model")
        problem(await post(client, ("a.wav", AUDIO), ("b.wav", AUDIO)), 422, "unknown_model")
        assert not list((tmp_path / "uploads").iterdir())


@on_a_loop
async def test_the_response_names_the_jobs_that_were_accepted_before_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        add = app.service.store.add

        def fill(job: Any, **more: Any) -> Any:
            if job.file_name == "b.wav":
                raise StorageFull("No space is left on the disk")
            return add(job, **more)

        monkeypatch.setattr(app.service.store, "add", fill)
        jobs = accepted(await post(client, ("a.wav", audio(1)), ("b.wav", audio(2)), ("c.wav", audio(3))))
        assert ["job_id" in job for job in jobs] == [True, False, True]
        assert (jobs[1]["error"]["status"], jobs[1]["error"]["code"]) == (503, "storage_full")


@on_a_loop
async def test_the_largest_number_of_files_may_have_long_names(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        names = [f"{'東' * 248}{number:03}.wav" for number in range(incoming.MAX_FILES)]
        jobs = accepted(await post(client, *((name, audio(number)) for number, name in enumerate(names))))
        assert [job["file_name"] for job in jobs] == names
        assert all("job_id" in job for job in jobs)


# --- what cannot be read at all ---


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(field_part("language", "en")), "no_file"),
        (form(file_part(AUDIO))[:-10], "invalid_form"),
        (form(*[file_part(b"x")] * (incoming.MAX_FILES + 1)), "invalid_form"),
        (form(file_part(AUDIO), *[field_part("x", "y")] * 101), "invalid_form"),
        (b"", "invalid_form"),
    ],
)
@on_a_loop
async def test_a_form_that_cannot_be_read_leaves_nothing(tmp_path: Path, body: bytes, code: str) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        problem(await client.post("/transcriptions", content=body, headers=headers), 400, code)
        assert not (tmp_path / "uploads").exists() or not list((tmp_path / "uploads").iterdir())
        assert app.service.counts() == (0, 0)
        await app.submit(client)


@on_a_loop
async def test_text_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    body = form(field_part("file", "no file"), file_part(AUDIO))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    async with inside(tmp_path) as app, app.client() as client:
        jobs = accepted(await client.post("/transcriptions", content=body, headers=headers))
        assert [job.get("error", {}).get("code") for job in jobs] == ["no_file", None]


@on_a_loop
async def test_files_that_are_too_large_are_not_skipped_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "MAX_SKIPPED_BYTES", 5000)
    async with inside(tmp_path, max_file_size=1000) as app, app.client() as client:
        sent = [("a.wav", AUDIO), *((f"{number}.wav", bytes(3000)) for number in range(4))]
        problem(await post(client, *sent), 413, "file_too_large")
        assert not list((tmp_path / "uploads").iterdir())
        assert app.service.counts() == (0, 0)


@on_a_loop
async def test_a_client_that_goes_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    body = form(file_part(audio(1)), file_part(audio(2)), file_part(audio(3)))
    async with inside(tmp_path) as app, app.client() as client:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        for cut in (10, len(body) // 2, len(body) - 60):
            request = RawRequest("POST", "/transcriptions", headers, (body[:cut],), whole=False)
            task = asyncio.create_task(request.to(app.app))
            await asyncio.sleep(0.05)
            request.gone.set()
            await task
            assert not (tmp_path / "uploads").exists() or not list((tmp_path / "uploads").iterdir())
            assert app.service.counts() == (0, 0)
        await app.submit(client)


# --- again ---


@on_a_loop
async def test_the_same_request_again_gives_the_same_jobs(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        sent = [("a.wav", audio(1)), ("notes.txt", TEXT), ("b.wav", audio(2)), ("same.wav", audio(2))]
        first, second = [(await post(client, *sent, key="once", language="en")).json() for _ in range(2)]
        assert first == second
        assert len({job["job_id"] for job in first["jobs"] if "job_id" in job}) == 3
        assert len((await client.get("/transcriptions")).json()["jobs"]) == 3
        other = accepted(await post(client, *sent, key="another", language="en"))
        assert not {job.get("job_id", 0) for job in other} & {job.get("job_id", 1) for job in first["jobs"]}


@pytest.mark.parametrize(
    "sent",
    [
        [("a.wav", audio(1)), ("notes.txt", TEXT), ("b.wav", audio(9))],
        [("a.wav", audio(1)), ("notes.txt", TEXT)],
        [("a.wav", audio(1)), ("notes.txt", TEXT), ("b.wav", audio(2)), ("c.wav", audio(3))],
        [("b.wav", audio(2)), ("notes.txt", TEXT), ("a.wav", audio(1))],
        [("a.wav", audio(1)), ("notes.txt", TEXT + b"!"), ("b.wav", audio(2))],
        [("z.wav", audio(7))],
    ],
    ids=["another file", "one less", "one more", "another order", "another bad file", "a single one"],
)
@on_a_loop
async def test_another_payload_is_a_conflict(tmp_path: Path, sent: list[tuple[str, bytes]]) -> None:
    first = [("a.wav", audio(1)), ("notes.txt", TEXT), ("b.wav", audio(2))]
    async with inside(tmp_path) as app, app.client() as client:
        accepted(await post(client, *first, key="once"))
        problem(await post(client, *sent, key="once"), 422, "idempotency_conflict")
        problem(await post(client, *first, key="once", language="de"), 422, "idempotency_conflict")
        assert len((await client.get("/transcriptions")).json()["jobs"]) == 2


@on_a_loop
async def test_an_idempotency_conflict_is_found_when_the_first_file_was_refused(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        accepted(await post(client, ("notes.txt", TEXT), ("a.wav", audio(1)), key="once"))
        problem(await post(client, ("b.wav", audio(2)), key="once"), 422, "idempotency_conflict")


@on_a_loop
async def test_an_idempotency_key_belongs_to_one_route(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        paths = ("/transcribe", "/transcriptions", "/detect-language")
        for first in paths:
            headers = {"Idempotency-Key": first.strip("/")}
            made = await client.post(first, files=files(("a.wav", AUDIO)), headers=headers)
            assert made.status_code in (200, 202), made.text
            for other in paths:
                answer = await client.post(other, files=files(("a.wav", AUDIO)), headers=headers)
                assert (answer.status_code == 422) == (other != first), (first, other, answer.text)


@on_a_loop
async def test_files_that_found_no_place_can_be_sent_again_with_the_same_key(tmp_path: Path) -> None:
    executor = FakeExecutor(held=True)
    async with inside(tmp_path, executor, max_queued_jobs=3) as app, app.client() as client:
        await app.running(client)
        await app.submit(client)
        sent = [(f"{number}.wav", audio(number)) for number in range(3)]
        first = accepted(await post(client, *sent, key="once"))
        assert "error" in first[2]
        executor.release()
        for job in first[:2]:
            await app.finish(client, job["job_id"])
        second = accepted(await post(client, *sent, key="once"))
        assert second[:2] == first[:2]
        assert "job_id" in second[2]


@on_a_loop
async def test_known_speakers_are_kept_with_every_job(tmp_path: Path, speaker: str) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        fields = {"known_speaker_names[]": "Ada", "known_speaker_references[]": speaker}
        jobs = accepted(await post(client, ("a.wav", audio(1)), ("b.wav", audio(2)), **fields))
        for job in jobs:
            kept = app.service.store.get(job["job_id"])
            assert kept is not None
            assert kept.known_speakers == ("Ada",)
            upload = tmp_path / "uploads" / job["job_id"]
            assert sorted(path.name for path in upload.iterdir()) == ["audio", "speaker-0"]


# --- with a model ---


def test_each_file_gets_its_own_text(server: RunningServer, hello: bytes, speech: bytes) -> None:
    case = uuid.uuid4().hex
    with server.client() as client:
        answer = client.post(
            "/transcriptions",
            files=files(("hello.wav", hello), ("notes.txt", TEXT), ("speech.wav", speech)),
            data={"language": "en", "diarize": "no", "align": "no", "metadata": json.dumps({"case": case})},
        )
        first, bad, second = accepted(answer)
        assert (bad["file_name"], bad["error"]["code"]) == ("notes.txt", "invalid_audio")
        texts = []
        for job in (first, second):
            assert finish(client, job["job_id"])["file_name"] == job["file_name"]
            result = client.get(f"{job['status_url']}/result").json()
            assert result["metadata"] == {"case": case}
            texts.append(result["text"].strip())
        assert texts[0] == "Hello"
        assert texts[1] not in ("", "Hello")
        found = client.get("/transcriptions", params={"metadata_key": "case", "metadata_value": case}).json()["jobs"]
        assert {job["job_id"] for job in found} == {first["job_id"], second["job_id"]}
