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


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="this system has no capabilities to drop")
def test_a_models_directory_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    root.chmod(0)
    start = ["-c", DROP] if os.geteuid() == 0 else ["-c"]
    looked = subprocess.run(
        [sys.executable, *start, LOOK, str(root)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    root.chmod(0o700)
    lines = looked.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith(f"Models cannot be looked for in {root}")
        assert "Permission denied" in line
        assert "WHISPER_MODELS_DIR" in line
