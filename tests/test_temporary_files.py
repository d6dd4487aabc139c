"""What a run of the tests leaves in memory, and what the next run removes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import RUN, folder_of_run, free_memory, remove_ended_runs


def test_a_run_that_was_killed_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    running = folder_of_run(tmp_path)
    other = tmp_path / "somebody else's"
    other.mkdir()
    run = textwrap.dedent(f"""
        import os, pathlib, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
        from conftest import folder_of_run
        folder = pathlib.Path(folder_of_run(pathlib.Path({str(tmp_path)!r})))
        (folder / "database").write_bytes(bytes(1000))
        os.kill(os.getpid(), 9)
    """)
    assert subprocess.run([sys.executable, "-c", run], check=False).returncode == -9
    assert len(list(tmp_path.glob(f"{RUN}*"))) == 2

    remove_ended_runs(tmp_path)

    assert set(tmp_path.iterdir()) == {Path(running), other}


def test_memory_that_programs_use_is_not_free(tmp_path: Path) -> None:
    total = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    assert 0 < free_memory(tmp_path) < total
