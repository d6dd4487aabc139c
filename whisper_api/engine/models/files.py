"""Model files on the disk: finds the model of a name and its files, and compares the files with known hashes."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from whisper_api.engine.models import derived_files
from whisper_api.engine.models.catalog import CATALOGUE, alignment_entry, hub_entry
from whisper_api.engine.models.download import Expected, file_sha256, mismatch
from whisper_api.engine.models.entry import Entry, Kind
from whisper_api.engine.models.first_downloads import FileRecord, pinned
from whisper_api.engine.models.hub import cached_snapshot
from whisper_api.engine.models.names import catalogue_name
from whisper_api.errors import ModelCorrupt, ModelUnavailable

MANIFEST = "manifest.json"
ALIGN_PREFIX = "align:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: the usual name (``large-v3`` for ``large``), the hub id or the path.
        kind: ``whisper``, ``alignment`` or ``diarization``.
        path: a directory, or a file for models of a single file.
        revision: the hub's commit, or ``sha256:`` and the beginning of the largest file's hash; None for files that
            somebody copied into the models directory.
    """

    name: str
    kind: str
    path: Path
    revision: str | None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``manifest.json`` in a model's directory.

    Attributes:
        name, kind: as in :class:`LocalModel`.
        source: ``hub``, ``torchaudio`` or ``index``.
        origin: the repository, packages or address.
        revision: as in :class:`LocalModel`.
        fetched_at: RFC 3339, UTC.
        files: name to content.
    """

    name: str = ""
    kind: str = ""
    source: str = ""
    origin: str = ""
    revision: str | None = None
    fetched_at: str = ""
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class ModelStatus:
    """One line of a list of models.

    Attributes:
        entry: the model's entry: name, kind, title, licence, sources, parameters, whether it is multilingual.
        local: the model on this machine; None when missing.
        size: bytes of the model's own files, or approximate bytes of a download; None when unknown.
        place: ``models directory``, ``hub cache`` or ``bundled``; ``damaged`` when files are missing or truncated; None
            when the model is not on this machine.
    """

    entry: Entry
    local: LocalModel | None
    size: int | None
    place: str | None

    @property
    def name(self) -> str:
        """The model's usual name."""
        return self.entry.name

    @property
    def installed(self) -> bool:
        """Whether the model is on this machine."""
        return self.local is not None


def model_facts(name: str) -> Entry | None:
    """The entry of a model, without a look at its files.

    Args:
        name: a catalogue name or another name of the same model (``turbo``, ``openai/whisper-base``), a hub id, or
            ``align:`` and a hub id.

    Returns:
        The entry; None for any other name.
    """
    known = catalogue_name(name)
    if known is not None:
        return CATALOGUE[known]
    repo_id = name.removeprefix(ALIGN_PREFIX)
    # The hub allows neither "..", nor "--", with which two ids would share a directory.
    if not HUB_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        return None
    return hub_entry(repo_id) if repo_id == name else alignment_entry(repo_id)


