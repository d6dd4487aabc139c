"""What torch reads from the environment at its first import, whichever part of the program imports it first.

torch and CTranslate2 share one pool of GPU memory, and the threads of one operation sleep while they wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from whisper_api.engine.worker import idle_cores

POOL = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync", "CT2_CUDA_ALLOCATOR": "cuda_malloc_async"}
SLEEPING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
NAMES = (*POOL, *SLEEPING, "PYTORCH_ALLOC_CONF")

# A machine with a GPU. The process ends with the first import of torch, and prints what torch would read.
MACHINE = """
import json, os, pathlib, sys
import ctranslate2
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path, **how: str(path) == "/dev/nvidiactl" or exists(path, **how)
ctranslate2.get_cuda_device_count = lambda: 1

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps(dict(os.environ)), flush=True)
            os._exit(0)

assert "torch" not in sys.modules
sys.meta_path.insert(0, Watch())
from whisper_api.cli.main import main
"""
DOORS = {
    "library": "import whisper_api; whisper_api.Engine(device='cuda', models_dir='.', offline=True)",
    "serve": "main(['serve', '--port', '0', '--device', 'cuda', '--data-dir', '.', '--tmp-dir', 'tmp'])",
    "command": "main(['transcribe', 'call.wav', '--device', 'cuda'])",
    "doctor": "main(['doctor'])",
}


def environment_of_torch(door: str, directory: Path, **variables: str) -> dict[str, str]:
    """The variables of this test at the first import of torch."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES and "CUDA" not in name}
    (directory / "call.wav").touch()
    done = subprocess.run(
        [sys.executable, "-c", MACHINE + DOORS[door]],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**kept, **variables},
        timeout=120,
        check=False,
    )
    *_, last = done.stdout.splitlines() or [done.stderr]
    found = json.loads(last) if last.startswith("{") else pytest.fail(done.stdout + done.stderr)
    return {name: found[name] for name in NAMES if name in found}


@pytest.mark.parametrize("door", DOORS)
def test_it_is_set_when_torch_is_first_imported(door: str, tmp_path: Path) -> None:
    assert environment_of_torch(door, tmp_path) == POOL | SLEEPING


def test_what_the_user_sets_is_kept(tmp_path: Path) -> None:
    theirs = {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "CT2_CUDA_ALLOCATOR": "cub_caching",
        "OMP_WAIT_POLICY": "active",
    }
    assert environment_of_torch("library", tmp_path, **theirs) == theirs


def test_nothing_is_set_where_no_gpu_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for files, given, expected in (
        ((), {}, {}),
        ((str(tmp_path),), {}, POOL),
        ((str(tmp_path),), {"CUDA_VISIBLE_DEVICES": ""}, {}),
        ((str(tmp_path),), {"CUDA_VISIBLE_DEVICES": "-1"}, {}),
        ((str(tmp_path),), {"CUDA_VISIBLE_DEVICES": "1"}, POOL),
        ((str(tmp_path),), {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"CT2_CUDA_ALLOCATOR": "cuda_malloc_async"}),
    ):
        monkeypatch.setattr(idle_cores, "DEVICE_FILES", files)
        environment = dict(given)
        idle_cores.share_device_memory(environment)
        assert environment == {**given, **expected}
