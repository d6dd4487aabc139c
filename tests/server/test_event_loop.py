"""The thread of the event loop imports nothing heavy and reads no disk, whatever is asked of a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# A process of its own: an audit hook cannot be taken off again, and nothing heavy may be imported yet.
PROGRAM = r"""
import asyncio, json, sys, threading
from pathlib import Path

tests, directory, models = sys.argv[1:]
sys.path.insert(0, tests)
import httpx

from server.inside import AUDIO, ORIGIN
from whisper_api import Config
from whisper_api.access.keys import KeyRing
from whisper_api.jobs.service import JobService
from whisper_api.server.app import ROUTES, create_app

HEAVY = {"torch", "ctranslate2", "transformers", "faster_whisper", "pyannote", "onnxruntime", "av", "numpy"}
loop_thread = None
seen = []


def stack():
    # Not by the module traceback, which would read the text of each line from the disk.
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back


def hook(event, arguments):
    if threading.get_ident() != loop_thread:
        return
    if event == "import":
        if arguments[0].partition(".")[0] not in HEAVY:
            return
    elif event not in ("open", "sqlite3.connect", "os.listdir", "os.scandir", "os.mkdir", "os.remove"):
        return
    frames = list(stack())
    ours = [f"{Path(file).name}:{line} {name}" for file, line, name in frames if "/whisper_api/" in file]
    # A small module that is imported late reads its own file, once.
    importing = event != "import" and any("importlib" in file for file, _, _ in frames)
    if ours and not importing:
        seen.append((event, str(arguments[0]), ours[:4]))


async def main():
    global loop_thread
    config = Config(
        data_dir=Path(directory) / "data", tmp_dir=Path(directory) / "uploads", models_dir=Path(models),
        model="base", device="auto", preload_models=False, language="en",
    )
    service = await asyncio.to_thread(JobService.open, config)
    app = create_app(config, service=service)
    key = (await asyncio.to_thread(KeyRing(service.store).create, "user", "user"))[1]
    answers = {}
    async with app.router.lifespan_context(app):
        await asyncio.to_thread(service.start)
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=headers, timeout=60) as client:
            loop_thread = threading.get_ident()
            file = {"file": ("a.wav", AUDIO)}

            async def ask(method, path, **arguments):
                answer = await client.request(method, path, **arguments)
                answers[f"{method} {path}"] = answer.status_code
                return answer

            job = (await ask("POST", "/transcribe", files=file)).json()
            several = [("file", ("a.wav", AUDIO)), ("file", ("b.wav", AUDIO))]
            await ask("POST", "/transcriptions", files=several)
            await ask("POST", "/detect-language", files=file, data={"sync": "false"})
            await ask("POST", "/transcribe", files=file, data={"device": "cuda:7"})
            await ask("POST", "/v1/audio/transcriptions", files=file, data={"model": "nonsense"})
            await ask("POST", "/v1/audio/translations", files=file, data={"model": "nonsense"})
            one = f"/transcription/{job['job_id']}"
            for path in (one, f"{one}?wait=0.1", f"{one}/result", f"{one}/result?format=srt", f"{one}/corrections"):
                await ask("GET", path)
            await ask("PUT", f"{one}/corrections", json={"words": []})
            for path in ROUTES:
                if "{" not in path:
                    await ask("GET", path)
            await ask("GET", "/v1/models/base")
            await ask("GET", "/transcriptions?metadata_key=a")
            await ask("DELETE", f"{one}?force=true")
            await ask("GET", f"{one}/events")
            loop_thread = None
    await asyncio.to_thread(service.close)
    print(json.dumps({"answers": answers, "seen": seen}))


sys.addaudithook(hook)
asyncio.run(main())
"""


def test_no_route_imports_heavy_modules_or_touches_the_disk_on_the_loop(tmp_path: Path, models_dir: Path) -> None:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tests), str(tmp_path), str(models_dir)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["seen"], json.dumps(told["seen"], indent=1)
    answers = told["answers"]
    assert answers["POST /transcribe"] in (202, 422)
    assert not [path for path, status in answers.items() if status >= 500], answers
    assert len(answers) > 25
