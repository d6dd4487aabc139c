"""The scripts that measure a cluster and kill its parts run with the smallest shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from with_parent import with_parent

from cluster.loopback import ROOT

pytestmark = pytest.mark.cluster


def run(tmp_path: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        with_parent(sys.executable, str(ROOT / "scripts" / name), *arguments),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )


def test_the_scaling_is_measured_and_drawn(tmp_path: Path) -> None:
    # Its targets may be missed here.
    done = run(tmp_path, "bench_cluster.py", "--engines=1", "--seconds=2", "--svg=plot.svg", "--json=figures.json")
    assert done.returncode in (0, 1), done.stderr
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert figures["audio_seconds_per_second"] > 0
    assert ET.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")


def test_one_front_is_measured(tmp_path: Path) -> None:
    done = run(tmp_path, "bench_front.py", "--cluster", "--requests=5", "--rounds=1", "--json=figures.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["uploads_per_core_second"] > 0
    assert figures["job_driver_cpu_ms"] > 0


@pytest.mark.models
def test_jobs_survive_a_small_chaos(tmp_path: Path, models_dir: Path, tiny_en_model_dir: Path) -> None:
    shapes = [
        "--jobs=4",
        "--clients=2",
        "--actors=1",
        "--nodes=0",
        "--fronts=1",
        "--heads=0",
        "--seconds=4",
        "--pause=1",
    ]
    done = run(tmp_path, "chaos_cluster.py", "--model=tiny.en", f"--models-dir={models_dir}", *shapes)
    assert done.returncode == 0, done.stdout + done.stderr
