"""What a measuring script needs beside the package, looked for before anything is measured."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from dataclasses import dataclass

from measuring.options import models_dir

__all__ = ["FFMPEG", "JIWER", "MATPLOTLIB", "MODEL", "NORMALIZER", "WHISPERX", "Need", "parsed", "require"]


@dataclass(frozen=True)
class Need:
    """A module or a program.

    Attributes:
        name: of the module or program.
        reason: a sentence on the use of it, and on how to get it or go on without.
        program: whether it is a program, not a module.
        peers: whether it is needed only when peers are measured.
    """

    name: str
    reason: str
    program: bool = False
    peers: bool = False

    def missing(self) -> bool:
        """Whether it is not here."""
        if self.program:
            return shutil.which(self.name) is None
        try:
            return importlib.util.find_spec(self.name) is None
        except (ModuleNotFoundError, ValueError):
            return True


NORMALIZER = Need("whisper_normalizer", "word errors need whisper-normalizer: pip install '.[eval]'")
JIWER = Need("jiwer", "word errors need jiwer: pip install '.[eval]'")
MATPLOTLIB = Need("matplotlib", "--plot needs matplotlib: pip install matplotlib")
WHISPERX = Need("whisperx", "the peer whisperx is not installed: pip install whisperx, or leave it out", peers=True)
FFMPEG = Need(
    "ffmpeg",
    "the peer whisperx needs an ffmpeg program: install ffmpeg, or leave the peers out with --no-peers",
    program=True,
    peers=True,
)
# Stands for the weights that --model names.
MODEL = Need("model", "")


def parsed(parser: argparse.ArgumentParser, *needs: Need) -> argparse.Namespace:
    """The arguments of the command line. Ends with status 2 and a sentence for each thing that is missing.

    Args:
        parser: made by :func:`measuring.arguments`, or a script's own.
        needs: what the script uses; matplotlib, for --plot, is always looked for.
    """
    options = parser.parse_args()
    require(parser, options, *needs)
    return options


def require(parser: argparse.ArgumentParser, options: argparse.Namespace, *needs: Need) -> None:
    """End with status 2 and a sentence for each thing that is missing.

    Args:
        parser: which ends the program.
        options: what it parsed.
        needs: what these options make the script use.
    """
    with_peers = not (getattr(options, "no_peers", False) or getattr(options, "no_peer", False))
    wanted = [need for need in needs if need is not MODEL and (with_peers or not need.peers)]
    if getattr(options, "plot", None):
        wanted.append(MATPLOTLIB)
    missing = [need.reason for need in wanted if need.missing()]
    if MODEL in needs and not (weights := models_dir() / "whisper" / options.model).is_dir():
        advice = f"whisper-api models pull {options.model}, or set WHISPER_MODELS_DIR"
        missing.append(f"there is no model in {weights}: {advice}")
    folders = [folder for name in ("audio", "folder") if (folder := getattr(options, name, None)) is not None]
    missing += [f"there is no manifest.json in {each}" for each in folders if not (each / "manifest.json").is_file()]
    if missing:
        parser.error("; ".join(missing))
