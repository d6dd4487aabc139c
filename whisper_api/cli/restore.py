"""``whisper-api restore``: puts a backup in the place of the job database, while no server runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from whisper_api.cli.flags import add_setting_flags
from whisper_api.config import Loaded

DESCRIPTION = """\
Stop the server first. The database that is there now stays beside the new one, under another name. Everything is as at
the time of the backup: revoke the keys again that were revoked since, and delete again what was deleted.
"""


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    parser.add_argument("file", metavar="FILE", type=Path, help="what whisper-api backup has written")
    add_setting_flags(parser, "--data-dir", "--tmp-dir")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Restore a backup.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 1 when the backup cannot be used, or a server runs; the database is as before then.
    """
    from whisper_api.jobs.backup import restore

    done = restore(loaded.config, args.file)
    if done.replaced is not None:
        print(f"the database that was there is {done.replaced} now", file=sys.stderr)
    print(f"restored {args.file}: {done.waiting} jobs wait, {done.failed} failed without their audio", file=sys.stderr)
    return 0
