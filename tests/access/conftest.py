"""Fixtures of the tests of keys."""

from __future__ import annotations

from jobs.conftest import serve, store

__all__ = ["serve", "store"]
