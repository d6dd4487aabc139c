"""A job on a cluster gives what it gives without one, with real models; versions, secrets and a missing Ray."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import config_in, until

from cluster.conftest import SCRIPTED, Executors
from cluster.loopback import ROOT, Loopback
from cluster.running import Watched, script
from whisper_api.cluster.executor import LOCAL_ENGINE, RayExecutor
from whisper_api.jobs.local_executor import LocalExecutor
from whisper_api.schema import Transcript, TranscriptionOptions

pytestmark = pytest.mark.cluster

TOKEN = "hf_aTokenThatNobodyMayFind"
TEXT = "Wordsthatnobodymayfind"


def comparable(transcript: Transcript) -> dict[str, object]:
    """All but how long it took."""
    return {**transcript.to_dict(), "timings": sorted(transcript.timings)}


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
    local = LocalExecutor(config_in(tmp_path / "local", **settings))
    cluster = new_executor(LOCAL_ENGINE, engines=2, **settings)
    (tmp_path / "speaker-0").write_bytes(cut(14.0, 3.0))
    jobs: dict[str, tuple[bytes, dict[str, Any], TranscriptionOptions]] = {
        "two voices": (cut(12.0, 8.0), {"known_speakers": ("Ann",)}, TranscriptionOptions()),
        "translated": (cut(12.0, 5.0), {}, TranscriptionOptions(task="translate", language="fr", diarize=False)),
        "short": (cut(0.0, 0.2), {}, TranscriptionOptions()),
    }
    for name, (audio, fields, options) in jobs.items():
        (tmp_path / "audio").write_bytes(audio)
        here = Watched(local, tmp_path / "audio", options, **fields)
        there = Watched(cluster, tmp_path / "audio", options, **fields)
        assert comparable(there.run()) == comparable(here.run()), name
        assert there.partial == here.partial
        assert [each.stage for each in there.progress if each.stage != "load"][-1:] == [
            each.stage for each in here.progress if each.stage != "load"
        ][-1:]
    local.close()
    (resident,) = {each.resident_models for each in cluster.facts().engines if each.resident_models} or {()}
    assert "base" in resident


def test_a_machine_with_another_version_is_refused_until_it_is_replaced(
    new_executor: Executors, loopback: Loopback, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "whisper_api-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: whisper-api\nVersion: 99.0\n")
    executor = new_executor()
    here = importlib.metadata.version("whisper-api") if _installed() else "0+source"
    old = loopback.add(first_path=other.parent)
    try:
        until(lambda: any(each.state == "refused" for each in executor.facts().engines), "the machine is refused")
        (refused,) = (each for each in executor.facts().engines if each.state == "refused")
        assert "99.0" in refused.reason
        assert here in refused.reason
        assert "install the same" in refused.reason
        assert "99.0" in executor.engines().reason
        assert executor.engines().running == 2
        assert Watched(executor, script(tmp_path, "say on")).run().text == "on"
    finally:
        loopback.kill(old)
    new = loopback.add()
    try:
        until(lambda: executor.engines().running == 3, "the replaced machine is used")
        until(lambda: executor.engines().reason == "", "the old machine is forgotten")
    finally:
        loopback.kill(new)
    until(lambda: executor.engines().wanted == 2, "the machine is missed")


def test_tokens_and_texts_are_in_no_log_of_ray(new_executor: Executors, loopback: Loopback, tmp_path: Path) -> None:
    executor = new_executor(hf_token=TOKEN, log_level="debug")
    watched = Watched(executor, script(tmp_path, f"say {TEXT}", "token"), hf_token=f"{TOKEN}2")
    assert watched.run().text == f"{TOKEN} {TOKEN}2"
    with pytest.raises(Exception, match=TEXT):
        Watched(executor, script(tmp_path, f"fail {TEXT}")).run()
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


def _installed() -> bool:
    try:
        importlib.metadata.version("whisper-api")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _path() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_ray_of_its_own_is_started_and_ended(tmp_path: Path) -> None:
    config = config_in(tmp_path, executor="ray", model="tiny.en", device="cpu", cluster_workers=1)
    executor = RayExecutor(config, SCRIPTED)
    try:
        executor.preload()
        assert Watched(executor, script(tmp_path, "say own")).run().text == "own"
    finally:
        executor.close()
