"""Where transcripts go: to standard output, or to files named after their inputs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_api.formats import FORMATS

__all__ = ["STDIN", "Outputs", "add_output_flags", "one_line", "output_stems", "write_whole"]

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
        """What the flags say; the directory is made.

        Raises:
            OSError: it cannot be.
        """
        formats = list(dict.fromkeys(name for names in args.format or [[default]] for name in names))
        directory: Path | None = args.output_dir
        if directory is None and len(formats) > 1:
            directory = Path()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        return cls(formats, directory)

    def write(self, name: str, stem: str, text: str) -> None:
        """Write a transcript in one format.

        Args:
            name: the format.
            stem: the file's name without its suffix.
            text: the transcript.
        """
        if self.directory is not None:
            write_whole(self.directory / f"{stem}.{FORMATS[name].extension}", text)
        else:
            sys.stdout.write(text if text.endswith("\n") or not text else f"{text}\n")
            sys.stdout.flush()


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


def output_stems(inputs: Sequence[str]) -> list[str]:
    """A name for the files of each input: its own without the suffix, with a number where two would be the same.

    Args:
        inputs: paths, or ``-`` for standard input.

    Returns:
        One stem for each, in order; no two are equal, also on file systems that do not tell upper from lower case.
    """
    own = ["stdin" if name == STDIN else Path(name).stem for name in inputs]
    taken = {stem.casefold() for stem in own}
    seen: set[str] = set()
    stems = []
    for stem in own:
        chosen, number = stem, 1
        if stem.casefold() in seen:
            while chosen.casefold() in taken:
                number += 1
                chosen = f"{stem}-{number}"
        seen.add(stem.casefold())
        taken.add(chosen.casefold())
        stems.append(chosen)
    return stems


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader finds the old content or the new, never a part of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
