"""The arguments of commands that call a server: its URL and the caller's key."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from whisper_api.client import DEFAULT_URL

__all__ = ["KEY_VARIABLE", "add_server_arguments", "api_key"]

KEY_VARIABLE = "WHISPER_API_KEY"


def add_server_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags.

    Args:
        group: a parser or an argument group.
    """
    group.add_argument("--url", default=DEFAULT_URL, help=f"URL of the server; {DEFAULT_URL} by default")
    group.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"file with the API key; without it, the key is read from the environment variable {KEY_VARIABLE}",
    )


def api_key(file: Path | None) -> str | None:
    """The caller's key.

    Args:
        file: the file that the flag names, if any.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    return file.read_text(encoding="utf-8-sig") if file is not None else os.environ.get(KEY_VARIABLE)
