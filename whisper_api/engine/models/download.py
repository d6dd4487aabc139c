"""Downloads one file: resumes after a broken connection, checks the content, and publishes only a complete file."""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from whisper_api.engine.worker.background import BackgroundTask
from whisper_api.errors import ModelUnavailable

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
# A broken connection loses at most this many bytes.
NETWORK_CHUNK_BYTES = 1 << 16
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
# A transfer fails after this many consecutive connections without a new byte.
MAX_FRUITLESS_ATTEMPTS = 4
SPACE_MARGIN_BYTES = 16 << 20


@dataclass(frozen=True)
class DownloadProgress:
    """The progress of one model's download.

    Attributes:
        name: the model.
        file: the file whose bytes arrive now.
        done, total: bytes of the whole model; ``total`` is None when the source does not state it.
        source: ``hub``, ``torchaudio`` or ``index``.
    """

    name: str
    file: str
    done: int
    total: int | None
    source: str


class SourceFailed(Exception):
    """One source cannot provide the model, so the next source is tried. The message is the reason in a few words."""


class SourceUnreachable(SourceFailed):
    """The source did not answer. No request goes to it for a while."""


class SourceChanged(SourceFailed):
    """The source no longer has the content of the catalogue or of the first download."""


class WrongContent(SourceChanged):
    """The source sent content that differs from the catalogue or from the first download."""


@dataclass(frozen=True)
class Expected:
    """The expected content of a file; None for an unknown property.

    Attributes:
        size: bytes.
        sha256: hexadecimal SHA-256 of the content.
        git_sha1: hexadecimal SHA-1 of git's blob object, which the hub states for small files.
    """

    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def file_sha256(path: Path, into: _Hash | None = None) -> str:
    """SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        into: a hash object to update; None for a new SHA-256.
    """
    digest: _Hash = hashlib.sha256() if into is None else into
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def human_bytes(count: int) -> str:
    """A byte count in decimal units: ``145.2 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("bytes", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def require_space(name: str, directory: Path, needed: int) -> None:
    """Refuse a download that does not fit on the disk.

    Args:
        name: the model, for the message.
        directory: any directory on the target file system.
        needed: bytes that the download still writes.

    Raises:
        ModelUnavailable: fewer bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if free < needed + SPACE_MARGIN_BYTES:
        raise ModelUnavailable(
            f"{name} needs {human_bytes(needed)} more in {directory}, where {human_bytes(free)} are free. "
            "Make room, or choose another directory for models (WHISPER_MODELS_DIR)."
        )


