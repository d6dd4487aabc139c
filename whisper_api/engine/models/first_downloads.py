"""Records of first downloads, for models whose content the catalogue does not fix.

The first download of such a model takes the newest commit of a repository, or the file at an address. The commit and
the SHA-256 of the files are recorded in the models directory. Later downloads must agree with the record, so that a
change at the source never changes transcripts unnoticed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from whisper_api.engine.models.entry import Entry, KnownFile

logger = logging.getLogger(__name__)

FILE_NAME = "revisions.json"


class FileRecord(msgspec.Struct, frozen=True):
    """The content of a downloaded file: hexadecimal SHA-256 and bytes."""

    sha256: str
    size: int


class _FirstDownload(msgspec.Struct, frozen=True, omit_defaults=True):
    commit: str | None = None
    files: dict[str, FileRecord] = {}


def pinned(root: Path, entry: Entry) -> Entry:
    """An entry that accepts only the content of its first download; the entry itself without a record.

    Args:
        root: the models directory.
        entry: an entry of the catalogue, or one made for another name.
    """
    first = _read(root).get(_source_of(entry))
    if first is None:
        return entry
    known = {file.name for file in entry.files}
    files = (KnownFile(name, file.sha256, file.size) for name, file in first.files.items() if name not in known)
    hub = None if entry.hub is None else replace(entry.hub, revision=first.commit)
    return replace(entry, hub=hub, files=(*entry.files, *files))


def record(root: Path, entry: Entry, commit: str | None, files: Mapping[str, FileRecord]) -> None:
    """Record a download for :func:`pinned`. Does nothing for a model whose content the catalogue fixes.

    Args:
        root: the models directory.
        entry: as for :func:`pinned`.
        commit: the repository's commit; None for a file from an address.
        files: name to content.
    """
    if not (source := _source_of(entry)):
        return
    records = _read(root)
    records[source] = _FirstDownload(commit, dict(sorted(files.items())))
    # Written under another name and renamed, so that a reader never sees half of the file.
    handle, name = tempfile.mkstemp(dir=root, prefix=f".{FILE_NAME}.")
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(dict(sorted(records.items())))) + b"\n")
    Path(name).chmod(0o644)
    Path(name).replace(root / FILE_NAME)


def _source_of(entry: Entry) -> str:
    """The key of an entry's record; empty when the catalogue fixes the entry's content."""
    if entry.hub is not None:
        return "" if entry.hub.revision else entry.hub.repo_id
    return entry.url if entry.url and not entry.files else ""


def _read(root: Path) -> dict[str, _FirstDownload]:
    try:
        # Earlier versions recorded the commit only.
        found = msgspec.json.decode((root / FILE_NAME).read_bytes(), type=dict[str, _FirstDownload | str])
        return {key: _FirstDownload(each) if isinstance(each, str) else each for key, each in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        logger.warning("%s cannot be read, so the newest files are downloaded: %s", root / FILE_NAME, error)
        return {}
