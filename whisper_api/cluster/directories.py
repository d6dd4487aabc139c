"""The directory in which an engine keeps the uploads of its jobs while they run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LOCK = ".lock"


def own_directory(parent: Path, name: str) -> Path:
    """Make a directory that this process holds until it ends, and remove those of processes that have ended.

    Args:
        parent: holds the directories of all engines of the machine.
        name: name of the engine, which may have run in an earlier process.
    """
    from filelock import FileLock

    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Engines of a machine start at the same time, and none must take another's new directory for an old one.
    with FileLock(parent / LOCK):
        for old in parent.iterdir():
            if old.is_dir() and not _is_held(old / LOCK):
                shutil.rmtree(old, ignore_errors=True)
        directory = parent / f"{name}-{os.getpid()}"
        directory.mkdir(mode=0o700, exist_ok=True)
        held = FileLock(directory / LOCK)
        held.acquire(timeout=0)
        _HELD.append(held)
    return directory


# A lock is released when its object is freed.
_HELD: list[object] = []


def _is_held(lock: Path) -> bool:
    """Whether a living process holds a lock."""
    from filelock import FileLock, Timeout

    attempt = FileLock(lock)
    try:
        attempt.acquire(timeout=0)
    except Timeout:
        return True
    attempt.release()
    return False
