"""The configuration: one table of settings, and the sources of their values.

:mod:`settings` has the table, :mod:`sources` reads the file, the environment and the command line, :mod:`live` changes
the values of a running server. May import
``coercion`` and ``errors``.
"""

from __future__ import annotations

from whisper_api.config.live import Change, LiveConfig, with_new_values
from whisper_api.config.settings import (
    RELOADABLE,
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
    "RELOADABLE",
    "SECRETS",
    "Change",
    "ComputeType",
    "Config",
    "Downloaders",
    "LiveConfig",
    "Loaded",
    "OutputFormat",
    "Setting",
    "describe",
    "format_value",
    "settings",
    "with_new_values",
]
