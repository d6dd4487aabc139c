"""Models as they lie on the disk: what a name stands for, where its files are, and what they should hash to."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_api.engine.models import derived_files
from whisper_api.engine.models.catalog import CATALOGUE, alignment_entry, hub_entry
from whisper_api.engine.models.download import Expected, file_sha256, mismatch
from whisper_api.engine.models.entry import Entry, Kind
from whisper_api.engine.models.hub import cached_snapshot
from whisper_api.engine.models.names import catalogue_name
from whisper_api.errors import ModelCorrupt

__all__ = [
    "MANIFEST",
    "LocalModel",
    "check_files",
    "check_weights",
    "damaged_files",
    "directory_requirements",
    "files_of",
    "locate",
    "model_at",
    "model_facts",
    "resolve",
    "revision_of",
]

MANIFEST = "manifest.json"
ALIGN_PREFIX = "align:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: its usual name (``large-v3`` for ``large``), its hub id or its path.
        kind: ``whisper``, ``alignment`` or ``diarization``.
        path: a directory, or a file for models of a single file.
        revision: the hub's commit, or ``sha256:`` and the beginning of its largest file's hash; None for files that
            somebody else put there.
    """

    name: str
    kind: str
    path: Path
    revision: str | None


def model_facts(name: str) -> Entry | None:
    """What is known of a model by its name, without looking for its files.

    Args:
        name: a catalogue name or another name of the same model (``turbo``, ``openai/whisper-base``), a hub id, or
            ``align:`` and a hub id.

    Returns:
        The entry, or None for a name that can be none of these.
    """
    known = catalogue_name(name)
    if known is not None:
        return CATALOGUE[known]
    repo_id = name.removeprefix(ALIGN_PREFIX)
    # The hub allows neither; the second would make two ids share a directory.
    if not HUB_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        return None
    return hub_entry(repo_id) if repo_id == name else alignment_entry(repo_id)


def resolve(name: str) -> Entry | Path | None:
    """What a name stands for: a known model, a directory, or nothing.

    A catalogue name always means the catalogue's model. What could be a hub id means a directory only if that holds a
    model.
    """
    entry = model_facts(name)
    if entry is not None and entry.name in CATALOGUE:
        return entry
    path = Path(name.removeprefix(ALIGN_PREFIX)).expanduser()
    try:
        if path.is_dir() and (entry is None or _has_all(path, directory_requirements(name))):
            return path.absolute()
    except (OSError, ValueError):
        return None
    return entry


def directory_requirements(name: str) -> tuple[str, ...]:
    """The files that a directory given by path must hold."""
    return ("config.json", "vocab.json") if name.startswith(ALIGN_PREFIX) else ("model.bin", "config.json")


def model_at(name: str, directory: Path) -> LocalModel | None:
    """The model in a directory given by path, if there is one."""
    kind: Kind = "alignment" if name.startswith(ALIGN_PREFIX) else "whisper"
    return LocalModel(name, kind, directory, None) if _has_all(directory, directory_requirements(name)) else None


def locate(root: Path, entry: Entry) -> tuple[LocalModel | None, str | None]:
    """A model and the kind of place it is in, looking at names and sizes only.

    Args:
        root: the models directory.
        entry: the model.

    Returns:
        The model with ``models directory``, ``bundled`` or ``hub cache``; or None, with ``damaged`` when something is
        left of it in the models directory.
    """
    directory = root / entry.directory
    manifest = _read_manifest(directory)
    damaged = manifest is not None and damaged_files(directory)
    if manifest is not None and not damaged:
        return _local(entry, directory, manifest.get("revision")), "models directory"
    if manifest is None and _has_all(directory, entry.required):
        return _local(entry, directory, None), "models directory"
    if entry.bundled is not None:
        package, inside = entry.bundled
        spec = importlib.util.find_spec(package)
        for base in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(base) / inside).is_file():
                revision = revision_of({file.name: file.sha256 for file in entry.files}, path.name)
                return LocalModel(entry.name, entry.kind, path, revision), "bundled"
    if entry.hub is not None and (snapshot := cached_snapshot(entry.hub, entry.required)) is not None:
        return _local(entry, snapshot, snapshot.name), "hub cache"
    return None, "damaged" if damaged else None


