"""The command line: ``whisper-api transcribe | serve | submit ...``. Each command is a module of its name."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from whisper_api.errors import (
    ConfigError,
    DeviceUnavailable,
    InvalidInput,
    SpeakerError,
    UnknownModel,
    VocabularyNotFound,
    WebhookError,
    WhisperApiError,
)

if TYPE_CHECKING:
    from whisper_api.config import Loaded

PROGRAM = "whisper-api"

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Errors that say that the command was used wrongly.
USAGE_ERRORS = (
    *(ConfigError, DeviceUnavailable, InvalidInput, SpeakerError, UnknownModel, VocabularyNotFound, WebhookError),
)
EPILOG = """\
exit codes: 0 all went well, 1 something failed, 2 wrong usage, 130 interrupted

A Hugging Face token is read from the environment variable HF_TOKEN, or from the
file that WHISPER_HF_TOKEN_FILE names. There is no flag for it, because other users
of a machine can see the arguments of a program.
"""
# Command to summary. The module of the same name has add_arguments(parser, common) and run(args, loaded) -> exit code,
# and may have a DESCRIPTION. What run() raises is printed, and decides the exit code.
COMMANDS = {
    "transcribe": "turn audio files into transcripts",
    "submit": "have a server turn audio files into transcripts",
    "serve": "answer over HTTP: a REST API with a durable queue",
    "models": "list, fetch, check and remove models",
    "speakers": "enrol, list, rename and delete the voices that a server knows",
    "keys": "make, list and revoke the keys of the server's callers",
    "usage": "show what keys have used on a server: requests, jobs, audio and work",
    "vocabularies": "store names and terms on a server, and list, show and delete them",
    "webhooks": "have a server send the ends of jobs to addresses, and show what it has sent",
    "audit": "print who did what on this machine's server",
    "backup": "copy the jobs, results and keys of a server, also while it runs",
    "restore": "put a backup in the place of the jobs, results and keys",
    "worker": "make this machine a part of a Ray cluster, on which a server runs its jobs",
    "cluster": "show the engines of a server's cluster, and empty machines",
    "doctor": "say what can run on this machine or how a server is, and why the rest cannot",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments without the program's name; None for the process's arguments.

    Returns:
        The exit code: 0 all went well, 1 something failed, 2 wrong usage, 130 interrupted.
    """
    _write_utf8()
    try:
        args = _parser().parse_args(argv)
        code = _run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_OK
    except BrokenPipeError:
        # The reader closed the pipe. The buffered rest must not fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        _tell("interrupted")
        return EXIT_INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    from whisper_api.cli.flags import overridden_settings
    from whisper_api.config import Config

    try:
        loaded = Config.load(getattr(args, "config", None), flags=overridden_settings(args))
    except ConfigError as error:
        _tell(f"error: {error}")
        return EXIT_USAGE
    _set_up_logging(loaded)
    for warning in loaded.warnings:
        _tell(f"warning: {warning}")
    try:
        return int(args.run(args, loaded))
    except BrokenPipeError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("the command failed", exc_info=True)
        kind = "" if isinstance(error, WhisperApiError) else f"{type(error).__name__}: "
        print(f"{PROGRAM} {args.command}: error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, USAGE_ERRORS) else EXIT_FAILED


def _write_utf8() -> None:
    """Write UTF-8 to files and pipes in every locale; a terminal keeps its encoding and gets escapes for the rest."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding=stream.encoding if stream.isatty() else "utf-8", errors="backslashreplace")


def _set_up_logging(loaded: Loaded) -> None:
    """Log to standard error. The level comes from the flag or the environment; the file's level is for the server."""
    asked = loaded.origins["WHISPER_LOG_LEVEL"].startswith(("command line", "environment"))
    level = loaded.config.log_level.upper() if asked else "WARNING"
    logging.basicConfig(format=f"{PROGRAM}: %(levelname)s: %(name)s: %(message)s", level="WARNING", force=True)
    logging.getLogger("whisper_api").setLevel(level)
    if level != "DEBUG":
        import warnings

        # Libraries address these warnings to programmers; users of this program cannot act on them.
        warnings.simplefilter("ignore")


def _tell(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _common_flags() -> argparse.ArgumentParser:
    """The flags of every command; they may precede or follow the command's name."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--config", metavar="FILE", help="configuration; else whisper_api.conf, where there is one")
    common.add_argument(
        "--log-level",
        dest="WHISPER_LOG_LEVEL",
        choices=["debug", "info", "warning", "error", "critical"],
        help="what to log to standard error; debug shows where an error comes from",
    )
    return common


def _parser() -> argparse.ArgumentParser:
    common = _common_flags()
    look: dict[str, Any] = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Speech to text with word times and speakers.", parents=[common], **look
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, action=_Commands)
    for name, summary in COMMANDS.items():
        sentence = f"{summary[0].upper()}{summary[1:]}."
        commands.add_parser(name, help=summary, description=sentence, parents=[common], **look)
    return parser


# argparse has no public base class for an action of subcommands.
class _Commands(argparse._SubParsersAction):  # type: ignore[type-arg]  # noqa: SLF001
    """Adds the arguments of the chosen command only, so that ``--help`` and other commands start faster."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        chosen = self.choices.get(values[0])
        if chosen is not None:
            command = import_module(f"whisper_api.cli.{values[0]}")
            command.add_arguments(chosen, _common_flags())
            chosen.description = "\n\n".join(filter(None, (chosen.description, getattr(command, "DESCRIPTION", ""))))
            chosen.set_defaults(run=command.run, command=values[0])
        super().__call__(parser, namespace, values, option)


class _Version(argparse.Action):
    """Reads the version only for ``--version``, because reading takes time."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(nargs=0, **{**arguments, "default": argparse.SUPPRESS})

    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> None:
        from whisper_api import __version__

        print(f"{PROGRAM} {__version__}")
        parser.exit()
