"""What a test starts ends with the process of the test, also when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fakes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal at the death of a parent")

PREPARE = f"""
import subprocess, sys, time
sys.path[:0] = [{str(REPOSITORY / "tests")!r}, {str(REPOSITORY / "scripts")!r}, {str(REPOSITORY)!r}]
"""
PROGRAM = PREPARE + textwrap.dedent("""
    from with_parent import with_parent
    sleeping = subprocess.Popen(with_parent("sleep", "600"))
    print(sleeping.pid, flush=True)
    time.sleep(600)
""")
# As tests start servers.
FORKED = PREPARE + textwrap.dedent("""
    import functools, os
    from pathlib import Path
    import forked
    forked.MODULES = ()
    here = Path(sys.argv[1])
    streams = here / "stdout", here / "stderr"
    sleeping = forked.Forked(functools.partial(time.sleep, 600), [], here, dict(os.environ), *streams)
    print(sleeping.pid, flush=True)
    time.sleep(600)
""")


@pytest.mark.parametrize("code", [PROGRAM, FORKED], ids=["program", "forked"])
def test_a_process_ends_with_the_process_that_started_it(code: str, tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    with starter, starter.stdout:
        started = int(starter.stdout.readline())
        os.kill(starter.pid, signal.SIGKILL)
    until(lambda: not runs(started), "it has ended")


def runs(pid: int) -> bool:
    """Whether a process runs. One that has ended may wait for somebody who asks how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
