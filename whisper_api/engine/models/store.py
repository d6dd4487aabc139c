"""The store of models: finds those that are on this machine, and fetches, checks and removes the others.

A model lives in one directory below the models directory, with a ``manifest.json`` that says where it came from and
what its files hash to. It is fetched into a directory beside them and moved into place when it is whole, so that it is
either all there or not there.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from whisper_api.engine.models import derived_files
from whisper_api.engine.models import revisions as model_revisions
from whisper_api.engine.models.catalog import ALIASES, CATALOGUE
from whisper_api.engine.models.download import (
    DownloadProgress,
    SourceFailed,
    SourceUnreachable,
    WrongContent,
    translate_disk_full,
)
from whisper_api.engine.models.download_watch import DownloadWatch, Report, watched
from whisper_api.engine.models.entry import Entry, Kind
from whisper_api.engine.models.file_lock import locked
from whisper_api.engine.models.files import (
    MANIFEST,
    LocalModel,
    check_files,
    damaged_files,
    directory_requirements,
    files_of,
    locate,
    model_at,
    model_facts,
    resolve,
    revision_of,
)
from whisper_api.engine.models.hub import hub_is_offline
from whisper_api.engine.models.names import near_names
from whisper_api.engine.models.sources import Fetched, fetch_from, needs_no_network
from whisper_api.errors import ModelCorrupt, ModelUnavailable, UnknownModel

__all__ = [
    "DownloadProgress",
    "LocalModel",
    "ModelStatus",
    "ModelStore",
    "Verification",
    "list_models",
    "model_facts",
]

logger = logging.getLogger(__name__)

# A source that did not answer is not asked again for so long, twice as long after each further time, up to the second:
# whoever waits for the answer is a job.
UNREACHABLE_SECONDS, MOST_UNREACHABLE_SECONDS = 60.0, 3600.0


@dataclass(frozen=True)
class Verification:
    """What :meth:`ModelStore.verify` has looked at.

    Attributes:
        model: the model.
        checked: files whose content is right.
        unchecked: files of which no checksum is known.
    """

    model: LocalModel
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


@dataclass(frozen=True)
class ModelStatus:
    """One line of a list of models.

    Attributes:
        entry: what the catalogue knows: name, kind, title, licence, sources, parameters, whether it is multilingual.
        local: where it is, or None when it is not on this machine.
        size: bytes of its own files when it is here, else roughly what it would take (None: not known).
        place: ``models directory``, ``hub cache`` or ``bundled``; ``damaged`` when files of it are missing or cut
            short; None when it is not here.
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
        """Whether it is on this machine."""
        return self.local is not None


@dataclass(frozen=True)
class _Unreachable:
    """A source that did not answer: not to be asked until then, how long that was, and why."""

    until: float
    seconds: float
    reason: str


_ANSWERS = _Unreachable(0.0, 0.0, "")


