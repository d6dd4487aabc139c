"""Warnings about data and upload directories that other users of this machine can read."""

from __future__ import annotations

import os
from pathlib import Path

from whisper_api.config import Config

# Permission bits of the group and of other users.
OTHERS = 0o077
DATABASE_FILES = ("jobs.db", "jobs.db-wal", "jobs.db-shm")


def exposed_files(config: Config) -> list[str]:
    """A warning for each directory or file of the server that other users of this machine can open.

    Args:
        config: the configuration with the directories. The server creates missing directories for its own user only.
    """
    database = [config.data_dir / name for name in DATABASE_FILES]
    paths = dict.fromkeys((config.data_dir, config.tmp_dir, *database))
    return [warning for path in paths if (warning := exposure(path)) is not None]


def exposure(path: Path) -> str | None:
    """A warning when other users can open the file or directory; None when they cannot or the path does not exist."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        return None
    # Systems other than POSIX have no such modes, or report the same mode for every file.
    if os.name != "posix" or not mode & OTHERS:
        return None
    private = "700" if path.is_dir() else "600"
    return f"{path} is open to other users of this machine (mode {mode:04o}): chmod {private} {path}"
