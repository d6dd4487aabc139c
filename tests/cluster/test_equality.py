"""A job on a cluster gives what it gives without one, with real models; versions, secrets and a missing Ray."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import config_in
from forked import CONTEXT, MODULES

from cluster.conftest import SCRIPTED, Executors
from cluster.loopback import ROOT, Loopback, Outcome, outcome, row
from cluster.running import DEADLINE, Watched, script
from whisper_api.cluster.executor import LOCAL_ENGINE, RayExecutor
from whisper_api.cluster.security import ray_environment
from whisper_api.config import Config
from whisper_api.jobs.local_executor import LocalExecutor
from whisper_api.options import TranscriptionOptions

pytestmark = pytest.mark.cluster

# Audio, fields and options of jobs by their names.
Jobs = dict[str, tuple[bytes, dict[str, Any], dict[str, Any]]]

TOKEN = "hf_aTokenThatNobodyMayFind"
TEXT = "Wordsthatnobodymayfind"
# What Ray's dashboard shows: tasks with their names and errors, actors, processes, jobs and their entry points.
TABLES = """
import contextlib, sys, time
from pathlib import Path
import ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
from ray._private.state import state
accessor = state._connect_and_get_accessor()
def tables():
    rows = [
        *accessor.get_task_events(), *accessor.get_worker_table(), *accessor.get_actor_table(None, None),
        *accessor.get_job_table(), *accessor.get_node_table(),
    ]
    return b"".join(row if isinstance(row, bytes) else repr(row).encode() for row in rows)
deadline = time.monotonic() + 60
while b"EngineActor.run" not in tables() and time.monotonic() < deadline:
    time.sleep(0.1)
titles = []
for path in Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):
        titles.append(path.read_bytes())
sys.stdout.buffer.write(tables() + b"".join(title for title in titles if title.startswith(b"ray::")))
"""


@pytest.mark.models
def test_text_words_speakers_events_and_warnings_are_those_of_a_local_engine(
    new_executor: Executors,
    models_dir: Path,
    base_model_dir: Path,
    campplus_path: Path,
    tmp_path: Path,
    cut: Callable[[float, float], bytes],
) -> None:
    settings = {"models_dir": models_dir, "device": "cpu", "model": "base", "language": "en", "preload_models": False}
    jobs: Jobs = {
        "two voices": (cut(12.0, 8.0), {"known_speakers": ("Ann",)}, {}),
        "translated": (cut(12.0, 5.0), {}, {"task": "translate", "language": "fr", "diarize": False}),
        "short": (cut(0.0, 0.2), {}, {}),
    }
    (tmp_path / "speaker-0").write_bytes(cut(14.0, 3.0))
    CONTEXT.set_forkserver_preload([*MODULES])
    # The memory of the local engine goes with its process.
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as process:
        here = process.submit(local_outcomes, config_in(tmp_path / "local", **settings), jobs, tmp_path).result(
            DEADLINE
        )
    # One engine at a time is in memory.
    cluster = new_executor(LOCAL_ENGINE, engines=1, cluster_workers=1, **settings)
    there = outcomes(cluster, jobs, tmp_path)
    for name in jobs:
        assert row(name, here[name], there[name])["differing"] == []
        assert here[name].transcript["segments"] or name == "short"
        assert here[name].events
    (resident,) = {each.resident_models for each in cluster.facts().engines if each.resident_models} or {()}
    assert "base" in resident


def local_outcomes(config: Config, jobs: Jobs, folder: Path) -> dict[str, Outcome]:
    with contextlib.closing(LocalExecutor(config)) as local:
        return outcomes(local, jobs, folder)


def outcomes(executor: Any, jobs: Jobs, folder: Path) -> dict[str, Outcome]:
    found = {}
    for name, (audio, fields, options) in jobs.items():
        (folder / "audio").write_bytes(audio)
        found[name] = outcome(executor, folder / "audio", TranscriptionOptions(**options), **fields)
    return found


def test_tokens_and_texts_are_in_no_log_of_ray(new_executor: Executors, loopback: Loopback, tmp_path: Path) -> None:
    executor = new_executor(hf_token=TOKEN, log_level="debug")
    watched = Watched(executor, script(tmp_path, f"say {TEXT}", "token"), hf_token=f"{TOKEN}2")
    assert watched.run().text == f"{TOKEN} {TOKEN}2"
    with pytest.raises(Exception, match=TEXT):
        Watched(executor, script(tmp_path, f"fail {TEXT}")).run()
    shown = subprocess.run(
        [sys.executable, "-c", TABLES, loopback.address],
        capture_output=True,
        env={**os.environ, **ray_environment(None)},
    )
    assert shown.returncode == 0, shown.stderr
    assert b"EngineActor.run" in shown.stdout
    assert [secret for secret in (TOKEN, TEXT) if secret.encode() in shown.stdout] == []
    logs = [path for path in loopback.session.rglob("*") if path.is_file()]
    assert any("core-worker" in path.name for path in logs)
    found = [path.name for path in logs for secret in (TOKEN, TEXT) if secret.encode() in path.read_bytes()]
    assert found == []


def test_nothing_needs_ray_until_it_is_configured(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["ray"] = None
from pathlib import Path
from whisper_api.config import Config
from whisper_api.errors import ConfigError
from whisper_api.jobs.service import JobService
from whisper_api.server.app import create_app
config = Config(data_dir=Path("data"), tmp_dir=Path("uploads"), model="tiny.en", device="cpu")
JobService.open(config).close()
assert not [name for name in sys.modules if name.startswith(("whisper_api.cluster", "ray."))]
import importlib.util
importlib.util.find_spec = lambda name: None
try:
    JobService.open(Config(data_dir=Path("data"), executor="ray"))
except ConfigError as error:
    assert "whisper-api[cluster]" in str(error), error
else:
    raise SystemExit("ray was not missed")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=_path(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_ray_of_its_own_is_started_and_ended(tmp_path: Path) -> None:
    config = config_in(tmp_path, executor="ray", model="tiny.en", device="cpu", cluster_workers=1)
    executor = RayExecutor(config, SCRIPTED)
    try:
        executor.preload()
        assert Watched(executor, script(tmp_path, "say own")).run().text == "own"
    finally:
        executor.close()