class ModelStore:
    """The models directory, and the ways to fill it. Safe to use from several threads and processes.

    Args:
        root: the models directory; made when something is fetched.
        hf_token: Hugging Face access token for gated models; None uses the one this machine is logged in with.
        offline: True fetches nothing at all. Otherwise ``HF_HUB_OFFLINE`` alone keeps the hub from being asked.
        progress: told how far a download is, from the thread that asked for the model.

    Attributes:
        offline: whether nothing is fetched at all.
    """

    def __init__(
        self,
        root: Path,
        *,
        hf_token: str | None = None,
        offline: bool | None = None,
        progress: Report | None = None,
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        self._hf_token = hf_token
        self.offline = bool(offline)
        self._progress = progress
        # Entries are only ever replaced whole, so no lock is needed.
        self._unreachable: dict[str, _Unreachable] = {}

    def find(self, name: str) -> LocalModel | None:
        """Look for a model on this machine: the models directory, then the caches of the libraries it comes from.

        Asks no network and hashes nothing.

        Args:
            name: a catalogue name, a hub id, ``align:`` and a hub id or directory, or a directory that holds a
                CTranslate2 Whisper model.

        Returns:
            The model, or None when it is not here, whether it is known or not.
        """
        named = resolve(name)
        if isinstance(named, Path):
            return model_at(name, named)
        return None if named is None else locate(self.root, named)[0]

    def ensure(
        self,
        name: str,
        *,
        hf_token: str | None = None,
        progress: Report | None = None,
        check: Callable[[], None] | None = None,
    ) -> LocalModel:
        """Find a model, or else fetch it and check it.

        The calling thread does not wait for the network, for pip or for the lock that another process holds: it is
        free to leave at any moment.

        Args:
            name: as for :meth:`find`.
            hf_token: instead of the store's.
            progress: instead of the store's. What it raises ends the download.
            check: called ten times a second meanwhile; what it raises ends the download.

        Raises:
            UnknownModel: the name means nothing.
            ModelUnavailable: it is not here and could not be fetched; says which sources were asked, why each failed,
                and what to do.
            ModelCorrupt: what was fetched is not what the catalogue names, or the directory named holds no model.
        """
        named = resolve(name)
        if named is None:
            raise _unknown(name)
        if isinstance(named, Path):
            model = model_at(name, named)
            if model is None:
                wanted = " and ".join(directory_requirements(name))
                raise ModelCorrupt(f"{named} is not a model that can be used: it must hold {wanted}")
            return model
        found = locate(self.root, named)[0]
        if found is not None:
            return found
        token = hf_token or self._hf_token
        # The other thread takes the lock and gives it back: a fetch that nobody waits for any more, and that takes a
        # moment to stop, cannot come into the way of the next one.
        return watched(
            named.name, lambda watch: self._locked_fetch(named, token, watch), progress or self._progress, check
        )

    def is_missing(self, name: str) -> bool:
        """Whether a model is not on this machine and can be downloaded, as far as this machine knows.

        A name that means nothing, a directory and a model whose sources are all switched off or silent are not missing:
        :meth:`ensure` raises the error for these at once. Asks no network.

        Args:
            name: as for :meth:`find`.
        """
        named = resolve(name)
        return (
            isinstance(named, Entry)
            and locate(self.root, named)[0] is None
            and any(self._closed_source(named, source) is None for source in named.sources)
        )

    def verify(self, name: str) -> Verification:
        """Hash a model's files and compare them with the catalogue, or else with what was recorded at their download.

        Files that this program made from the model are compared with what was recorded when they were made.

        Raises:
            UnknownModel: the name means nothing.
            ModelUnavailable: it is not on this machine.
            ModelCorrupt: names each file that is missing or different.
        """
        if resolve(name) is None:
            raise _unknown(name)
        entry = model_facts(name)
        model = self.find(name)
        if model is None:
            directory = self.root / entry.directory if entry else self.root
            if damaged := damaged_files(directory):
                raise ModelCorrupt(_damaged(name, damaged, directory))
            raise ModelUnavailable(f"{name} is not on this machine. `whisper-api models pull {name}` fetches it.")
        checked, unchecked, wrong = check_files(entry, model)
        if wrong:
            raise ModelCorrupt(_damaged(name, wrong, model.path))
        return Verification(model, (*checked, *_check_derived(model)), tuple(unchecked))

    def remove(self, name: str) -> int:
        """Delete a model from the models directory. A link there is deleted, not what it leads to.

        Returns:
            Bytes that were freed.

        Raises:
            UnknownModel: no model has this name; paths are not accepted.
            ModelUnavailable: it is not in the models directory; says where it is instead, if anywhere.
        """
        entry = model_facts(name)
        if entry is None:
            raise _unknown(name)
        directory = self.root / entry.directory
        with self._lock(entry, _nothing):
            # The name is safe, but a directory above it may be a link that leads elsewhere.
            if directory.parent.resolve() != self.root.resolve() / directory.parent.relative_to(self.root):
                raise ModelUnavailable(f"{directory.parent} leads out of the models directory; remove {name} by hand")
            if directory.is_symlink():
                directory.unlink()
                return 0
            if not directory.is_dir():
                found = locate(self.root, entry)[0]
                where = f"; it is in {found.path}, which is not ours to delete" if found else ""
                raise ModelUnavailable(f"{entry.name} is not in {self.root}{where}")
            size = sum(file.lstat().st_size for file in directory.rglob("*") if not file.is_dir())
            # Moved aside first, so that a removal that is broken off leaves no half of a model.
            partial = self._partial(entry)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            directory.rename(partial / "removed")
            shutil.rmtree(partial)
            return size

    def _locked_fetch(self, entry: Entry, token: str | None, watch: DownloadWatch) -> LocalModel:
        with self._lock(entry, watch.check):
            found = locate(self.root, entry)[0]
            return found or self._fetch(entry, token, watch)

    def _closed_source(self, entry: Entry, source: str) -> str | None:
        """Why a source is not asked now; None when it is."""
        if source == "bundled":
            return "not installed"
        if self.offline and not needs_no_network(source, entry):
            return "downloads are switched off"
        if source == "hub" and hub_is_offline():
            return "HF_HUB_OFFLINE is set"
        silent = self._unreachable.get(source, _ANSWERS)
        return silent.reason if silent.until > time.monotonic() else None

    def _fetch(self, entry: Entry, token: str | None, watch: DownloadWatch) -> LocalModel:
        entry = model_revisions.pinned(self.root, entry)
        failures: list[str] = []
        corrupt = False
        partial = self._partial(entry)
        for source in entry.sources:
            watch.check()
            reason = self._closed_source(entry, source)
            if reason is None:
                try:
                    fetched = fetch_from(source, entry, partial / source, token, watch)
                    self._unreachable.pop(source, None)
                    return self._install(entry, source, fetched)
                except SourceFailed as error:
                    reason, corrupt = str(error), corrupt or isinstance(error, WrongContent)
                    if isinstance(error, SourceUnreachable):
                        before = self._unreachable.get(source, _ANSWERS).seconds
                        seconds = min(2 * before or UNREACHABLE_SECONDS, MOST_UNREACHABLE_SECONDS)
                        self._unreachable[source] = _Unreachable(time.monotonic() + seconds, seconds, reason)
                    else:
                        self._unreachable.pop(source, None)
                except OSError as error:
                    translate_disk_full(error, entry.name, self.root, entry.approximate_bytes)
                    raise ModelUnavailable(f"{entry.name} cannot be stored in {self.root}: {error}") from error
            logger.info("%s: not from %s: %s", entry.name, source, reason)
            failures.append(f"{_source_title(entry, source)}: {reason}")
        message = (
            f"{entry.name} is not in {self.root} and could not be fetched. {'; '.join(failures)}. "
            f"Run `whisper-api models pull {entry.name}` where a source can be reached, or copy the model's files to "
            f"{self.root / entry.directory}."
        )
        raise ModelCorrupt(message) if corrupt else ModelUnavailable(message)

    def _install(self, entry: Entry, source: str, fetched: Fetched) -> LocalModel:
        """Move a model that is whole and checked into its place."""
        partial, directory = self._partial(entry), self.root / entry.directory
        staged = partial / source
        sizes = {name: (staged / name).stat().st_size for name in fetched.files}
        largest = max(sizes, key=lambda name: sizes[name])
        manifest: dict[str, Any] = {
            "name": entry.name,
            "kind": entry.kind,
            "source": source,
            "origin": fetched.origin,
            "revision": fetched.revision or revision_of(fetched.files, largest),
            "fetched_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "files": {name: {"sha256": fetched.files[name], "size": sizes[name]} for name in sorted(fetched.files)},
        }
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        directory.parent.mkdir(parents=True, exist_ok=True)
        if directory.is_symlink():
            directory.unlink()
        elif directory.exists():
            # Incomplete or damaged, or it would have been found.
            directory.rename(partial / "replaced")
        staged.replace(directory)
        if source == "hub" and entry.hub is not None and fetched.revision is not None:
            model_revisions.pin(self.root, entry.hub.repo_id, fetched.revision)
        shutil.rmtree(partial, ignore_errors=True)
        found = locate(self.root, entry)[0]
        if found is None:
            raise ModelCorrupt(f"{entry.name} was fetched into {directory}, but cannot be found there")
        return found

    def _partial(self, entry: Entry) -> Path:
        return self.root / ".partial" / entry.directory.replace("/", "--")

    @contextmanager
    def _lock(self, entry: Entry, check: Callable[[], None]) -> Iterator[None]:
        """One fetch or removal of a model at a time, among all processes that share the models directory."""
        folder = self.root / ".locks"
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder / f"{entry.directory.replace('/', '--')}.lock", check))
            except OSError as error:
                raise ModelUnavailable(
                    f"{entry.name} is not here, and {self.root} cannot be written: {error}"
                ) from error
            yield


