"""``whisper-api doctor``: prints what works on this machine, or on a running server, as a table or as JSON."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import msgspec

from whisper_api.cli.doctor.check import Check
from whisper_api.cli.doctor.checks import Report, examine
from whisper_api.cli.flags import add_setting_flags
from whisper_api.cli.server_arguments import add_key_argument, api_key
from whisper_api.config import Loaded
from whisper_api.errors import InvalidInput

if TYPE_CHECKING:
    from whisper_api.cli.doctor.server import ServerReport

WORDS = {"ok": "ok", "missing": "-", "warning": "WARNING", "failed": "FAILED"}
WIDTH = max(map(len, WORDS.values()))


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    server = parser.add_argument_group("a running server instead of this machine")
    server.add_argument("--server", metavar="URL", help="URL of the server to examine, and the way to it")
    add_key_argument(server)
    server.add_argument("--transcribe", action="store_true", help="let the server transcribe a short tone")
    tried = parser.add_argument_group("what to try")
    add_setting_flags(tried, "--model", "--language", "--device", "--device-index", "--compute-type", "--models-dir")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run all checks and print the report.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 when transcription works here, or no check of the server failed; 1 otherwise; 2 on wrong usage.
    """
    if args.server is None:
        if args.transcribe or args.key_file is not None:
            raise InvalidInput("--transcribe and --key-file need --server")
        here = examine(loaded)
        _print(args, here, as_text(here))
        return 0 if here.can_transcribe else 1
    from whisper_api.cli.doctor.server import examine_server

    report = examine_server(args.server, api_key(args.key_file), transcribe=args.transcribe)
    _print(args, report, server_as_text(report))
    return 0 if report.works else 1


def _print(args: argparse.Namespace, report: Report | ServerReport, text: str) -> None:
    print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() if args.json else text)
    sys.stdout.flush()


def as_text(report: Report) -> str:
    """The report as a table for people."""
    width = max(map(len, report.versions))
    lines = ["versions", *(f"  {name:<{width}}  {version or '-'}" for name, version in report.versions.items())]
    for title, checks in (("devices", report.devices), ("places", report.places), ("stages", report.stages)):
        lines += ["", *_table(title, checks)]
    verdict = "transcription can run" if report.can_transcribe else "transcription cannot run yet: see stages"
    return "\n".join([*lines, "", verdict])


def server_as_text(report: ServerReport) -> str:
    """The report on a server as a table for people."""
    lines = [*_table(f"the way to {report.url}", report.connection), ""]
    if report.server:
        lines += [*_table("the server", report.server), ""]
    verdict = "nothing is wrong" if report.works else "something is wrong: see FAILED"
    if report.works and any(check.state == "warning" for check in (*report.connection, *report.server)):
        verdict = "nothing is wrong yet: see WARNING"
    return "\n".join([*lines, verdict])


def _table(title: str, checks: tuple[Check, ...]) -> list[str]:
    width = max(len(check.name) for check in checks)
    return [title, *(line for check in checks for line in _lines(check, width))]


def _lines(check: Check, width: int) -> list[str]:
    lines = [f"  {check.name:<{width}}  {WORDS[check.state]:<{WIDTH}}  {check.detail}"]
    if check.remedy:
        lines.append(f"  {'':<{width}}  {'':<{WIDTH}}  -> {check.remedy}")
    return lines
