"""The names of models on every door: ``/v1``, the native form, the library, the command line and the configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.harness import RunningServer, problem, transcribed
from server.inside import AUDIO, inside, on_a_loop
from server.openai_inside import PATH
from whisper_api import Engine, TranscriptionOptions
from whisper_api.cli.main import main
from whisper_api.config import Config
from whisper_api.engine.models.names import OPENAI_NAMES
from whisper_api.errors import UnknownModel
from whisper_api.jobs.local_executor import LocalExecutor
from whisper_api.testing import FakeExecutor

# The meaning of each name with this configuration, on every route.
SETTINGS: dict[str, object] = {"WHISPER_MODEL": "base", "MODEL_ALIASES": "my-asr=tiny.en, scribe=whisper-1"}
MEANINGS = {
    **dict.fromkeys((*OPENAI_NAMES, "gpt-4o-mini-transcribe-2025-12-15", "openai/whisper-1", "scribe", "auto"), "base"),
    **dict.fromkeys(("Systran/faster-whisper-base", "openai/whisper-base", "whisper-base"), "base"),
    **dict.fromkeys(("my-asr", "tiny.en", "Systran/faster-whisper-tiny.en", "openai/whisper-tiny.en"), "tiny.en"),
}


@pytest.fixture(scope="module")
def named(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, base_model_dir: Path, tiny_en_model_dir: Path
) -> Iterator[RunningServer]:
    """A server with aliases."""
    with RunningServer(tmp_path_factory.mktemp("named"), models_dir, {**SETTINGS, "PRELOAD_MODELS": False}) as server:
        yield server


@pytest.mark.parametrize("name", MEANINGS)
def test_a_name_on_the_doors_of_the_server(named: RunningServer, hello: bytes, name: str) -> None:
    with named.client() as client:
        answer = client.post(PATH, files={"file": hello}, data={"model": name, "response_format": "text"})
        assert answer.status_code == 200, answer.text
        result = client.get(f"/transcription/{answer.headers['X-Job-ID']}/result").json()
        assert result["model"] == MEANINGS[name]
        assert transcribed(client, hello, model=name)["model"] == MEANINGS[name]
        assert client.get(f"/v1/models/{name}").json()["id"] == name


def test_every_listed_model_can_be_asked_for(named: RunningServer) -> None:
    with named.client() as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert {"base", "tiny.en", "my-asr", "scribe", *OPENAI_NAMES} <= set(listed)
        assert len(listed) == len(set(listed))
        assert all(client.get(f"/v1/models/{name}").json()["created"] > 0 for name in listed)


def test_the_suggestion_names_each_name_once(named: RunningServer, speech: bytes) -> None:
    with named.client() as client:
        for asked, near in (("bas", "base"), ("my-as", "my-asr"), ("whisper-", "whisper-1"), ("large_v3", "large-v3")):
            refused = client.post(PATH, files={"file": speech}, data={"model": asked}).json()["error"]
            assert (refused["code"], refused["param"]) == ("model_not_found", "model")
            native = problem(client.post("/transcribe", files={"file": speech}, data={"model": asked}), 422)["detail"]
            for message in (refused["message"], native):
                found = re.search(r"did you mean (.*)\?", message)
                suggested = found[1].split(" or ") if found else []
                assert len(suggested) == len(set(suggested))
                assert (near in suggested) or message == native


def test_a_name_in_the_library(models_dir: Path, base_model_dir: Path, tiny_en_model_dir: Path, hello: bytes) -> None:
    aliases = {"my-asr": "tiny.en", "scribe": "whisper-1"}
    with Engine(model="base", model_aliases=aliases, models_dir=models_dir, device="cpu", offline=True) as engine:
        for name in ("gpt-4o-transcribe", "my-asr", "scribe", "openai/whisper-tiny.en"):
            options = TranscriptionOptions(model=name, language="en", align=False, diarize=False)
            assert engine.transcribe(hello, options).model == MEANINGS[name]
    with Engine(model="whisper-1", models_dir=models_dir, device="cpu", offline=True) as engine:
        assert engine.default_model == "base"


@pytest.mark.parametrize("name", ["whisper-1", "openai/whisper-base", "scribe", "my-asr"])
def test_a_name_on_the_command_line_and_in_the_configuration(
    tmp_path: Path,
    models_dir: Path,
    tiny_en_model_dir: Path,
    hello: bytes,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(hello)
    config = tmp_path / "whisper_api.conf"
    config.write_text(f'WHISPER_MODELS_DIR = "{models_dir}"\nMODEL_ALIASES = "{SETTINGS["MODEL_ALIASES"]}"\n')
    flags = ["--config", str(config), "--model", name, "--language", "en", "--format", "json", "--no-align"]
    assert main(["transcribe", *flags, "--no-diarize", str(clip)]) == 0
    assert "ello" in json.dumps(json.loads(capsys.readouterr().out))
    executor = LocalExecutor(Config.load(config, flags={"WHISPER_MODEL": name, "WHISPER_DEVICE": "cpu"}).config)
    assert executor.model_name(TranscriptionOptions()) == MEANINGS[name]
    executor.close()


def test_a_caller_reaches_no_directory_but_an_alias_may_name_one(tmp_path: Path) -> None:
    own = tmp_path / "own"
    executor = LocalExecutor(Config(model="base", model_aliases=f"mine={own}, theirs=organisation/name", device="cpu"))
    for name in ("mine", "MINE", "theirs", "whisper-1"):
        executor.check(TranscriptionOptions(model=name, diarize=False), None)
    assert executor.model_name(TranscriptionOptions(model="mine")) == str(own)
    for name in (str(tmp_path), "organisation/other", "../own"):
        with pytest.raises(UnknownModel):
            executor.check(TranscriptionOptions(model=name, diarize=False), None)
    executor.close()


@on_a_loop
async def test_the_model_behind_an_alias_is_private(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with (
        inside(tmp_path, executor, model="base", model_aliases="mine=/srv/secret/own") as app,
        app.client() as client,
    ):
        assert "secret" not in (await client.get("/v1/models")).text
        answer = await client.post(PATH, files={"file": ("a.wav", AUDIO)}, data={"model": "mine"})
        assert answer.status_code == 200


def test_aliases_in_the_commands_for_models(
    tmp_path: Path, models_dir: Path, tiny_en_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "whisper_api.conf"
    config.write_text(f'WHISPER_MODELS_DIR = "{models_dir}"\nMODEL_ALIASES = "my-asr=openai/whisper-tiny.en"\n')
    for name, code in (("my-asr", 0), ("openai/whisper-tiny.en", 0), ("my-as", 2)):
        assert main(["models", "pull", name, "--config", str(config)]) == code
        assert code or str(models_dir / "whisper" / "tiny.en") in capsys.readouterr().out
