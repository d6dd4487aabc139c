"""One row of the table of settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SECRETS", "Setting"]

# Keys whose values are never shown.
SECRETS = frozenset({"HF_TOKEN"})


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        key: its name in the file and in the environment.
        attribute: its name in :class:`Config`.
        type: what its values are, annotated with bounds.
        default: the value as shipped.
        help: one line.
    """

    key: str
    attribute: str
    type: Any
    default: Any
    help: str
