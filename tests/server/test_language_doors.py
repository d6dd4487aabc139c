"""Every address that takes a language understands the same codes and names, and refuses the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import config_in

from server.inside import AUDIO, Inside, inside, on_a_loop
from whisper_api import create_app
from whisper_api.engine.engine import Engine
from whisper_api.errors import ConfigError, InvalidOption
from whisper_api.options import TranscriptionOptions

# The path, the field of the file, and whether the language is in the query.
DOORS = (
    ("/transcribe", "file", False),
    ("/transcriptions", "file", False),
    ("/detect-language", "file", False),
    ("/v1/audio/transcriptions", "file", False),
    ("/asr", "audio_file", True),
)
WRITTEN = {
    **{
        "nb-NO": "no",
        "fil": "tl",
        "cmn": "zh",
        "iw": "he",
        "jv": "jw",
        "in": "id",
        "eng": "en",
        "fre": "fr",
        "JPN": "ja",
    },
    **{"pt_BR": "pt", "zh-TW": "zh", "French": "fr", "français": "fr", "yue": "yue", "AUTO": "auto", "und": "auto"},
}
REFUSED = {"gsw": "de (german)", "tlh": "Klingon", "frnch": "fr (french)", "x-y": "is not a language"}


async def ask(app: Inside, client: httpx.AsyncClient, door: tuple[str, str, bool], language: str) -> httpx.Response:
    path, field, in_query = door
    given: dict[str, Any] = {"params": {"language": language}} if in_query else {"data": {"language": language}}
    return await client.post(path, files={field: ("a.wav", AUDIO)}, **given)


@on_a_loop
async def test_every_door_understands_the_same(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for door in DOORS:
            for written, code in WRITTEN.items():
                answer = await ask(app, client, door, written)
                assert answer.is_success, (door, written, answer.text)
                newest = app.service.store.get(app.service.list_jobs(None)[0][0].job_id)
                assert newest is not None
                assert newest.options.language == code, (door, written)


@on_a_loop
async def test_every_door_refuses_the_same_with_the_nearest(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        for door in DOORS:
            for written, told in REFUSED.items():
                answer = await ask(app, client, door, written)
                assert answer.status_code == 400, (door, written)
                assert told in answer.text, (door, written)


def test_the_configuration_accepts_the_same_languages(tmp_path: Path) -> None:
    assert create_app(config_in(tmp_path, language="nb-NO")) is not None
    with pytest.raises(ConfigError, match=r"WHISPER_LANGUAGE: .*Swiss German.*de \(german\)"):
        create_app(config_in(tmp_path, language="gsw"))


def test_the_library_accepts_the_same_languages(engine: Engine) -> None:
    for written, code in WRITTEN.items():
        assert engine.resolve(TranscriptionOptions(language=written)).language == code
    with pytest.raises(InvalidOption, match=r"de \(german\)"):
        engine.transcribe(AUDIO, TranscriptionOptions(language="gsw"))


def test_the_command_line_accepts_the_same_languages(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(AUDIO)
    command = [sys.executable, "-m", "whisper_api", "transcribe", "--offline", "--language", "gsw", "a.wav"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "de (german)" in done.stderr
