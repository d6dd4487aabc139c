"""Who else on this machine can read what clients sent: the modes of the data and upload directories and of the keys."""

from __future__ import annotations

import os
from pathlib import Path

from whisper_api.config import Config

__all__ = ["exposed_places", "exposure"]

# What group and others may do with a file.
OTHERS = 0o077
DATABASE_FILES = ("jobs.db", "jobs.db-wal", "jobs.db-shm")


def exposed_places(config: Config) -> list[str]:
    """A sentence for each directory or file of the server that other users of this machine can open.

    Args:
        config: says where jobs, keys and uploads are. What is not there yet is made for this user alone.
    """
    database = [config.data_dir / name for name in DATABASE_FILES]
    places = dict.fromkeys((config.data_dir, config.tmp_dir, *database))
    return [warning for place in places if (warning := exposure(place)) is not None]


def exposure(place: Path) -> str | None:
    """What to do about a file or directory that others can open; None when they cannot.

    Args:
        place: need not be there.
    """
    try:
        mode = place.stat().st_mode & 0o777
    except OSError:
        return None
    # Other systems have no such modes, or say the same of every file.
    if os.name != "posix" or not mode & OTHERS:
        return None
    private = "700" if place.is_dir() else "600"
    return f"{place} is open to other users of this machine (mode {mode:04o}): chmod {private} {place}"
