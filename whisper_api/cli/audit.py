"""``whisper-api audit``: prints the audit trail of this machine's server, as JSON lines."""

from __future__ import annotations

import argparse
import contextlib
import re
import time
from datetime import datetime

from whisper_api.audit_records import ACTIONS, AuditFilter
from whisper_api.cli.flags import add_setting_flags
from whisper_api.config import Loaded

DESCRIPTION = """\
An entry in each line, the oldest first: who did what, from where, with which outcome. A running server writes
entries a second after they happen. Administrators read the same at GET /admin/audit.
"""
SECONDS_IN = {"m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d+)([mhd])")


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    times = "a date or a time (RFC 3339; local without a zone), or a number with m, h or d: so long ago"
    parser.add_argument("--since", type=_moment, metavar="TIME", help=f"not before this time: {times}")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="only entries before this time")
    parser.add_argument("--key", metavar="NAME_OR_ID", help="only entries of this key, or of this user of the system")
    kinds = sorted({action.partition(".")[0] for action in ACTIONS})
    parser.add_argument(
        "--action",
        choices=sorted([*ACTIONS, *kinds]),
        metavar="ACTION",
        help=f"only this action, or all of a kind: {', '.join(ACTIONS)}",
    )
    add_setting_flags(parser, "--data-dir")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Print the entries.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0.
    """
    from whisper_api.store.jobs import DATABASE_NAME, JobStore

    filter = AuditFilter(since=args.since, until=args.until, key=args.key, action=args.action)
    with contextlib.closing(JobStore(loaded.config.data_dir / DATABASE_NAME)) as store:
        for record in store.audit_records(filter):
            print(record.to_json())
    return 0


def _moment(text: str) -> float:
    """Seconds since 1970."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return time.time() - int(ago[1]) * SECONDS_IN[ago[2]]
    try:
        # Python 3.10 does not read Z.
        return datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text)).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-01-31T12:00:00Z or 7d") from None
