"""Where transcripts go: to standard output, or to files named after their inputs."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import secrets
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_api.formats import FORMATS

__all__ = ["STDIN", "Outputs", "add_output_flags", "one_line", "output_stems", "renamed", "write_whole"]

STDIN = "-"


def add_output_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags that :class:`Outputs` is made from."""
    group.add_argument(
        "-f",
        "--format",
        action="append",
        type=_formats,
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} or all; may be repeated or separated by commas",
    )
    group.add_argument("-o", "--output-dir", type=Path, metavar="DIR", help="write files there; made when missing")


@dataclass(frozen=True)
class Outputs:
    """What is written of each transcript, and where.

    Attributes:
        formats: names in :data:`~whisper_api.formats.FORMATS`, at least one.
        directory: of the files; None for standard output.
    """

    formats: Sequence[str]
    directory: Path | None

    @classmethod
    def asked_for(cls, args: argparse.Namespace, default: str) -> Outputs:
        """What the flags say; the directory is made, and a file in it, which is removed again.

        Raises:
            OSError: files cannot be written there.
        """
        formats = list(dict.fromkeys(name for names in args.format or [[default]] for name in names))
        directory: Path | None = args.output_dir
        if directory is None and len(formats) > 1:
            directory = Path()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        return cls(formats, directory)

    def stems(self, inputs: Sequence[str]) -> list[str]:
        """The names of each input's files, without their suffixes; see :func:`output_stems`."""
        return output_stems(inputs, self.directory, [FORMATS[name].extension for name in self.formats])

    def check(self, stem: str) -> None:
        """Look whether files of this name can be written, before any work is done for them.

        Raises:
            OSError: a directory has the name, or the system cannot have it.
        """
        for path in () if self.directory is None else map(functools.partial(self._path, stem), self.formats):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(path.lstat().st_mode):
                    raise IsADirectoryError(errno.EISDIR, f"{path} is a directory")

    def write(self, name: str, stem: str, text: str) -> str | None:
        """Write a transcript in one format.

        Args:
            name: the format.
            stem: the file's name without its suffix.
            text: the transcript.

        Returns:
            Where it is instead and why, where the file could not be written; None when all is well.

        Raises:
            OSError: it could not be written anywhere.
        """
        if self.directory is not None:
            return _write_somewhere(self._path(stem, name), text)
        sys.stdout.write(text if text.endswith("\n") or not text else f"{text}\n")
        sys.stdout.flush()
        return None

    def _path(self, stem: str, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{stem}.{FORMATS[name].extension}"


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def _formats(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in (*FORMATS, "all")]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(FORMATS)} or all")
    return list(FORMATS) if "all" in names else names


def output_stems(inputs: Sequence[str], directory: Path | None, extensions: Sequence[str]) -> list[str]:
    """A name for the files of each input: its own without the suffix.

    It is cut where the file system takes no name of that length, and has a number where two inputs would have the same
    files, or a file would be written over an input.

    Args:
        inputs: paths, or ``-`` for standard input.
        directory: of the files; None when there are none.
        extensions: of the files, without the dot.

    Returns:
        One stem for each, in order; no two are equal, also on file systems that do not tell upper from lower case, or
        two spellings of an accent apart.
    """
    room = _name_bytes(directory or Path()) - max((len(extension) + 1 for extension in extensions), default=0)
    read = set() if directory is None else {os.path.realpath(name) for name in inputs if name != STDIN}
    own = [_cut("stdin" if name == STDIN else Path(name).stem, room) for name in inputs]
    taken = {_folded(stem) for stem in own}
    seen: set[str] = set()
    stems = []

    def overwrites(stem: str) -> bool:
        files = [] if directory is None else [directory / f"{stem}.{extension}" for extension in extensions]
        return any(os.path.realpath(file) in read for file in files)

    for stem in own:
        chosen, number = stem, 1
        while (_folded(chosen) in (seen if number == 1 else taken)) or overwrites(chosen):
            number += 1
            chosen = f"{_cut(stem, room - len(f'-{number}'))}-{number}"
        seen.add(_folded(chosen))
        taken.add(_folded(chosen))
        stems.append(chosen)
    return stems


def renamed(stem: str, file: str) -> str | None:
    """What is to be said of a file's output that has not the name of the file; None when it has.

    Args:
        stem: that :func:`output_stems` gave.
        file: path of the input, or ``-``.
    """
    if stem == ("stdin" if file == STDIN else Path(file).stem):
        return None
    return f"written as {stem}, because its own name is too long or is that of another file"


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader finds the old content or the new, never a part of it."""
    # A short name of its own: with the file's name in it, it would be longer than a name may be.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_somewhere(path: Path, text: str) -> str | None:
    """Write a file, or where that fails, one beside it or in the directory for temporary files."""
    try:
        write_whole(path, text)
        return None
    except OSError as error:
        failed = error
    for directory in (path.parent, Path(tempfile.gettempdir())):
        other = directory / f"transcript-{secrets.token_hex(4)}{path.suffix}"
        with contextlib.suppress(OSError):
            write_whole(other, text)
            return f"{path} could not be written ({one_line(failed)}); the transcript is in {other}"
    raise failed


def _name_bytes(directory: Path) -> int:
    """How many bytes a file's name may have."""
    try:
        return os.pathconf(directory, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return 255


def _cut(stem: str, room: int) -> str:
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
