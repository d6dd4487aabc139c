from __future__ import annotations

from collections.abc import Iterator

import pytest
from rest_server import Rest, serving

from client.blocking import Blocking, MakeClient
from whisper_api import Client
from whisper_api.client import responses


@pytest.fixture
def rest() -> Iterator[Rest]:
    with serving(Rest()) as rest:
        yield rest


@pytest.fixture(params=[Client, Blocking], ids=["Client", "AsyncClient"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    """The class of each client: a test with this fixture, or with a client, runs for both."""
    make: MakeClient = request.param
    return make


@pytest.fixture
def client(rest: Rest, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(responses, "FIRST_PAUSE", 0.02)
    with make_client(rest.url, "wk_key", timeout=60) as client:
        yield client
