from __future__ import annotations

from collections.abc import Iterator

import pytest
from rest_server import Rest, serving

from whisper_api import Client
from whisper_api.client import transport


@pytest.fixture
def rest() -> Iterator[Rest]:
    with serving(Rest()) as rest:
        yield rest


@pytest.fixture
def client(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.02)
    with Client(rest.url, "wk_key", timeout=20) as client:
        yield client
