"""The configuration: one table of settings, and the sources of their values.

:mod:`settings` has the table, :mod:`sources` reads the file, the environment and the command line. May import
``coercion`` and ``errors``.
"""

from __future__ import annotations

from whisper_api.config.settings import (
    ComputeType,
    Config,
    Downloaders,
    Loaded,
    OutputFormat,
    describe,
    format_value,
    settings,
)
from whisper_api.config.sources import SECRETS, Setting

__all__ = [
    "SECRETS",
    "ComputeType",
    "Config",
    "Downloaders",
    "Loaded",
    "OutputFormat",
    "Setting",
    "describe",
    "format_value",
    "settings",
]
