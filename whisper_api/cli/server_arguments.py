"""The arguments of commands that call a server: its URL and the caller's key."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from whisper_api.cli.outputs import one_line
from whisper_api.client import DEFAULT_URL, Client
from whisper_api.config import Loaded
from whisper_api.errors import InvalidInput

KEY_VARIABLE = "WHISPER_API_KEY"


def add_server_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags.

    Args:
        group: a parser or an argument group.
    """
    group.add_argument("--url", default=DEFAULT_URL, help=f"URL of the server; {DEFAULT_URL} by default")
    add_key_argument(group)


def add_key_argument(group: argparse._ActionsContainer) -> None:
    """Add the flag of the caller's key.

    Args:
        group: a parser or an argument group.
    """
    group.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"file with the API key; without it, the key is read from the environment variable {KEY_VARIABLE}",
    )


def api_key(file: Path | None) -> str | None:
    """The caller's key.

    Args:
        file: the file that the command line names; None reads the environment.

    Raises:
        InvalidInput: the file cannot be read.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE)
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--key-file {file}: {one_line(error)}") from None


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the action of a subcommand that calls a server: ``action(args, client)``.

    Args:
        args: the arguments of the command line.
        loaded: the configuration, which is not used.

    Returns:
        The exit code 0.
    """
    with Client(args.url, api_key(args.key_file)) as client:
        args.action(args, client)
    return 0
