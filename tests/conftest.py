"""Real models and real speech for the tests: what an install brings along, and what the package index has."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from whisper_api import Engine

# No example fails for being slow; what is run for others tries the same examples every time.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that the other process works through the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_scripts.py")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """What a command sets up for a process of its own is not found by the tests after it."""
    loggers = [logging.getLogger(name) for name in ("", "whisper_api")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    hook = threading.excepthook
    with warnings.catch_warnings():
        yield
    threading.excepthook = hook
    logging.captureWarnings(False)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The models directory that the tests share with the user, so that nothing is fetched twice."""
    return Path(os.environ.get("WHISPER_MODELS_DIR") or REPOSITORY / "models_cache")


def _model(models_dir: Path, name: str) -> Path:
    from whisper_api.engine.models.store import ModelStore

    return ModelStore(models_dir).ensure(name).path


@pytest.fixture(scope="session")
def base_model_dir(models_dir: Path) -> Path:
    """Whisper base, multilingual."""
    return _model(models_dir, "base")


@pytest.fixture(scope="session")
def tiny_en_model_dir(models_dir: Path) -> Path:
    """Whisper tiny.en."""
    return _model(models_dir, "tiny.en")


@pytest.fixture(scope="session")
def ecapa_path(models_dir: Path) -> Path:
    """The checkpoint of the speaker embeddings."""
    return _model(models_dir, "ecapa")


@pytest.fixture(scope="session")
def sample_call() -> Path:
    """Thirty seconds of a telephone call between two people, with its .rttm and .stm beside it."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"


@pytest.fixture(scope="session")
def engine(models_dir: Path, base_model_dir: Path) -> Iterator[Engine]:
    """One engine on the CPU for all tests that need no settings of their own."""
    from whisper_api import Engine

    with Engine(device="cpu", model="base", models_dir=models_dir) as engine:
        yield engine
