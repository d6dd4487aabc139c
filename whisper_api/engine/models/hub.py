"""Model files of the Hugging Face hub: lists a repository, downloads its files, and finds them in the hub's cache.

``huggingface_hub`` provides sessions, headers and addresses. :func:`~whisper_api.engine.models.download.fetch_url`
transfers the files, because it checks every file, reports progress in bytes, and soon gives up on a silent hub.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from whisper_api.engine.models import download
from whisper_api.engine.models.entry import HubSource, KnownFile

if TYPE_CHECKING:
    import requests

ANSWER_SECONDS = 6.0


@dataclass(frozen=True)
class HubListing:
    """The files of a repository at one commit.

    Attributes:
        commit: 40 hexadecimal digits.
        files: path in the repository to expected content.
    """

    commit: str
    files: dict[str, download.Expected]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(expected.size or 0 for expected in self.files.values())


def hub_is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids requests to the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def list_repository(source: HubSource, known: Iterable[KnownFile], token: str | None) -> HubListing:
    """Ask the hub for the files of a repository at the pinned commit, or else at the newest commit.

    Args:
        source: the repository and the patterns of its files.
        known: files with known content; the hub's checksums must agree.
        token: a Hugging Face access token; None for the token of this machine's login.

    Raises:
        SourceUnreachable: the hub does not answer.
        SourceFailed: no such repository or revision, or no access; the message says what to do.
        WrongContent: the hub states a checksum that differs from the known one.
    """
    import requests
    from huggingface_hub.utils import build_hf_headers, get_session

    endpoint = _endpoint()
    revision = source.revision or "main"
    url = f"{endpoint}/api/models/{source.repo_id}/revision/{revision}"
    headers = build_hf_headers(token=token)

    def ask() -> requests.Response:
        return get_session().get(url, params={"blobs": "true"}, headers=headers, timeout=_answer_seconds())

    try:
        response = download.answer_within(_answer_seconds(), endpoint, ask)
    except requests.RequestException as error:
        raise download.SourceUnreachable(f"no connection to {endpoint} ({type(error).__name__})") from error
    if not response.ok:
        raise _refusal(source, response, token)
    try:
        answer = response.json()
        commit, siblings = str(answer["sha"]), list(answer["siblings"])
    except (ValueError, KeyError, TypeError) as error:
        raise download.SourceFailed(f"{endpoint} does not answer like a model hub") from error
    pinned = {file.name: file for file in known}
    files = {name: _expected(sibling, pinned.get(name)) for name, sibling in _matching(siblings, source.patterns)}
    return HubListing(commit, files)


def _matching(siblings: list[dict[str, Any]], patterns: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    chosen = []
    for sibling in siblings:
        path = PurePosixPath(str(sibling["rfilename"]))
        if path.is_absolute() or ".." in path.parts or "\\" in str(path):
            continue
        if any(len(path.parts) == pattern.count("/") + 1 and fnmatchcase(str(path), pattern) for pattern in patterns):
            chosen.append((str(path), sibling))
    # Many repositories contain the same weights in two formats.
    if any(name.endswith(".safetensors") for name, _ in chosen):
        chosen = [(name, sibling) for name, sibling in chosen if not name.startswith("pytorch_model")]
    return chosen


def _expected(sibling: dict[str, Any], known: KnownFile | None) -> download.Expected:
    lfs = sibling.get("lfs") or {}
    stated = lfs.get("sha256")
    if known is not None:
        if stated is not None and stated != known.sha256:
            raise download.WrongContent(f"{known.name} there has the SHA-256 {stated}, expected is {known.sha256}")
        return download.Expected(known.size, known.sha256)
    size = lfs.get("size", sibling.get("size"))
    return download.Expected(size, stated, None if stated else sibling.get("blobId"))


def fetch_files(
    source: HubSource, listing: HubListing, into: Path, token: str | None, on_bytes: Callable[[str, int], None]
) -> dict[str, str]:
    """Download the files of a repository into a directory. Files that an earlier attempt completed are only checked.

    Args:
        source: the repository.
        listing: the return value of :func:`list_repository`.
        into: the target directory; folders of the repository become its subdirectories.
        token: as for :func:`list_repository`.
        on_bytes: called with a file's name and the number of its bytes that have arrived.

    Returns:
        File name to SHA-256.

    Raises:
        SourceFailed: as for :func:`list_repository`, or the connection broke repeatedly.
        WrongContent: the content of a file differs from the expected content.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    def refuse(response: requests.Response) -> download.SourceFailed:
        return _refusal(source, response, token)

    digests: dict[str, str] = {}
    for name, expected in listing.files.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            # An earlier attempt completed this file. fetch_url checks a complete part file and requests nothing.
            target.replace(target.with_name(f"{target.name}.part"))
        digests[name] = download.fetch_url(
            get_session(),
            hf_hub_url(source.repo_id, name, revision=listing.commit, endpoint=_endpoint()),
            target,
            expected,
            headers=build_hf_headers(token=token),
            on_bytes=functools.partial(on_bytes, name),
            refuse=refuse,
        )
    return digests


def cached_snapshot(source: HubSource, required: Iterable[str]) -> Path | None:
    """The directory of a model in this machine's Hugging Face cache; None when a required file is missing.

    Reads the cache's documented layout, because an import of ``huggingface_hub`` is slow.

    Args:
        source: the repository; a pinned commit accepts no other commit.
        required: shell patterns, each of which must match a file.
    """
    repository = _hub_cache() / f"models--{source.repo_id.replace('/', '--')}"
    revision = source.revision
    try:
        if revision is None:
            revision = (repository / "refs" / "main").read_text(encoding="ascii").strip()
        snapshot = repository / "snapshots" / revision
        return snapshot if all(any(snapshot.glob(pattern)) for pattern in required) else None
    except (OSError, ValueError):
        return None


def _hub_cache() -> Path:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(value).expanduser()
    if value := os.environ.get("HF_HOME"):
        return Path(value).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "huggingface" / "hub"


def _endpoint() -> str:
    from huggingface_hub import constants

    # Read at each use, because huggingface_hub reads the variable only at its import.
    return str(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _answer_seconds() -> float:
    try:
        return float(os.environ.get("HF_HUB_ETAG_TIMEOUT", ""))
    except ValueError:
        return ANSWER_SECONDS


def _refusal(source: HubSource, response: requests.Response, token: str | None) -> download.SourceFailed:
    page = f"{_endpoint()}/{source.repo_id}"
    code = response.headers.get("X-Error-Code", "")
    status = response.status_code
    if source.gated and status in (401, 403):
        code = "GatedRepo"
    if code == "GatedRepo":
        reason = "the token has no access" if _has_token(token) else "it needs a token"
        return download.SourceFailed(f"{reason}: accept the conditions at {page} and give a token (HF_TOKEN)")
    if code == "RevisionNotFound":
        return download.SourceChanged(f"{page} has no revision {source.revision or 'main'}")
    if code == "EntryNotFound":
        return download.SourceFailed(f"a file has gone from {page}")
    if code == "RepoNotFound" or status in (401, 404):
        return download.SourceFailed(f"there is no {page}, or it is private and needs a token (HF_TOKEN)")
    if status == 403:
        return download.SourceFailed(f"access to {page} is denied (403)")
    if status == 429:
        return download.SourceFailed(f"{_endpoint()} asks to come back later (429)")
    return download.SourceFailed(f"{_endpoint()} answers with status {status}")


def _has_token(token: str | None) -> bool:
    from huggingface_hub import get_token

    return bool(token or get_token())
