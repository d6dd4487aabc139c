"""``whisper-api doctor``: reports what works on this machine or on a server, and how to repair the rest.

:mod:`command` prints the report that :mod:`checks` and :mod:`stages` make of this machine, or that :mod:`server` and
:mod:`way` make of a server. May import every folder.
"""

from __future__ import annotations

from whisper_api.cli.doctor.command import add_arguments, run

__all__ = ["add_arguments", "run"]