def translate_disk_full(error: OSError, name: str, directory: Path, size: int | None) -> None:
    """Raise :class:`~whisper_api.errors.ModelUnavailable` when an OSError means that the disk or the quota is full.

    Args:
        error: the error of a write.
        name: the model, for the message.
        directory: the target directory, for the message.
        size: bytes of the model; None when unknown.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = human_bytes(size) if size else "an unknown amount of space"
        raise ModelUnavailable(
            f"the disk is full: {name} needs {needed} in {directory}. "
            "Make room and try again; the part that was downloaded is kept."
        ) from error


def answer_within(seconds: float, host: str, call: Callable[[], T]) -> T:
    """Run a short network call with one deadline for name resolution and all addresses of a host.

    A connect timeout does not cover the resolver and starts anew for each address. Behind a firewall that drops
    packets, such a call would last many times the timeout.

    Args:
        seconds: the deadline.
        host: the host, for the message.
        call: the network call; after the deadline it continues in its thread.

    Raises:
        SourceUnreachable: the call did not return in time.
    """
    task = BackgroundTask("whisper-api-probe", call)
    if not task.wait(seconds):
        raise SourceUnreachable(f"{host} did not answer within {seconds:g} s")
    return task.result()


def fetch_url(
    session: requests.Session,
    url: str,
    target: Path,
    expected: Expected,
    *,
    headers: Mapping[str, str] | None = None,
    on_bytes: Callable[[int], None] | None = None,
    refuse: Callable[[requests.Response], SourceFailed] | None = None,
) -> str:
    """Download one file and check its content. Continues from the part file of an earlier attempt.

    The bytes go to ``<target>.part``, which is renamed to the target after the check.

    Args:
        session: the session with its proxies, certificates and connection retries.
        url: address of the file.
        target: path of the downloaded file; its directory exists.
        expected: the expected content.
        headers: headers of each request. An ``Authorization`` header is not sent to another host after a redirect.
        on_bytes: called with the number of bytes of this file that have arrived. Its errors end the transfer.
        refuse: makes the error for a response without success.

    Returns:
        SHA-256 of the content.

    Raises:
        WrongContent: the content differs. After a resumed transfer, the file is first downloaded once more in full.
        SourceFailed: the server refused, or the connection failed repeatedly.
    """
    part, etag = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.etag")
    transfer = _Transfer(session, url, part, etag, expected, dict(headers or {}), on_bytes, refuse)
    resumed = part.exists()
    digest = transfer.run()
    problem = mismatch(part, digest, expected)
    if problem and resumed:
        logger.warning("%s: %s after resuming; downloading it from the beginning", target.name, problem)
        part.unlink()
        digest = transfer.run()
        problem = mismatch(part, digest, expected)
    etag.unlink(missing_ok=True)
    if problem:
        part.unlink()
        raise WrongContent(f"{target.name}: {problem}")
    part.replace(target)
    return digest


def mismatch(path: Path, sha256: str, expected: Expected) -> str | None:
    """The difference between a file and its expected content, in words; None when they agree.

    Args:
        path: the file.
        sha256: SHA-256 of the file's content.
        expected: the expected content.
    """
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"has {size} bytes instead of {expected.size}"
    if expected.sha256 is not None and sha256 != expected.sha256:
        return f"has the SHA-256 {sha256} instead of {expected.sha256}"
    if expected.git_sha1 is not None:
        found = file_sha256(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))
        if found != expected.git_sha1:
            return f"has the git hash {found} instead of {expected.git_sha1}"
    return None


@dataclass
class _Transfer:
    """The transfer of one file, in one or more requests; the attributes are the arguments of :func:`fetch_url`."""

    session: requests.Session
    url: str
    part: Path
    etag: Path
    expected: Expected
    headers: dict[str, str]
    on_bytes: Callable[[int], None] | None
    refuse: Callable[[requests.Response], SourceFailed] | None

    def run(self) -> str:
        """Fill the part file, and return its SHA-256."""
        import requests

        fruitless = 0
        cause: Exception
        while True:
            before = self.part.stat().st_size if self.part.exists() else 0
            try:
                return self._request()
            except _TryAgain as error:
                cause, reason = error, str(error)
            except requests.RequestException as error:
                cause, reason = error, type(error).__name__
            gained = self.part.exists() and self.part.stat().st_size > before
            fruitless = 0 if gained else fruitless + 1
            if fruitless >= MAX_FRUITLESS_ATTEMPTS:
                raise SourceFailed(f"{self.part.stem}: the transfer kept breaking ({reason})") from cause
            logger.info("%s: the transfer broke (%s); it continues", self.part.stem, reason)
            time.sleep(0.2 * 2**fruitless)

    def _request(self) -> str:
        have = self.part.stat().st_size if self.part.exists() else 0
        if self.expected.size is not None and have > self.expected.size:
            self.part.unlink()
            have = 0
        digest = hashlib.sha256()
        if have:
            file_sha256(self.part, digest)
        if have and have == self.expected.size:
            return digest.hexdigest()
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.expected.sha256 is None and self.etag.exists():
                headers["If-Range"] = self.etag.read_text(encoding="ascii")
        with self.session.get(
            self.url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)
        ) as response:
            if response.status_code == 416 and have:
                self.part.unlink()
                raise _TryAgain("the part is longer than the file")
            if response.status_code in (408, 429) or response.status_code >= 500:
                raise _TryAgain(f"status {response.status_code}")
            if not response.ok:
                raise self.refuse(response) if self.refuse else SourceFailed(f"status {response.status_code}")
            if response.status_code != 206:
                have, digest = 0, hashlib.sha256()
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                self.part.unlink()
                raise _TryAgain("the server sent a range that differs from the requested range")
            self._keep_etag(response)
            self._write(response, have, digest)
        return digest.hexdigest()

    def _keep_etag(self, response: requests.Response) -> None:
        tag = response.headers.get("ETag", "")
        if tag and not tag.startswith("W/") and tag.isascii():
            self.etag.write_text(tag, encoding="ascii")
        else:
            self.etag.unlink(missing_ok=True)

    def _write(self, response: requests.Response, have: int, digest: Any) -> None:
        length = response.headers.get("Content-Length", "")
        end = have + int(length) if length.isdigit() else None
        with self.part.open("ab" if have else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                digest.update(chunk)
                have += len(chunk)
                if self.on_bytes:
                    self.on_bytes(have)
                if self.expected.size is not None and have > self.expected.size:
                    return
        if end is not None and have < end:
            raise _TryAgain("the connection was closed early")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body in pieces as they arrive, so that a slow server does not delay a cancellation."""
    from urllib3.exceptions import HTTPError

    # urllib3 before 2.1 has only read, which waits for a whole piece.
    read = getattr(response.raw, "read1", response.raw.read)
    try:
        while chunk := read(NETWORK_CHUNK_BYTES):
            yield chunk
    except HTTPError as error:
        raise _TryAgain(type(error).__name__) from error


class _TryAgain(Exception):
    """This request failed, and a further request may succeed."""
