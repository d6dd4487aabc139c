"""``/speakers`` over REST, and the clients and the command that use it."""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client.blocking import Blocking

from server.inside import AUDIO, Inside, inside, on_a_loop, problem
from whisper_api import Client, Config, InvalidOption, Server, SpeakerExists, SpeakerNotFound
from whisper_api.cli.main import main
from whisper_api.jobs.local_executor import EXECUTORS
from whisper_api.testing import FakeExecutor

Cut = Callable[[float, float], bytes]


def files(*recordings: bytes, name: str = "samples") -> list[tuple[str, tuple[str, bytes]]]:
    return [(name, ("a.wav", recording)) for recording in recordings]


def data_url(recording: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(recording).decode()}"


def written_in(directory: Path) -> list[bytes]:
    """The contents of the files of a directory."""
    return [path.read_bytes() for path in directory.rglob("*") if path.is_file()]


@on_a_loop
async def test_a_voice_is_enrolled_used_renamed_and_deleted(tmp_path: Path, cut: Cut) -> None:
    sample = cut(10.0, 3.0)
    async with inside(tmp_path) as app, app.client() as client:
        made = await client.post("/speakers", data={"name": " Ada "}, files=files(sample, sample, name="samples[]"))
        assert made.status_code == 201, made.text
        ada = made.json()
        assert made.headers["location"] == f"/speakers/{ada['speaker_id']}"
        assert (ada["name"], ada["samples"], ada["model"], ada["warnings"]) == ("Ada", 2, "fake", [])
        path = made.headers["location"]
        as_json = await client.post(f"{path}/samples", json={"samples": [data_url(sample), data_url(sample + b"\0")]})
        assert (as_json.status_code, as_json.json()["samples"]) == (200, 4)
        assert as_json.json()["warnings"][0].startswith("recording 2 does not sound like")
        text_field = await client.post(f"{path}/samples", data={"samples": data_url(sample)}, files=files(sample))
        assert text_field.json()["samples"] == 6
        job_id = await app.submit(client, identify="true")
        await app.finish(client, job_id)
        assert app.executor.voices[job_id] == ("Ada",)
        renamed = await client.patch(path, json={"name": "Ada L."})
        assert renamed.json()["name"] == "Ada L."
        assert (await client.get("/speakers")).json() == {"speakers": [(await client.get(path)).json()]}
        assert (await client.delete(path)).json() == {"success": True}
        for answer in (await client.get(path), await client.delete(path), await client.get("/speakers/none")):
            problem(answer, 404, "speaker_not_found")
    assert written_in(tmp_path)
    assert not any(sample in content for content in written_in(tmp_path)), "recordings do not get to the disk"


@on_a_loop
async def test_keys_see_their_own_speakers_and_lose_them_when_they_are_revoked(tmp_path: Path, cut: Cut) -> None:
    sample = cut(10.0, 3.0)
    async with inside(tmp_path, enable_authorization=True) as app:
        a, b, boss = app.token("a"), app.token("b"), app.token("boss", "admin")
        async with app.client(a) as mine, app.client(b) as theirs, app.client(boss) as all_of_them:
            path = (await mine.post("/speakers", data={"name": "Ada"}, files=files(sample))).headers["location"]
            await theirs.post("/speakers", data={"name": "Ada"}, files=files(sample))
            assert (await theirs.get(path)).status_code == 404
            assert (await theirs.delete(path)).status_code == 404
            assert (await theirs.patch(path, json={"name": "Eve"})).status_code == 404
            assert (await theirs.post(f"{path}/samples", files=files(sample))).status_code == 404
            assert (await all_of_them.get(path)).status_code == 200
            assert len((await all_of_them.get("/speakers")).json()["speakers"]) == 2
            app.service.keys.revoke("a")
            assert (await mine.get(path)).status_code == 401
            assert (await all_of_them.get(path)).status_code == 404
            assert len((await all_of_them.get("/speakers")).json()["speakers"]) == 1


async def _refused(app: Inside, code: str, reason: str, **request: Any) -> None:
    async with app.client() as client:
        answer = await client.post("/speakers", **request)
        assert reason in problem(answer, 413 if code == "body_too_large" else 400, code)["detail"]
        assert (await client.get("/speakers")).json() == {"speakers": []}


@on_a_loop
async def test_what_cannot_be_used_is_named(tmp_path: Path, cut: Cut) -> None:
    good, ada = cut(10.0, 3.0), {"name": "Ada"}
    async with inside(tmp_path) as app:
        for code, reason, request in (
            ("invalid_field", "name: expected names of 1 to 255", {"files": files(good)}),
            ("invalid_field", "reserved", {"data": {"name": "speaker_01"}, "files": files(good)}),
            ("invalid_field", "samples: expected 1 to 20", {"json": ada}),
            ("invalid_field", "number 2 has 1.0", {"data": ada, "files": files(good, cut(10.0, 1.0))}),
            ("invalid_field", "number 1 has more than 10", {"data": ada, "files": files(cut(10.0, 12.0))}),
            ("invalid_field", "recording 1", {"data": ada, "files": files(b"no sound")}),
            ("invalid_field", "number 1 is not a data URL", {"json": {**ada, "samples": ["a.wav"]}}),
            ("invalid_form", "only samples may be files", {"data": ada, "files": files(good, name="file")}),
            ("invalid_form", "more than 20 recordings", {"data": ada, "files": files(*[AUDIO] * 21)}),
            ("invalid_input", "Expected `str`", {"json": {"name": 5}}),
            ("not_multipart", "JSON with data URLs", {"content": b"x", "headers": {"Content-Type": "text/plain"}}),
            ("body_too_large", "16777216", {"data": ada, "files": files(bytes(17 << 20))}),
        ):
            await _refused(app, code, reason, **request)


