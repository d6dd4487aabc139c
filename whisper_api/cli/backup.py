"""``whisper-api backup``: copies the job database of this machine's server, also while it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from whisper_api.cli.flags import add_setting_flags
from whisper_api.config import Loaded

DESCRIPTION = """\
The backup is an SQLite file with jobs, results, hashes of keys, known speakers, vocabularies and the audit trail, as
they are at one moment. Only its owner can read it. Deleted text stays in old backups.
"""


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    parser.add_argument("file", metavar="FILE", type=Path, help="the backup; must not exist")
    parser.add_argument(
        "--audio",
        action="store_true",
        help="also copy the audio of jobs that wait or run; without it, a restored job fails unless its audio is still "
        "in WHISPER_TMP_FILES",
    )
    add_setting_flags(parser, "--data-dir", "--tmp-dir")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Write the backup.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 1 when the database cannot be read or the backup cannot be written.
    """
    from whisper_api.jobs.backup import back_up

    if args.audio:
        from whisper_api.server.connections import raise_open_files

        # Each upload is one open file.
        raise_open_files()
    done = back_up(loaded.config, args.file, audio=args.audio)
    audio = f"the audio of {done.with_audio}" if args.audio else "without their audio"
    print(f"{args.file}: {args.file.stat().st_size} bytes, {done.unfinished} unfinished jobs, {audio}", file=sys.stderr)
    return 0
