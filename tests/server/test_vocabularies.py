"""Vocabularies: stored for each key, and used by its jobs as they were at the submission."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from client.blocking import Blocking, MakeClient
from fakes import until
from store.test_deletion import on_disk

from server.conftest import MakeConfig
from server.inside import AUDIO, Inside, inside, on_a_loop
from whisper_api import Client, Server, TranscriptionOptions, Vocabulary, errors
from whisper_api.cli.main import main
from whisper_api.jobs import revocations
from whisper_api.jobs.vocabularies import MAX_TERM_CHARACTERS, MAX_TERMS, MAX_VOCABULARIES
from whisper_api.testing import FakeExecutor

PATH = "/vocabularies/clients"


def terms_of(app: Inside, job_id: str) -> object:
    job = app.service.store.get(job_id)
    assert job is not None
    return job.options.vocabulary


async def refused(client: httpx.AsyncClient, name: str, terms: object) -> tuple[int, str, str]:
    response = await client.put(f"/vocabularies/{name}", json={"terms": terms})
    body = response.json()
    return response.status_code, body["code"], body["detail"]


@on_a_loop
async def test_a_vocabulary_is_its_keys_own(tmp_path: Path) -> None:
    async with (
        inside(tmp_path, enable_authorization=True) as app,
        app.client(app.token("one")) as one,
        app.client(app.token("two", "admin")) as two,
    ):
        stored = await one.put(PATH, json={"terms": [" Zoë Ångström ", "Xu", "Xu"]})
        assert stored.json() == {"name": "clients", "terms": ["Zoë Ångström", "Xu"]} == (await one.get(PATH)).json()
        assert (await one.get("/vocabularies")).json() == {"vocabularies": [stored.json()]}
        assert (await two.get("/vocabularies")).json() == {"vocabularies": []}
        for response in (await two.get(PATH), await two.delete(PATH)):
            assert (response.status_code, response.json()["code"]) == (404, "vocabulary_not_found")
        assert (await app.post(two, vocabulary="clients")).status_code == 400
        assert (await two.put(PATH, json={"terms": ["other"]})).status_code == 200
        assert (
            (await one.put(PATH, json={"terms": ["new"]})).json()["terms"]
            == ["new"]
            == (await one.get(PATH)).json()["terms"]
        )
        assert (await one.delete(PATH)).status_code == 204
        assert (await one.get(PATH)).status_code == 404
        assert (await two.get(PATH)).json()["terms"] == ["other"]


@on_a_loop
async def test_a_job_keeps_the_terms_of_its_submission(tmp_path: Path) -> None:
    async with inside(tmp_path, FakeExecutor(held=True)) as app, app.client() as client:
        await client.put(PATH, json={"terms": ["first"]})
        key = {"Idempotency-Key": "same"}
        job_id = (await app.post(client, key, vocabulary="clients")).json()["job_id"]
        await client.put(PATH, json={"terms": ["second"]})
        later = await app.submit(client, vocabulary="clients")
        assert await client.delete(PATH)
        assert (await app.post(client, key, vocabulary="clients")).json()["job_id"] == job_id
        assert (terms_of(app, job_id), terms_of(app, later)) == (("first",), ("second",))
        app.executor.release()
        await app.finish(client, job_id)
        _, transcript = app.service.result(job_id, None)
        assert transcript.options.vocabulary == ("first",)


@on_a_loop
async def test_terms_may_be_in_the_form_and_on_openais_route(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        await client.put(PATH, json={"terms": ["stored"]})
        assert terms_of(app, await app.submit(client, vocabulary=json.dumps(["Xu", " Xu "]))) == ("Xu",)
        for path, field in (("/v1/audio/transcriptions", "clients"), ("/v1/audio/translations", '["stored"]')):
            files = {"file": ("a.wav", AUDIO)}
            response = await client.post(path, data={"model": "whisper-1", "vocabulary": field}, files=files)
            assert terms_of(app, response.headers["X-Job-ID"]) == ("stored",)
        for wrong in ("nowhere", "[", "[1]", "[]", json.dumps(["x" * (MAX_TERM_CHARACTERS + 1)])):
            response = await app.post(client, vocabulary=wrong)
            assert (response.status_code, response.json()["code"]) == (400, "invalid_field"), wrong
            assert response.json()["detail"].startswith("vocabulary: ")


@on_a_loop
async def test_limits_are_named(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        longest = [f"{number:0{MAX_TERM_CHARACTERS}}" for number in range(MAX_TERMS)]
        assert (await client.put(PATH, json={"terms": longest})).json()["terms"] == longest
        for terms in ([], [*longest, "one more"]):
            status, code, detail = await refused(client, "clients", terms)
            assert (status, code) == (400, "invalid_field")
            assert f"1 to {MAX_TERMS} terms" in detail
        for term in ("", " ", "a\nb", f"x{longest[0]}"):
            assert f"1 to {MAX_TERM_CHARACTERS} characters" in (await refused(client, "clients", [term]))[2]
        for name in ("x" * 65, "-x", "a b", "[x"):
            assert (await refused(client, name, ["term"]))[2].startswith("name: expected 1 to 64")
        assert (await refused(client, "clients", "term"))[1] == "invalid_input"
        deep = await client.put(PATH, content=b'{"more": ' + b"[" * 100_000)
        assert (deep.status_code, "too deep" in deep.json()["detail"]) == (400, True)
        for number in range(MAX_VOCABULARIES - 1):
            app.service.vocabularies.put("", f"name-{number}", ["term"])
        assert f"{MAX_VOCABULARIES} vocabularies" in (await refused(client, "another", ["term"]))[2]
        assert (await client.put(PATH, json={"terms": ["replaced"]})).status_code == 200


@on_a_loop
async def test_deleted_terms_leave_nothing_on_the_disk_and_a_revoked_key_takes_its_own_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "POLL_SECONDS", 0.05)
    words = ["plantedname", "plantedterm", "plantedother", "plantedreplaced"]
    async with inside(tmp_path, enable_authorization=True) as app, app.client(app.token("one")) as one:
        staying = app.client(app.token("two"))
        await staying.put("/vocabularies/stays", json={"terms": ["plantedstays"]})
        await one.put("/vocabularies/plantedname", json={"terms": ["plantedterm", "plantedreplaced"]})
        await one.put("/vocabularies/plantedname", json={"terms": ["plantedterm"]})
        await one.put("/vocabularies/other", json={"terms": ["plantedother"]})
        job_id = await app.submit(one, vocabulary="plantedname")
        await app.finish(one, job_id)
        await one.delete(f"/transcription/{job_id}")
        await one.delete("/vocabularies/plantedname")
        (key,) = (key for key in app.service.keys.list() if key.name == "one")
        app.service.keys.revoke("one")
        await asyncio.to_thread(until, lambda: not app.service.vocabularies.list(key.key_id), "the vocabularies go")
        app.service.store.database.wipe()
        assert on_disk(tmp_path, [*words, "plantedstays"]) == {"plantedstays"}
        await staying.aclose()


@pytest.fixture(params=[Client, Blocking], ids=["Client", "AsyncClient"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


def test_both_clients_and_the_command_store_and_use_vocabularies(
    make_config: MakeConfig,
    make_client: MakeClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with Server(make_config(enable_authorization=False)) as url, make_client(url) as client:
        stored = Vocabulary(name="clients", terms=("Zoë", "Xu"))
        assert client.put_vocabulary("clients", ["Zoë", "Xu", "Zoë"]) == stored == client.vocabulary("clients")
        assert client.vocabularies() == (stored,)
        with pytest.raises(errors.InvalidOption, match="name: "):
            client.put_vocabulary("no name", ["x"])
        with pytest.raises(errors.InvalidOption, match="vocabulary: Vocabulary not found: nowhere"):
            client.submit(AUDIO, TranscriptionOptions(vocabulary="nowhere"))

        (tmp_path / "terms.txt").write_text("Åse\n\n  Bo \nÅse\n", encoding="utf-8")
        server = ("--url", url)
        assert main(["vocabularies", "put", "mine", "terms.txt", *server]) == 0
        assert main(["vocabularies", "show", "mine", *server]) == 0
        assert capsys.readouterr().out == "Åse\nBo\n"
        assert main(["vocabularies", "list", *server]) == 0
        assert "clients" in capsys.readouterr().out
        assert main(["vocabularies", "delete", "mine", *server]) == 0
        assert main(["vocabularies", "show", "mine", *server]) == 2
        assert main(["vocabularies", "put", "mine", "gone.txt", *server]) == 2
        assert "gone.txt" in capsys.readouterr().err
        client.delete_vocabulary("clients")
        with pytest.raises(errors.VocabularyNotFound):
            client.vocabulary("clients")
