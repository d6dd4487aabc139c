"""``whisper-api usage``: shows what keys have used on a server."""

from __future__ import annotations

import argparse
import sys
from datetime import date

from whisper_api.cli.outputs import print_table
from whisper_api.cli.server_arguments import add_server_arguments
from whisper_api.cli.server_arguments import run as run
from whisper_api.client import Client
from whisper_api.usage_records import QuotaUse, Usage, usage_csv

COLUMNS = ("day", "key", "model", "requests", "jobs", "audio minutes", "compute minutes")


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    parser.add_argument("--since", type=_day, metavar="DAY", help="first day, in UTC; the first of this month")
    parser.add_argument("--until", type=_day, metavar="DAY", help="last day; today by default")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--all", action="store_true", help="of all keys; for administrators")
    whose.add_argument("--key", metavar="ID", help="of the key with this id; for administrators")
    parser.add_argument("--csv", action="store_true", help="print CSV, with seconds instead of minutes")
    add_server_arguments(parser)
    parser.set_defaults(action=_show)


def _show(args: argparse.Namespace, client: Client) -> None:
    if args.all or args.key:
        usage = client.all_usage(args.since, args.until, key_id=args.key)
    else:
        usage = client.usage(args.since, args.until)
    if args.csv:
        sys.stdout.write(usage_csv(usage.rows))
        return
    print_table([COLUMNS, *_table(usage)])
    for quota in usage.quotas:
        print(_left(quota))


def _table(usage: Usage) -> list[tuple[str, ...]]:
    rows = [
        (
            row.day,
            row.key_name or row.key_id,
            row.model,
            str(row.requests),
            str(row.jobs),
            f"{row.audio_seconds / 60:.1f}",
            f"{row.compute_seconds / 60:.1f}",
        )
        for row in usage.rows
    ]
    minutes = (f"{usage.audio_seconds / 60:.1f}", f"{usage.compute_seconds / 60:.1f}")
    return [*rows, ("all days", "", "", str(usage.requests), str(usage.jobs), *minutes)]


def _left(quota: QuotaUse) -> str:
    if quota.unit == "jobs":
        left, limit, unit = f"{quota.remaining}", f"{quota.limit}", "jobs"
    else:
        left, limit, unit = f"{quota.remaining / 60:.1f}", f"{quota.limit / 60:.0f}", "minutes of audio"
    return f"{quota.policy}: {left} of {limit} {unit} are left for the next {quota.reset_seconds / 3600:.1f} hours"


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; expected something like 2026-03-31") from None
