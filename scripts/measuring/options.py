"""The shared arguments of the measuring scripts, the models directory and a free port."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def arguments(description: str | None, *, runs: int = 5) -> argparse.ArgumentParser:
    """A parser with the shared arguments; a script adds its own arguments.

    Args:
        description: the script's docstring.
        runs: the default number of measured runs of each side.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help="of each side, after one that is not kept")
    parser.add_argument("--quick", action="store_true", help="short audio: to see that it works")
    parser.add_argument("--audio", type=Path, metavar="DIR", help="recordings with a manifest.json; else a sample call")
    parser.add_argument("--model", default="base", help="the Whisper model, a name of the models directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios (needs matplotlib)")
    parser.add_argument("--no-peers", action="store_true", help="measure only this project")
    return parser


def models_dir() -> Path:
    """The directory in WHISPER_MODELS_DIR, or the models directory of the repository."""
    return Path(os.environ.get("WHISPER_MODELS_DIR") or ROOT / "models_cache").absolute()
