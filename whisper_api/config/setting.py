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
        key: the name in the file and in the environment.
        attribute: the name in :class:`Config`.
        type: the type of the value, annotated with its bounds.
        default: the default value.
        help: the help line.
    """

    key: str
    attribute: str
    type: Any
    default: Any
    help: str