def revision_of(digests: dict[str, str], file: str) -> str | None:
    """The name of a content that no commit names."""
    return f"sha256:{digests[file][:12]}" if file in digests else None


def damaged_files(directory: Path) -> list[str]:
    """Files that the manifest in a directory names and that are missing or of another size. Hashes nothing."""
    manifest = _read_manifest(directory) or {"files": {}}
    return [name for name, record in manifest["files"].items() if _size(directory / name) != record.get("size")]


def files_of(model: LocalModel) -> list[Path]:
    """The files of a model, without records, locks, and files that were made from the model."""
    if model.path.is_file():
        return [model.path]
    return [
        file
        for file in sorted(model.path.rglob("*"))
        if file.is_file() and file.name != MANIFEST and not _is_derived(file.relative_to(model.path))
    ]


def check_files(entry: Entry | None, model: LocalModel) -> tuple[list[str], list[str], list[str]]:
    """Hash a model's files, and the files that were made from them.

    Args:
        entry: what the catalogue knows of the model, if anything.
        model: where it is.

    Returns:
        Names of those that are right, of those of which nothing is known, and of those that are missing or wrong.
    """
    folder = model.path if model.path.is_dir() else model.path.parent
    known = _known(entry, folder)
    right, unknown, wrong = [], [], []
    for file in files_of(model):
        name = file.relative_to(folder).as_posix()
        expected = known.pop(name, None) or _named_by_cache(file)
        if expected is None:
            unknown.append(name)
        elif mismatch(file, file_sha256(file), expected):
            wrong.append(name)
        else:
            right.append(name)
    if model.path.is_dir():
        wrong += [name for name in known if not (folder / name).is_file()]
    return right, unknown, wrong


def check_weights(directory: Path) -> None:
    """Hash ``model.bin`` where the manifest beside it says what it should hash to.

    Args:
        directory: of the model.

    Raises:
        ModelCorrupt: the content is another one.
    """
    manifest = _read_manifest(directory) or {"files": {}}
    recorded = manifest["files"].get("model.bin", {}).get("sha256")
    if recorded and file_sha256(directory / "model.bin") != recorded:
        raise ModelCorrupt(
            f"{directory / 'model.bin'} is damaged: its content is not what was fetched. Remove the model with "
            f"`whisper-api models remove {directory.name}` and fetch it again with `pull`."
        )


def _is_derived(path: Path) -> bool:
    return any(part.lstrip(".").startswith(derived_files.PREFIX) for part in path.parts)


def _known(entry: Entry | None, folder: Path) -> dict[str, Expected]:
    """File name to what it must be: the catalogue's word before the manifest's."""
    manifest = _read_manifest(folder) or {"files": {}}
    noted = {name: Expected(sha256=str(record.get("sha256"))) for name, record in manifest["files"].items()}
    return noted | {file.name: Expected(sha256=file.sha256) for file in (entry.files if entry else ())}


def _named_by_cache(file: Path) -> Expected | None:
    """The hub's cache links to files that are named by what they hash to."""
    name = file.resolve().name if file.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Expected(sha256=name)
    return Expected(git_sha1=name) if re.fullmatch(r"[0-9a-f]{40}", name) else None


def _local(entry: Entry, directory: Path, revision: str | None) -> LocalModel:
    path = directory / entry.single_file if entry.single_file else directory
    return LocalModel(entry.name, entry.kind, path, revision)


def _has_all(directory: Path, patterns: tuple[str, ...]) -> bool:
    return all(any(directory.glob(pattern)) for pattern in patterns)


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
