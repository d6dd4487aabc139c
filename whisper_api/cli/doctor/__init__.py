"""``whisper-api doctor``: reports what works on this machine, and how to repair the rest.

:mod:`command` prints the report that :mod:`checks` and :mod:`stages` make. May import every folder.
"""

from __future__ import annotations

from whisper_api.cli.doctor.command import add_arguments, run

__all__ = ["add_arguments", "run"]
