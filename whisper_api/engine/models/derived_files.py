"""Derived files, which this program makes from a model's files, and the record that shows whether they are intact.

Each directory of derived files contains the record ``model.json``: the source of the files, and the size and SHA-256 of
each file. Every load of a model compares the sizes. A failed load and ``whisper-api models verify`` compare the hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whisper_api.engine.models.download import file_sha256

RECORD = "model.json"
# Prefix of the names of all directories of derived files.
PREFIX = "onnx-"


def cache_directory(model: Path) -> Path:
    """The directory in the user's cache for derived files of a model whose own directory is read-only.

    Args:
        model: the model's directory.
    """
    from platformdirs import user_cache_path

    key = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:16]
    return user_cache_path("whisper-api", appauthor=False) / "graphs" / key


def derived_directories(model: Path) -> list[Path]:
    """The directories of a model's derived files, in its own directory and in the user's cache.

    Args:
        model: the model's directory.
    """
    return [
        record.parent
        for parent in (model, cache_directory(model))
        for record in sorted(parent.glob(f"{PREFIX}*/{RECORD}"))
    ]


def write_record(directory: Path, made_from: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the record of a directory whose files are complete.

    Args:
        directory: the directory of the files and of the record.
        made_from: facts about the source, for example its size and change time. The files are current while these
            facts are.
        facts: further facts for the code that reads the files.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(directory.iterdir())
        if path.is_file()
    }
    record = {"made_from": made_from, **facts, "files": files}
    (directory / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")


def read_record(directory: Path) -> dict[str, Any] | None:
    """The record of a directory; None when it is missing or cannot be read."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        list(_files(record))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if isinstance(record, dict) else None


def is_current(directory: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a directory contains all recorded files in full length, made from this source. Hashes nothing.

    Args:
        directory: the directory of the files.
        made_from: as for :func:`write_record`.
    """
    record = read_record(directory)
    if record is None or record.get("made_from") != made_from:
        return False
    return all(file_size(directory / name) == size for name, size, _ in _files(record))


def damaged_files(directory: Path) -> list[str]:
    """Names of files that are missing or differ from the record. Hashes every file."""
    record = read_record(directory)
    if record is None:
        return [RECORD]
    return [
        name
        for name, size, sha256 in _files(record)
        if file_size(directory / name) != size or file_sha256(directory / name) != sha256
    ]


def _files(record: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    for name, known in record["files"].items():
        yield name, known["bytes"], known["sha256"]


def file_size(path: Path) -> int | None:
    """Bytes of a file; None when it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return None
