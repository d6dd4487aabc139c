"""Which commit of the hub a model was first downloaded at, for models whose commit the catalogue does not name.

The first download follows the repository's main branch. Later downloads into the same models directory ask for the same
commit, so that a change in the repository never changes transcripts unnoticed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from whisper_api.engine.models.entry import Entry

__all__ = ["FILE_NAME", "pin", "pinned"]

logger = logging.getLogger(__name__)

FILE_NAME = "revisions.json"
COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(root: Path, entry: Entry) -> Entry:
    """An entry with the commit to download: the catalogue's, or else the one of the first download.

    Args:
        root: the models directory.
        entry: what the catalogue knows.
    """
    if entry.hub is None or entry.hub.revision is not None:
        return entry
    return replace(entry, hub=replace(entry.hub, revision=_read(root).get(entry.hub.repo_id)))


def pin(root: Path, repo_id: str, commit: str) -> None:
    """Keep the commit of a first download. An earlier record stays.

    Args:
        root: the models directory.
        repo_id: ``organisation/name`` on the hub.
        commit: 40 hexadecimal digits.
    """
    known = _read(root)
    if known.setdefault(repo_id, commit) != commit or not COMMIT.fullmatch(commit):
        return
    # Replaced whole, so that a reader never sees half of the file.
    handle, name = tempfile.mkstemp(dir=root, prefix=f".{FILE_NAME}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(dict(sorted(known.items())), file, indent=2)
        file.write("\n")
    Path(name).chmod(0o644)
    Path(name).replace(root / FILE_NAME)


def _read(root: Path) -> dict[str, str]:
    try:
        found = json.loads((root / FILE_NAME).read_text(encoding="utf-8"))
        return {str(repo_id): commit for repo_id, commit in found.items() if COMMIT.fullmatch(commit)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        logger.warning("%s cannot be read, so the newest files are downloaded: %s", root / FILE_NAME, error)
        return {}
