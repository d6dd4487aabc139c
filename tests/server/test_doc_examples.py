"""The examples of the documents work as they stand."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from documents import Example, examples
from starlette.applications import Starlette
from starlette.routing import Mount

from server.harness import RunningServer
from whisper_api.access.keys import KeyRing
from whisper_api.engine.diarize.open_models import CAMPPLUS
from whisper_api.store.jobs import JobStore
from whisper_api.webhooks import new_secret, signature

ADDRESS = "http://127.0.0.1:8181"
JOB = "7b0f..."
SPOKEN = "I didn't know you were there"
# The example of embedding leaves two things to its reader: the body of a block, and the import of Starlette.
BODY = "    ...  #"

Names = dict[str, Any]


def by_document(language: str, words: str = "") -> list[tuple[str, list[Example]]]:
    """The examples with these words in them, document by document."""
    found = [example for example in examples(language) if words in example.code]
    return [(name, list(group)) for name, group in itertools.groupby(found, key=lambda example: example.document)]


@pytest.fixture
def beside_call(
    tmp_path: Path, cut: Callable[[float, float], bytes], models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A working directory with the beginning of the call and a configuration in it."""
    (tmp_path / "call.wav").write_bytes(cut(6.0, 8.5))
    # A speaker of the call, later.
    (tmp_path / "ada1.wav").write_bytes(cut(18.7, 2.7))
    (tmp_path / "ada2.wav").write_bytes(cut(27.9, 2.1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHISPER_MODELS_DIR", str(models_dir))
    Path("whisper_api.conf").write_text("WHISPER_API_PORT = 0\nPRELOAD_MODELS = false\nWHISPER_DEVICE = 'cpu'\n")


# --- Python: what each example must have done, by the words in it that no other example has ---


def has_transcribed(names: Names, printed: str) -> None:
    assert f"[SPEAKER_00]: {SPOKEN}." in printed
    if "for word in" in names["code"]:
        assert re.search(r"^\d+\.\d+ \d+\.\d+ SPEAKER_00 Hello\.$", printed, re.MULTILINE)


def has_made_a_table(names: Names, printed: str) -> None:
    table = names["table"]
    assert list(table.columns) == ["word", "start", "end", "score", "speaker", "interpolated", "channel", "timing"]
    assert len(table) == len(names["transcript"].words) > 0
    assert "SPEAKER_00" in set(table["speaker"])


def has_named_the_speaker(names: Names, printed: str) -> None:
    # Six seconds after the beginning she says "This is Diane in New Jersey".
    assert [turn.speaker for turn in names["found"].turns if turn.start < 6 < turn.end] == ["Ada"]
    assert len(names["found"].speakers) == 2
    assert names["found"].speaker_scores["Ada"] > CAMPPLUS.same_person
    assert "SPEAKER audio 1 " in printed


def has_laid_out_subtitles(names: Names, printed: str) -> None:
    assert names["text"].startswith("1\n00:00:0")
    lines = [line for line in names["text"].splitlines() if "-->" not in line]
    assert max(map(len, lines)) <= 42
    assert all("subtitles" in warning for warning in names["warnings"])


def has_embedded_the_server(names: Names, printed: str) -> None:
    assert names["alive"].status_code == 200

    async def ask() -> list[int]:
        parent = names["parent"]
        async with parent.router.lifespan_context(parent):
            transport = httpx.ASGITransport(parent)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return [(await client.get(f"/whisper/{path}")).status_code for path in ("livez", "docs", "status")]

    assert asyncio.run(ask()) == [200, 200, 401]


def has_a_result(names: Names, printed: str) -> None:
    result = names["result"]
    assert SPOKEN in (result["text"] if isinstance(result, dict) else result.text)
    assert printed


def has_used_openai(names: Names, printed: str) -> None:
    streams = "stream=True" in names["code"]
    assert printed.count(SPOKEN) >= (2 if streams else 1)
    assert ("TranscriptionTextDoneEvent" in printed) == streams


def has_copied_the_database(names: Names, printed: str) -> None:
    store = JobStore(Path("backup.db"))
    try:
        assert "tests-user" in {key.name for key in KeyRing(store).list()}
    finally:
        store.close()


def has_verified_a_webhook(names: Names, printed: str) -> None:
    secret = names["secret"] = new_secret()
    body = b'{"type":"transcription.completed","timestamp":"2030-01-01T00:00:00Z","data":{"job_id":"7b0f"}}'
    now = int(time.time())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": signature([secret], "msg_1", now, body),
    }

    async def send() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(names["receiver"]), base_url="http://a") as client:
            return [
                (await client.post("/hook", content=sent, headers=headers)).status_code for sent in (body, body, b"{}")
            ]

    assert asyncio.run(send()) == [204, 204, 401]
    assert names["seen"] == {"msg_1"}


