"""Where transcripts go: to standard output, or to files named after their inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["STDIN", "output_stems", "write_whole"]

STDIN = "-"


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