@on_a_loop
async def test_a_name_or_a_number_that_is_taken_is_a_conflict(tmp_path: Path, cut: Cut) -> None:
    sample = cut(10.0, 3.0)
    async with inside(tmp_path, max_speakers_per_key=2) as app, app.client() as client:
        paths = [
            (await client.post("/speakers", data={"name": name}, files=files(sample))).headers["location"]
            for name in ("Ada", "Bo")
        ]
        again = await client.post("/speakers", data={"name": "Ada"}, files=files(sample))
        problem(again, 409, "speaker_exists")
        assert "Ada" not in again.text
        third = await client.post("/speakers", data={"name": "Cy"}, files=files(sample))
        problem(third, 409, "speaker_limit")
        renamed = await client.patch(paths[1], json={"name": "Ada"})
        problem(renamed, 409, "speaker_exists")


@on_a_loop
async def test_the_routes_of_openai_name_known_speakers_where_they_tell_who_speaks(tmp_path: Path, cut: Cut) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        await client.post("/speakers", data={"name": "Ada"}, files=files(cut(10.0, 3.0)))
        for response_format, names in (("diarized_json", ("Ada",)), ("json", ())):
            answer = await client.post(
                "/v1/audio/transcriptions",
                data={"model": "whisper-1", "identify": "true", "response_format": response_format},
                files={"file": ("a.wav", AUDIO)},
            )
            assert answer.status_code == 200, answer.text
            assert app.executor.voices[answer.headers["x-job-id"]] == names
            assert ("identify was ignored" in answer.headers.get("warning", "")) == (not names)


@on_a_loop
async def test_the_routes_of_openai_name_tasks_themselves(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        answer = await client.post(
            "/v1/audio/transcriptions", data={"model": "whisper-1", "task": "diarize"}, files={"file": ("a.wav", AUDIO)}
        )
        assert answer.status_code == 200
        assert "task" in answer.headers["warning"]


# --- the clients and the command ---


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without keys, whose jobs and voices are made up."""
    directory = tmp_path_factory.mktemp("speakers")
    config = Config(port=0, data_dir=directory / "data", tmp_dir=directory / "uploads", enable_authorization=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXECUTORS, "local", lambda config: FakeExecutor())
        with Server(config) as url:
            yield url


@pytest.mark.parametrize("make_client", [Client, Blocking], ids=["Client", "AsyncClient"])
def test_a_client_enrols_and_manages_speakers(url: str, make_client: Any, cut: Cut, tmp_path: Path) -> None:
    recording = tmp_path / "ada.wav"
    recording.write_bytes(cut(10.0, 3.0))
    name = f"Ada {uuid.uuid4()}"
    with make_client(url) as client:
        ada = client.enroll(name, [recording, recording.read_bytes()])
        assert (ada.name, ada.samples) == (name, 2)
        assert client.add_samples(ada.speaker_id, [recording]).samples == 3
        assert client.rename_speaker(ada.speaker_id, f"{name} L.").name == f"{name} L."
        assert [each.name for each in client.speakers() if each.speaker_id == ada.speaker_id] == [f"{name} L."]
        with pytest.raises(SpeakerExists):
            client.enroll(f"{name} L.", [recording])
        with pytest.raises(InvalidOption) as caught:
            client.enroll("SPEAKER_00", [recording])
        assert caught.value.field == "name"
        client.delete_speaker(ada.speaker_id)
        with pytest.raises(SpeakerNotFound) as gone:
            client.delete_speaker(ada.speaker_id)
        assert gone.value.speaker_id == ada.speaker_id


def test_the_command_manages_speakers_by_name(
    url: str, cut: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in [*os.environ]:
        if variable.startswith("WHISPER_"):
            monkeypatch.delenv(variable)
    recording = tmp_path / "bo.wav"
    recording.write_bytes(cut(10.0, 3.0))
    odd = tmp_path / "odd.wav"
    odd.write_bytes(cut(10.0, 3.0) + b"\0")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["speakers", *arguments, "--url", url])
        return code, *capsys.readouterr()

    code, out, _ = run("create", "Bo", str(recording))
    assert code == 0
    assert "Bo" in out
    code, _, err = run("add", "Bo", str(recording), str(odd))
    assert code == 0
    assert "warning: recording 2 does not sound like the others" in err
    assert run("create", "Bo", str(recording))[0] == 2
    assert run("create", "Cy", "missing.wav")[0] == 1
    assert run("rename", "Bo", "Bob")[0] == 0
    assert "Bob" in run("list")[1]
    code, _, err = run("delete", "Bo")
    assert (code, "Speaker not found" in err) == (2, True)
    assert run("delete", "Bob")[0] == 0
    assert "Bob" not in run("list")[1]