def list_models(store: ModelStore) -> list[ModelStatus]:
    """All models of the catalogue, and those in the models directory that are not in it.

    Args:
        store: whose directory to look into.

    Returns:
        Whisper models, then diarization, then alignment, each in the catalogue's order with additional ones last.
    """
    entries = dict(CATALOGUE)
    for folder, prefix in (("whisper", ""), ("align", "align:")):
        for path in sorted((store.root / folder).glob("*--*")):
            extra = model_facts(prefix + path.name.replace("--", "/", 1))
            if extra is not None and locate(store.root, extra)[0] is not None:
                entries.setdefault(extra.name, extra)
    order: tuple[Kind, ...] = ("whisper", "diarization", "alignment")
    return [_status(store, entry) for entry in sorted(entries.values(), key=lambda entry: order.index(entry.kind))]


def _status(store: ModelStore, entry: Entry) -> ModelStatus:
    local, place = locate(store.root, entry)
    size = sum(file.stat().st_size for file in files_of(local)) if local else entry.approximate_bytes
    return ModelStatus(entry, local, size, place)


def _nothing() -> None:
    return None


def _source_title(entry: Entry, source: str) -> str:
    if source == "hub" and entry.hub:
        return f"model hub ({entry.hub.repo_id})"
    if source == "index":
        return f"package index ({', '.join(package.requirement for package in entry.index)})"
    if source == "bundled" and entry.bundled:
        return f"package {entry.bundled[0]}"
    return source


def _check_derived(model: LocalModel) -> list[str]:
    checked: list[str] = []
    for directory in derived_files.derived_directories(model.path):
        if damaged := derived_files.damaged_files(directory):
            raise ModelCorrupt(
                f"{model.name}: {', '.join(damaged)} in {directory}, made from the model, "
                f"{'are' if len(damaged) > 1 else 'is'} damaged. Delete {directory}: it is made again when the model "
                "is loaded."
            )
        checked += [f"{directory.name}/{file.name}" for file in sorted(directory.iterdir())]
    return checked


def _damaged(name: str, wrong: list[str], where: Path) -> str:
    return (
        f"{name}: {', '.join(sorted(wrong))} in {where} {'are' if len(wrong) > 1 else 'is'} missing or not as fetched. "
        f"`whisper-api models remove {name}` and `pull {name}` put it right."
    )


def _unknown(name: str) -> UnknownModel:
    near = near_names(name, (*CATALOGUE, *ALIASES))
    hint = f"Did you mean {near}?" if near else "`whisper-api models list` names those there are."
    return UnknownModel(f"there is no model {name!r}. {hint} A directory or a hub id (organisation/name) will do too.")