DONE: dict[str, Callable[[Names, str], None]] = {
    "import Engine": has_transcribed,
    "engine.enroll": has_named_the_speaker,
    "import RenderOptions": has_laid_out_subtitles,
    "import pandas": has_made_a_table,
    "create_app": has_embedded_the_server,
    "import requests": has_a_result,
    "import Client": has_a_result,
    "import AsyncClient": has_a_result,
    "import OpenAI": has_used_openai,
    "import InvalidWebhook": has_verified_a_webhook,
    "import sqlite3": has_copied_the_database,
}


@pytest.mark.parametrize(("document", "blocks"), by_document("python"))
@pytest.mark.usefixtures("beside_call", "base_model_dir", "ecapa_path")
def test_the_examples_in_python(
    server: RunningServer, document: str, blocks: list[Example], capsys: pytest.CaptureFixture[str]
) -> None:
    names: Names = {"key": server.user_key, "Starlette": Starlette, "Mount": Mount, "httpx": httpx}
    for block in blocks:
        (done,) = [check for words, check in DONE.items() if words in block.code]
        code = block.code.replace(ADDRESS, server.url).replace("var/jobs.db", str(server.data_dir / "jobs.db"))
        code = code.replace(BODY, "    alive = httpx.get(f'{url}/livez')  #")
        names["code"] = code
        exec(code, names)
        done(names, capsys.readouterr().out)


# --- the shell: what each call of curl must answer, by the words in it that no other call has ---

ANSWERS = {
    "sync=true": SPOKEN,
    "name=Ada": '"name":"Ada"',
    "identify=true": '"status_url"',
    "language=en http": '"status_url"',
    "wait=60": '"status"',
    "/result\n": SPOKEN,
    "format=srt": "1\n00:00:0",
    "/events": "event: completed",
    "--data-binary": '"status_url"',
    "-X PUT": '"terms":["Zoë Ångström","Kubernetes"]',
    "webhooks/secret": '{"secret":"whsec_',
    "vocabulary=clients": '"status_url"',
    "/admin/keys": '"token":"wk_',
}


@pytest.mark.parametrize(("document", "blocks"), by_document("sh", "curl "))
@pytest.mark.usefixtures("beside_call")
def test_the_examples_with_curl(server: RunningServer, document: str, blocks: list[Example]) -> None:
    calls = [line for block in blocks for line in block.code.splitlines() if line.startswith("curl")]
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    environment = {**os.environ, "KEY": server.user_key, "ADMIN_KEY": server.admin_key}
    job = JOB

    def answer(call: str) -> str:
        command = f"{call.replace(ADDRESS, server.url).replace(JOB, job)} --silent --fail"
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=True)
        return done.stdout.decode()

    for call in calls:
        (expected,) = [text for words, text in ANSWERS.items() if words in f"{call}\n"]
        told = answer(call)
        while expected == '"status"' and '"Completed"' not in told:
            assert '"Failed"' not in told
            told = answer(call)
        assert expected in told
        if accepted := re.search(r'"job_id":"([^"]+)","status_url"', told):
            job = accepted[1]
