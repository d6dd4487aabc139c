"""``whisper-api serve``: runs the server until a signal stops it."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from whisper_api.cli.flags import MACHINE_FLAGS, add_setting_flags, overridden_settings
from whisper_api.cli.termination import exit_when_lost
from whisper_api.config import Config, Loaded, describe
from whisper_api.errors import DeviceLost
from whisper_api.permissions import exposed_files

if TYPE_CHECKING:
    from whisper_api.server.run import Started

DESCRIPTION = """\
The first SIGTERM or Ctrl-C stops the server gracefully: running jobs have a while to end, then go back to the queue. A
second one ends the server at once. In both cases, no accepted job and no result is lost.

When the GPU has failed, the server puts its jobs back into the queue and ends with exit code 75: a new process can use
the GPU again, so let a supervisor start one.

SIGHUP has the server read its configuration and its certificate again. The log says what has changed, and which keys
need a restart.
"""
# EX_TEMPFAIL of sysexits.h: the same command may succeed in a new process.
EXIT_DEVICE_LOST = 75


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    parser.add_argument(
        "--check", action="store_true", help="print the configuration in force and where it comes from, then end"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="allow others to reach the server though authorization is off"
    )
    settings = parser.add_argument_group("settings that win over the configuration file")
    add_setting_flags(settings, "--host", "--port", "--model", "--language", "--output-format", *MACHINE_FLAGS)
    add_setting_flags(settings, "--data-dir", "--tmp-dir", "--log-format")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the server, or print the configuration with ``--check``.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 after a stop, 2 when the server cannot use the configuration. The process ends here with 75 when the GPU has
        failed.
    """
    if args.check:
        print(describe(loaded))
        for warning in exposed_files(loaded.config):
            print(f"whisper-api serve: warning: {warning}", file=sys.stderr)
        return 0
    from whisper_api.logs import set_up
    from whisper_api.server.run import serve

    set_up(loaded.config)
    if sys.__stderr__ is not None:
        # After a crash in native code, the log has the stack of every thread.
        faulthandler.enable(sys.__stderr__)
    exit_when_lost(EXIT_DEVICE_LOST)
    try:
        ended = serve(loaded.config, insecure=args.insecure, on_ready=_tell, load=lambda: _load_again(args, loaded))
    except DeviceLost as error:
        print(f"whisper-api serve: error: {error}", file=sys.stderr)
        # At once, because destructors of models crash or hang when their device is lost.
        _end_now(EXIT_DEVICE_LOST)
    if not ended:
        _end_now(0)
    return 0


def _load_again(args: argparse.Namespace, loaded: Loaded) -> Loaded:
    """The configuration as it is now. A file that is gone is an error, and not a reason to search for another one."""
    return Config.load(loaded.path or getattr(args, "config", None), flags=overridden_settings(args))


def _end_now(code: int) -> NoReturn:
    """End the process without the destructors of the interpreter and of native libraries."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell(started: Started) -> None:
    """Print the address and a new key on standard output, because the key must not be in the log."""
    print(f"Listening on {started.url}")
    if started.api_key is not None:
        print(f"API key (role admin, shown only this once): {started.api_key}")
    sys.stdout.flush()
