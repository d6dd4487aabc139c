"""A cluster on loopback for the tests, and executors on it."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fakes
import pytest
from fakes import config_in, until

from cluster.loopback import Loopback, cluster
from cluster.running import DEADLINE
from whisper_api.cluster.executor import RayExecutor

HAS_RAY = importlib.util.find_spec("ray") is not None
SCRIPTED = "engines:ScriptedEngine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cluster") and not HAS_RAY:
            item.add_marker(pytest.mark.skip(reason="Ray is not installed (extra cluster)"))


@pytest.fixture(scope="session", autouse=True)
def _signals_as_before() -> Iterator[None]:
    """Ray handles SIGTERM in a process that starts a cluster."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session", autouse=True)
def _patience() -> Iterator[None]:
    """A machine that is busy takes long to start Ray's processes."""
    with mock.patch.object(fakes, "DEADLINE", DEADLINE):
        yield


@pytest.fixture(scope="session")
def _environment() -> Iterator[None]:
    from cluster.loopback import environment

    with mock.patch.dict(os.environ, environment()):
        yield


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory, _environment: None) -> Iterator[Loopback]:
    """A cluster of two machines, which tests leave as they found it."""
    with cluster(tmp_path_factory.mktemp("machines")) as found:
        yield found


@pytest.fixture(autouse=True)
def _whole_cluster(request: pytest.FixtureRequest) -> None:
    """Where the cluster has lost a process, as for want of memory, each test fails at once and not at its deadline."""
    if "loopback" in request.fixturenames:
        assert request.getfixturevalue("loopback").ended() == []


def begin(executor: RayExecutor) -> None:
    """Let an executor look for engines. ``preload`` would wait without end where none comes."""
    executor._driver.start()  # noqa: SLF001


Executors = Callable[..., RayExecutor]


@pytest.fixture
def new_executor(loopback: Loopback, tmp_path: Path) -> Iterator[Executors]:
    """Makes executors whose engines are ready, and closes them."""
    made: list[RayExecutor] = []

    def make(
        engine: str = SCRIPTED, *, address: str | None = loopback.address, engines: int = 2, **settings: Any
    ) -> RayExecutor:
        config = config_in(
            tmp_path, executor="ray", ray_address=address, **{"model": "tiny.en", "device": "cpu", **settings}
        )
        executor = RayExecutor(config, engine)
        made.append(executor)
        begin(executor)
        until(lambda: executor.engines().running == engines, f"engines run: {executor.engines()}")
        return executor

    yield make
    for executor in made:
        executor.close()


@pytest.fixture(scope="module")
def executor(loopback: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    """An executor with two scripted engines, for all tests of a file."""
    config = config_in(
        tmp_path_factory.mktemp("front"), executor="ray", ray_address=loopback.address, model="tiny.en", device="cpu"
    )
    found = RayExecutor(config, SCRIPTED)
    begin(found)
    until(lambda: found.engines().running == 2, "two engines run")
    yield found
    found.close()
