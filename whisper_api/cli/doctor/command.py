"""``whisper-api doctor``: prints what this machine can run, as a table or as JSON."""

from __future__ import annotations

import argparse
import sys

import msgspec

from whisper_api.cli.doctor.check import Check
from whisper_api.cli.doctor.checks import Report, examine
from whisper_api.cli.flags import add_setting_flags
from whisper_api.config import Loaded

__all__ = ["add_arguments", "run"]

WORDS = {"ok": "ok", "missing": "-", "failed": "FAILED"}


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    add_setting_flags(
        parser.add_argument_group("what to try"),
        {
            "--model": "WHISPER_MODEL",
            "--language": "WHISPER_LANGUAGE",
            "--device": "WHISPER_DEVICE",
            "--device-index": "WHISPER_DEVICE_INDEX",
            "--compute-type": "WHISPER_COMPUTE_TYPE",
            "--models-dir": "WHISPER_MODELS_DIR",
        },
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run all checks and print the report.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 when transcription works, 1 when it does not.
    """
    report = examine(loaded)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(as_text(report))
    sys.stdout.flush()
    return 0 if report.can_transcribe else 1


def as_text(report: Report) -> str:
    """The report as a table for people."""
    width = max(map(len, report.versions))
    lines = ["versions", *(f"  {name:<{width}}  {version or '-'}" for name, version in report.versions.items())]
    for title, checks in (("devices", report.devices), ("places", report.places), ("stages", report.stages)):
        lines += ["", title]
        for check in checks:
            lines += _lines(check, max(len(other.name) for other in checks))
    verdict = "transcription can run" if report.can_transcribe else "transcription cannot run yet: see stages"
    return "\n".join([*lines, "", verdict])


def _lines(check: Check, width: int) -> list[str]:
    lines = [f"  {check.name:<{width}}  {WORDS[check.state]:<6}  {check.detail}"]
    if check.remedy:
        lines.append(f"  {'':<{width}}  {'':<6}  -> {check.remedy}")
    return lines
