"""``whisper-api doctor``: tells what works on this machine, and how to mend the rest."""

from __future__ import annotations

from whisper_api.cli.doctor.command import add_arguments, run

__all__ = ["add_arguments", "run"]
