"""Checks before a measurement that the modules and programs of a measuring script exist."""

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
        name: name of the module or program.
        reason: a sentence that says what uses it, and how to install it or measure without it.
        program: True for a program, False for a module.
        peers: whether only peers need it.
    """

    name: str
    reason: str
    program: bool = False
    peers: bool = False

    def missing(self) -> bool:
        """The module or program does not exist on this machine."""
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
# Placeholder for the weights that --model names.
MODEL = Need("model", "")


def parsed(parser: argparse.ArgumentParser, *needs: Need) -> argparse.Namespace:
    """Parse the command line. Exits with status 2 and a sentence for each missing module or program.

    Args:
        parser: a parser from :func:`measuring.arguments` or of the script.
        needs: the modules and programs of the script. matplotlib, for --plot, is added.
    """
    options = parser.parse_args()
    require(parser, options, *needs)
    return options


def require(parser: argparse.ArgumentParser, options: argparse.Namespace, *needs: Need) -> None:
    """Exit with status 2 and a sentence for each missing module or program.

    Args:
        parser: the parser, which ends the program.
        options: the parsed arguments.
        needs: the modules and programs that the script uses with these options.
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
