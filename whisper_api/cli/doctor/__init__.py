"""``whisper-api doctor``: what works on this machine, and what to do about the rest."""

from __future__ import annotations

from whisper_api.cli.doctor.command import add_arguments, run

__all__ = ["add_arguments", "run"]
