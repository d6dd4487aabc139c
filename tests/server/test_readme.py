"""The examples of the README work as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from server.harness import RunningServer

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8181"


def examples(language: str, heading: str = "The API by example") -> list[str]:
    section = README.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def beside_call(tmp_path: Path, sample_call: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the call in it."""
    (tmp_path / "call.wav").symlink_to(sample_call)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", examples("python"), ids=["requests", "client", "asyncio", "openai"])
@pytest.mark.usefixtures("beside_call")
def test_the_examples_in_python(server: RunningServer, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"key": server.user_key}
    exec(code.replace(ADDRESS, server.url), names)
    printed = capsys.readouterr().out
    if "openai" in code:
        assert printed.count("I didn't know you were there") >= 2
        assert "TranscriptionTextDoneEvent" in printed
        return
    result = names["result"]
    text = result["text"] if isinstance(result, dict) else result.text
    assert "I didn't know you were there" in text
    assert printed


@pytest.mark.usefixtures("beside_call")
def test_the_example_with_curl(server: RunningServer) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    calls = [line for code in examples("sh") for line in code.splitlines() if line.startswith("curl")]
    environment = {**os.environ, "KEY": server.user_key}

    def answer(call: str) -> str:
        call = call.replace(ADDRESS, server.url)
        done = subprocess.run(["sh", "-c", f"{call} --silent --fail"], env=environment, capture_output=True, check=True)
        return done.stdout.decode()

    submitted = answer(calls[0])
    match = re.search(r'"job_id":"([^"]+)"', submitted)
    assert match is not None
    job, shortened = match[1], "7b0f..."
    status = ""
    while '"Completed"' not in status:
        status = answer(calls[1].replace(shortened, job))
        assert '"Failed"' not in status
    assert "I didn't know you were there" in answer(calls[2].replace(shortened, job))
    assert answer(calls[3].replace(shortened, job)).startswith("1\n00:00:0")
    assert "event: completed" in answer(calls[4].replace(shortened, job))


@pytest.mark.usefixtures("beside_call", "base_model_dir", "ecapa_path")
def test_the_example_of_the_library(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHISPER_MODELS_DIR", str(models_dir))
    names: dict[str, Any] = {}
    exec(examples("python", "Library")[0], names)
    printed = capsys.readouterr().out
    assert "[SPEAKER_00]: I didn't know you were there." in printed
    assert re.search(r"^\d+\.\d+ \d+\.\d+ SPEAKER_00 Hello\.$", printed, re.MULTILINE)
    before = names["transcript"]
    exec(examples("python", "Library")[1], names)
    assert names["transcript"] == before
    table = names["table"]
    assert list(table.columns) == ["word", "start", "end", "score", "speaker", "interpolated"]
    assert len(table) == len(before.words) > 0
    assert "SPEAKER_00" in set(table["speaker"])


def test_the_example_of_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("whisper_api.conf").write_text("WHISPER_API_PORT = 0\nPRELOAD_MODELS = false\nWHISPER_DEVICE = 'cpu'\n")
    names: dict[str, Any] = {"Starlette": Starlette, "Mount": Mount, "httpx": httpx}
    code = examples("python", "Library")[2]
    # What it leaves to its reader.
    assert code.count("    ...  #") == 1
    exec(code.replace("    ...  #", "    alive = httpx.get(f'{url}/livez')  #"), names)
    assert names["alive"].status_code == 200

    async def ask() -> list[int]:
        parent = names["parent"]
        async with parent.router.lifespan_context(parent):
            transport = httpx.ASGITransport(parent)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return [(await client.get(f"/whisper/{path}")).status_code for path in ("livez", "docs", "status")]

    assert asyncio.run(ask()) == [200, 200, 401]
