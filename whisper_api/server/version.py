"""Which version of the program this is."""

from __future__ import annotations

import importlib.metadata

__all__ = ["version"]


def version() -> str:
    """Of the package; of source that was not installed, a word that says so."""
    try:
        return importlib.metadata.version("whisper-api")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
