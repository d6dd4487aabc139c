"""Compares the files of models with known hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from whisper_api.engine.models import derived_files
from whisper_api.engine.models.download import Expected, file_sha256, mismatch
from whisper_api.engine.models.entry import Entry
from whisper_api.engine.models.files import LocalModel, files_of, recorded_files
from whisper_api.errors import ModelCorrupt


@dataclass(frozen=True)
class Verification:
    """The result of :meth:`ModelStore.verify`.

    Attributes:
        model: the model.
        checked: files with the expected content.
        unchecked: files without a known checksum.
    """

    model: LocalModel
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def check_files(entry: Entry | None, model: LocalModel) -> Verification:
    """Compare the hashes of a model's files and of its derived files with the known hashes.

    Args:
        entry: the model's entry in the catalogue; None for any other model.
        model: the model on this machine.

    Raises:
        ModelCorrupt: a file is missing or differs; the message names each such file.
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
    if wrong:
        raise ModelCorrupt(damage(model.name, wrong, model.path))
    return Verification(model, (*right, *_check_derived(model)), tuple(unknown))


def damage(name: str, files: list[str], directory: Path) -> str:
    """The error message about damaged files.

    Args:
        name: the model's name.
        files: names of the files that are missing or differ.
        directory: the directory of the files.
    """
    verb = "are" if len(files) > 1 else "is"
    return (
        f"{name}: {', '.join(sorted(files))} in {directory} {verb} missing or not as fetched. "
        f"`whisper-api models remove {name}` and `pull {name}` put it right."
    )


def check_weights(directory: Path) -> None:
    """Compare the hash of ``model.bin`` with the manifest in the same directory, if it has one.

    Args:
        directory: the model's directory.

    Raises:
        ModelCorrupt: the content differs.
    """
    recorded = recorded_files(directory).get("model.bin")
    if recorded is not None and file_sha256(directory / "model.bin") != recorded.sha256:
        raise ModelCorrupt(
            f"{directory / 'model.bin'} is damaged: its content differs from the download. Remove the model with "
            f"`whisper-api models remove {directory.name}` and download it again with `pull`."
        )


def _check_derived(model: LocalModel) -> list[str]:
    checked: list[str] = []
    for directory in derived_files.derived_directories(model.path):
        if damaged := derived_files.damaged_files(directory):
            raise ModelCorrupt(
                f"{model.name}: {', '.join(damaged)} in {directory}, made from the model, "
                f"{'are' if len(damaged) > 1 else 'is'} damaged. Delete {directory}: loading the model makes it again."
            )
        checked += [f"{directory.name}/{file.name}" for file in sorted(directory.iterdir())]
    return checked


def _known(entry: Entry | None, folder: Path) -> dict[str, Expected]:
    """File name to expected content, from the catalogue or else from the manifest."""
    recorded = {name: Expected(sha256=file.sha256) for name, file in recorded_files(folder).items()}
    return recorded | {file.name: Expected(sha256=file.sha256) for file in (entry.files if entry else ())}


def _named_by_cache(file: Path) -> Expected | None:
    """The expected content of a file in the hub's cache, where a link's target is named by its hash."""
    name = file.resolve().name if file.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Expected(sha256=name)
    return Expected(git_sha1=name) if re.fullmatch(r"[0-9a-f]{40}", name) else None
