"""Fixtures of the tests of durable jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Services

from whisper_api.store.jobs import JobStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """A new job database."""
    store = JobStore(tmp_path / "jobs.db")
    yield store
    store.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Services]:
    """Makes services on one directory, and closes them."""
    with Services(tmp_path) as services:
        yield services
