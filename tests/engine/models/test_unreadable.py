"""A models directory that the user of the program cannot read."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import REPOSITORY

# Capabilities of Linux with which root reads everything; a program that is started after they are dropped lacks them.
DROP = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
for each in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
    assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, each, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""
LOOK = textwrap.dedent("""
    import sys
    from pathlib import Path
    from whisper_api.cluster.actor import revisions
    from whisper_api.engine.models.files import list_models
    from whisper_api.engine.models.store import ModelStore
    from whisper_api.errors import ModelUnavailable

    root = Path(sys.argv[1])
    store = ModelStore(root, offline=True)
    for look in (
        lambda: store.find("base"),
        lambda: store.find(str(root)),
        lambda: store.is_missing("segmentation-3.0"),
        lambda: store.ensure("base"),
        lambda: list_models(root),
        lambda: revisions(root, "base"),
    ):
        try:
            look()
        except ModelUnavailable as error:
            print(error)
        else:
            print("nothing was said")
""")


PREPARE = textwrap.dedent("""
    import sys
    from pathlib import Path
    from whisper_api.engine.whisper.onnx.graph_files import prepare
    from whisper_api.errors import ModelCorrupt

    try:
        prepare(Path(sys.argv[1]), int8=True)
    except ModelCorrupt as error:
        print(error)
""")


def run_without_capabilities(program: str, argument: Path) -> list[str]:
    """The lines that a program prints which may read only what the permissions allow."""
    start = ["-c", DROP] if os.geteuid() == 0 else ["-c"]
    command = [sys.executable, *start, program, str(argument)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()


on_linux = pytest.mark.skipif(
    sys.platform != "linux" and os.geteuid() == 0, reason="this system has no capabilities to drop"
)


@on_linux
def test_a_models_directory_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    root.chmod(0)
    lines = run_without_capabilities(LOOK, root)
    root.chmod(0o700)
    assert len(lines) == 6
    for line in lines:
        assert line.startswith(f"Models cannot be looked for in {root}")
        assert "Permission denied" in line
        assert "WHISPER_MODELS_DIR" in line


@on_linux
def test_weights_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "model.bin"
    weights.touch(0)
    assert run_without_capabilities(PREPARE, tmp_path) == [f"{weights} cannot be read: Permission denied"]
