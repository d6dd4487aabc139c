"""Writes transcripts to standard output, or to files with the names of their inputs."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import logging
import os
import secrets
import signal
import stat
import sys
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from whisper_api import errors
from whisper_api.cli.flags import add_struct_flags
from whisper_api.cli.progress import ProgressLine
from whisper_api.formats import DOCUMENTS, FORMATS
from whisper_api.options import RenderOptions, TranscriptionOptions

log = logging.getLogger(__name__)

STDIN = "-"
ALL_FORMATS = {**FORMATS, **DOCUMENTS}


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files, the flags that :meth:`Outputs.of` reads, and the options of a transcription."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="anything with sound in it; - reads standard input")
    output = parser.add_argument_group(
        "output",
        "One format goes to standard output; several, or any with --output-dir, to files named <name>.<format>.",
    )
    output.add_argument(
        "-f",
        "--format",
        action="append",
        type=_formats,
        metavar="FORMAT",
        help=f"{', '.join(ALL_FORMATS)} or all; may be repeated or separated by commas",
    )
    output.add_argument("-o", "--output-dir", type=Path, metavar="DIR", help="write files there; made when missing")
    add_struct_flags(output, RenderOptions)
    output.add_argument("-q", "--quiet", action="store_true", help="neither a progress bar nor warnings")
    add_struct_flags(parser.add_argument_group("what to do"), TranscriptionOptions)


@dataclass(frozen=True)
class Outputs:
    """The formats and the destination of transcripts.

    Attributes:
        formats: at least one name in :data:`~whisper_api.formats.FORMATS` or :data:`~whisper_api.formats.DOCUMENTS`.
        directory: the directory of the files; None for standard output.
    """

    formats: Sequence[str]
    directory: Path | None

    @classmethod
    def of(cls, args: argparse.Namespace, default: str) -> Outputs:
        """Read the flags, create the directory, and check that files can be written there.

        Args:
            args: the parsed arguments.
            default: the format without a ``--format`` flag.

        Raises:
            OSError: files cannot be written in the directory.
        """
        formats = list(dict.fromkeys(name for names in args.format or [[default]] for name in names))
        directory: Path | None = args.output_dir
        if directory is None and len(formats) > 1:
            directory = Path()
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=directory):
                    pass
            except OSError as error:
                raise errors.InvalidInput(f"--output-dir {directory}: {error.strerror}") from None
        return cls(formats, directory)

    def stems(self, inputs: Sequence[str]) -> list[str]:
        """The file name without suffix for each input; see :func:`output_stems`."""
        return output_stems(inputs, self.directory, [ALL_FORMATS[name].extension for name in self.formats])

    def check(self, stem: str) -> None:
        """Check before the transcription that files of this name can be written.

        Raises:
            OSError: a directory has the name, or the file system does not allow the name.
        """
        for path in () if self.directory is None else map(functools.partial(self._path, stem), self.formats):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(path.lstat().st_mode):
                    raise IsADirectoryError(errno.EISDIR, f"{path} is a directory")

    def write(self, name: str, stem: str, content: str | bytes) -> str | None:
        """Write a transcript in one format.

        Args:
            name: the format.
            stem: the file's name without its suffix.
            content: the transcript: text, or the bytes of a document.

        Returns:
            None on success. When the file could not be written, the reason and the path of the file written instead.

        Raises:
            OSError: the transcript could not be written to any file.
        """
        if self.directory is not None:
            return _write_somewhere(self._path(stem, name), content)
        if isinstance(content, bytes):
            sys.stdout.buffer.write(content)
        else:
            sys.stdout.write(content if content.endswith("\n") or not content else f"{content}\n")
        sys.stdout.flush()
        return None

    def _path(self, stem: str, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{stem}.{ALL_FORMATS[name].extension}"


# HTTP statuses that concern a single file: the next file may succeed.
OF_ONE_FILE = frozenset({400, 408, 409, 410, 413, 415, 422})


@dataclass
class Outcome:
    """Whether a file failed, or was written under another name than planned."""

    failed: bool = False


@dataclass
class FileWork:
    """The part of the work that every command with files does: reports what happens to a file, and writes transcripts.

    Attributes:
        outputs: formats and destination.
        line: progress line, which is removed before other output.
        quiet: whether warnings are left out.
        concerning_all: errors after which no other file can succeed.
    """

    concerning_all: ClassVar[tuple[type[Exception], ...]] = (
        *(errors.ModelError, errors.InvalidOption, errors.DeviceUnavailable, errors.Canceled, BrokenPipeError),
    )

    outputs: Outputs
    line: ProgressLine
    quiet: bool

    @contextlib.contextmanager
    def reported(self, file: str) -> Iterator[Outcome]:
        """Report errors of this file; raise errors that concern all files."""
        outcome = Outcome()
        try:
            yield outcome
        except self.concerning_all:
            raise
        except Exception as error:
            if isinstance(error, errors.RequestError) and error.status not in OF_ONE_FILE:
                raise
            log.debug("%s failed", file, exc_info=True)
            self.say(file, f"{type(error).__name__}: {one_line(error)}")
            outcome.failed = True

    def write(self, file: str, stem: str, contents: Mapping[str, str | bytes]) -> bool:
        """Write a transcript in all formats, and return whether a file has another path than planned.

        Args:
            file: the input.
            stem: name of the output files without suffix.
            contents: format to the transcript.
        """
        self.line.clear()
        moved = False
        for name, content in contents.items():
            if notice := self.outputs.write(name, stem, content):
                self.say(file, notice)
                moved = True
        if self.outputs.directory is not None and not self.quiet and (notice := renamed(stem, file)):
            self.say(file, notice)
        return moved

    def warn(self, file: str, *warnings: str) -> None:
        """Print warnings about a file."""
        for warning in () if self.quiet else warnings:
            self.say(file, f"warning: {warning}")

    def say(self, file: str, message: str) -> None:
        """Print a line about a file to standard error."""
        self.line.clear()
        print(f"{file}: {message}", file=sys.stderr)


@contextlib.contextmanager
def on_interrupt(handler: Callable[[], None]) -> Iterator[None]:
    """While open, Ctrl-C calls a function; outside of the main thread, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *ignored: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows with aligned columns to standard output."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def label_of(file: str) -> str:
    """The name of an input for a progress line."""
    return "standard input" if file == STDIN else Path(file).name


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())