def resolve(name: str) -> Entry | Path | None:
    """Resolve a name to a model's entry or to a directory; None when the name is neither.

    A catalogue name always means the catalogue's model. A name that could be a hub id means a directory only when the
    directory contains a model.
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
    """The files that a model directory outside the models directory must contain."""
    return ("config.json", "vocab.json") if name.startswith(ALIGN_PREFIX) else ("model.bin", "config.json")


def model_at(name: str, directory: Path) -> LocalModel | None:
    """The model in a directory that the user named by its path; None when files are missing.

    Args:
        name: the path, or ``align:`` and the path.
        directory: the same path as an absolute path.

    Raises:
        ModelUnavailable: the directory cannot be read.
    """
    kind: Kind = "alignment" if name.startswith(ALIGN_PREFIX) else "whisper"
    with readable():
        complete = _has_all(directory, directory_requirements(name))
    return LocalModel(name, kind, directory, None) if complete else None


@contextmanager
def readable() -> Iterator[None]:
    """Name the directory of models that cannot be read.

    Raises:
        ModelUnavailable: says what to do.
    """
    try:
        yield
    except OSError as error:
        raise ModelUnavailable(
            f"Models cannot be looked for in {error.filename}: {error.strerror}. Let the user of this program read the "
            "models directory and all in it, or name another one with WHISPER_MODELS_DIR or --models-dir."
        ) from error


def locate(root: Path, entry: Entry) -> tuple[LocalModel | None, str | None]:
    """Find a model by the names and sizes of its files. Hashes nothing.

    Args:
        root: the models directory.
        entry: the model.

    Returns:
        The model and its location: ``models directory``, ``bundled`` or ``hub cache``. Without the model, None and
        ``damaged`` when the models directory contains only a part of the model, else None twice.

    Raises:
        ModelUnavailable: a directory cannot be read.
    """
    with readable():
        return _locate(root, entry)


def _locate(root: Path, entry: Entry) -> tuple[LocalModel | None, str | None]:
    directory = root / entry.directory
    manifest = _read_manifest(directory)
    damaged = manifest is not None and damaged_files(directory)
    if manifest is not None and not damaged:
        return _local(entry, directory, manifest.revision), "models directory"
    if manifest is None and _has_all(directory, entry.required):
        return _local(entry, directory, None), "models directory"
    if entry.bundled is not None:
        package, inside = entry.bundled
        spec = importlib.util.find_spec(package)
        for base in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(base) / inside).is_file():
                revision = revision_of({file.name: file.sha256 for file in entry.files}, path.name)
                return LocalModel(entry.name, entry.kind, path, revision), "bundled"
    hub = pinned(root, entry).hub
    if hub is not None and (snapshot := cached_snapshot(hub, entry.required)) is not None:
        return _local(entry, snapshot, snapshot.name), "hub cache"
    return None, "damaged" if damaged else None


def revision_of(digests: dict[str, str], file: str) -> str | None:
    """Make a revision from a file's hash, for files without a commit; None when the hash is unknown.

    Args:
        digests: file name to SHA-256.
        file: the name of the file.
    """
    return f"sha256:{digests[file][:12]}" if file in digests else None


def damaged_files(directory: Path) -> list[str]:
    """Names in a directory's manifest of files that are missing or have another size. Hashes nothing."""
    recorded = recorded_files(directory)
    return [name for name, file in recorded.items() if derived_files.file_size(directory / name) != file.size]


def list_models(root: Path) -> list[ModelStatus]:
    """All models of the catalogue, and the other models in the models directory.

    Args:
        root: the models directory.

    Returns:
        Whisper models, then diarization, then alignment; each in the catalogue's order, with the other models last.

    Raises:
        ModelUnavailable: a directory cannot be read.
    """
    entries = dict(CATALOGUE)
    for folder, prefix in (("whisper", ""), ("align", ALIGN_PREFIX)):
        with readable():
            paths = sorted((root / folder).glob("*--*"))
        for path in paths:
            extra = model_facts(prefix + path.name.replace("--", "/", 1))
            if extra is not None and locate(root, extra)[0] is not None:
                entries.setdefault(extra.name, extra)
    order: tuple[Kind, ...] = ("whisper", "diarization", "alignment")
    return [_status(root, entry) for entry in sorted(entries.values(), key=lambda entry: order.index(entry.kind))]


def _status(root: Path, entry: Entry) -> ModelStatus:
    local, place = locate(root, entry)
    size = sum(file.stat().st_size for file in files_of(local)) if local else entry.approximate_bytes
    return ModelStatus(entry, local, size, place)


def files_of(model: LocalModel) -> list[Path]:
    """The files of a model, without the manifest and without derived files."""
    if model.path.is_file():
        return [model.path]
    return [
        file
        for file in sorted(model.path.rglob("*"))
        if file.is_file() and file.name != MANIFEST and not _is_derived(file.relative_to(model.path))
    ]


def _is_derived(path: Path) -> bool:
    return any(part.lstrip(".").startswith(derived_files.PREFIX) for part in path.parts)


def _local(entry: Entry, directory: Path, revision: str | None) -> LocalModel:
    path = directory / entry.single_file if entry.single_file else directory
    return LocalModel(entry.name, entry.kind, path, revision)


def _has_all(directory: Path, patterns: tuple[str, ...]) -> bool:
    complete = all(any(directory.glob(pattern)) for pattern in patterns)
    if not complete:
        # A pattern finds nothing in a directory that may not be read; this raises an error.
        with suppress(FileNotFoundError, NotADirectoryError):
            os.scandir(directory).close()
    return complete


def _read_manifest(directory: Path) -> Manifest | None:
    try:
        return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None


def recorded_files(directory: Path) -> dict[str, FileRecord]:
    """The files that a directory's manifest names; none without a manifest."""
    manifest = _read_manifest(directory)
    return {} if manifest is None else manifest.files


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
