"""What tests of the database begin with."""

from __future__ import annotations

from jobs.conftest import serve, store

__all__ = ["serve", "store"]
