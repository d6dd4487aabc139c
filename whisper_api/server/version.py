"""The version of the program."""

from __future__ import annotations

import importlib.metadata

__all__ = ["version"]


def version() -> str:
    """The version of the installed package; ``0+source`` when the package is not installed."""
    try:
        return importlib.metadata.version("whisper-api")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