def _formats(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in (*ALL_FORMATS, "all")]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(ALL_FORMATS)} or all")
    return list(ALL_FORMATS) if "all" in names else names


def output_stems(inputs: Sequence[str], directory: Path | None, extensions: Sequence[str]) -> list[str]:
    """Choose the name of each input's output files: the input's name without the suffix.

    A name is cut when it is too long for the file system. A name gets a number when two inputs would have the same
    output file, or an output file would overwrite an input.

    Args:
        inputs: paths, or ``-`` for standard input.
        directory: the directory of the files; None when no files are written.
        extensions: the extensions of the files, without the dot.

    Returns:
        A stem for each input, in order. The stems are unique, also on file systems that ignore case or Unicode
        normalization.
    """
    room = _name_bytes(directory or Path()) - max((len(extension) + 1 for extension in extensions), default=0)
    read = set() if directory is None else {os.path.realpath(name) for name in inputs if name != STDIN}
    own = [_cut("stdin" if name == STDIN else Path(name).stem, room) for name in inputs]
    in_use = {_folded(stem) for stem in own}
    seen: set[str] = set()
    stems = []

    def overwrites(stem: str) -> bool:
        files = [] if directory is None else [directory / f"{stem}.{extension}" for extension in extensions]
        return any(os.path.realpath(file) in read for file in files)

    for stem in own:
        chosen, number = stem, 1
        while (_folded(chosen) in (seen if number == 1 else in_use)) or overwrites(chosen):
            number += 1
            chosen = f"{_cut(stem, room - len(f'-{number}'))}-{number}"
        seen.add(_folded(chosen))
        in_use.add(_folded(chosen))
        stems.append(chosen)
    return stems


def renamed(stem: str, file: str) -> str | None:
    """A notice when an output file does not have the name of its input; None when it has.

    Args:
        stem: the stem from :func:`output_stems`.
        file: path of the input, or ``-``.
    """
    if stem == ("stdin" if file == STDIN else Path(file).stem):
        return None
    return f"written as {stem}, because its own name is too long or belongs to another file"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader finds the old content or the new content, never a part.

    Args:
        path: path of the file.
        content: content of the file; text becomes UTF-8.
    """
    # The temporary name does not contain the file's name, because the two together could be too long.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_somewhere(path: Path, content: str | bytes) -> str | None:
    """Write a file; on failure, write another file in the same directory or in the directory for temporary files."""
    try:
        write_whole(path, content)
        return None
    except OSError as error:
        failed = error
    for directory in (path.parent, Path(tempfile.gettempdir())):
        other = directory / f"transcript-{secrets.token_hex(4)}{path.suffix}"
        with contextlib.suppress(OSError):
            write_whole(other, content)
            return f"{path} could not be written ({one_line(failed)}); the transcript is in {other}"
    raise failed


def _name_bytes(directory: Path) -> int:
    """The longest file name in the directory, in bytes."""
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
