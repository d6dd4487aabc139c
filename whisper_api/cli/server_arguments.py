"""The arguments of commands that call a server: its URL and the caller's key."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whisper_api.cli.flags import subcommand_adder
from whisper_api.cli.outputs import complain, one_line
from whisper_api.client import DEFAULT_URL, Client
from whisper_api.errors import WhisperApiError

log = logging.getLogger(__name__)

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


def server_subcommand_adder(
    parser: argparse.ArgumentParser, common: argparse.ArgumentParser
) -> Callable[[str, str, Callable[..., Any]], argparse.ArgumentParser]:
    """A function that adds a subcommand with the arguments of this module; see :func:`subcommand_adder`.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add_subcommand = subcommand_adder(parser, common, {})

    def add(name: str, help: str, action: Callable[..., Any]) -> argparse.ArgumentParser:
        command = add_subcommand(name, help, action)
        add_server_arguments(command)
        return command

    return add


def api_key(file: Path | None) -> str | None:
    """The caller's key.

    Args:
        file: the file that the flag names, if any.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    return file.read_text(encoding="utf-8-sig") if file is not None else os.environ.get(KEY_VARIABLE)


def run_action(args: argparse.Namespace, command: str, wrong_usage: tuple[type[Exception], ...]) -> int:
    """Run the action of a subcommand that calls a server.

    Args:
        args: the parsed arguments, with the action.
        command: name of the command, for its complaints.
        wrong_usage: errors that an argument or a file causes.

    Returns:
        0 on success, 1 when the server or a file cannot be used, 2 on one of the errors of wrong usage.
    """
    try:
        with Client(args.url, api_key(args.key_file)) as client:
            args.action(args, client)
    except wrong_usage as error:
        return complain(command, one_line(error), 2)
    except (WhisperApiError, OSError, UnicodeDecodeError) as error:
        log.debug("%s: the server cannot be used", command, exc_info=True)
        return complain(command, one_line(error), 1)
    return 0
