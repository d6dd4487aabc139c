"""``whisper-api worker`` and ``whisper-api cluster``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import until

from cluster.loopback import Loopback
from whisper_api.cli.main import main
from whisper_api.cluster.ray_start import arguments
from whisper_api.server.run import Server

pytestmark = pytest.mark.cluster


def test_a_machine_gets_the_flags_that_engines_need() -> None:
    given = arguments(address="10.0.0.1:6379", node_address="10.0.0.2", gpus=2, resources={"large": 1.0})
    assert given[:2] == ["start", "--block"]
    assert {
        "--address=10.0.0.1:6379",
        "--node-ip-address=10.0.0.2",
        "--num-gpus=2",
        '--resources={"large": 1.0}',
    } < set(given)
    head = arguments(address=None, port=7000)
    assert {"--head", "--port=7000", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false"} < set(head)
    assert "--node-ip-address=127.0.0.1" in arguments(address="127.0.0.1:6379")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["worker"], "--address HOST:PORT"),
        (["worker", "--address", "10.0.0.1:6379"], "RAY_AUTH_MODE=token"),
        (["worker", "--head"], "RAY_AUTH_MODE=token"),
        (["cluster", "drain", "box"], "--address HOST:PORT"),
        (["cluster", "drain", "box", "--address", "10.0.0.1:6379"], "RAY_AUTH_MODE=token"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_server_shows_its_engines(loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fakes import config_in

    config = config_in(
        tmp_path,
        executor="ray",
        ray_address=loopback.address,
        model="tiny.en",
        device="cpu",
        port=0,
        metrics_port=0,
        enable_authorization=False,
        preload_models=False,
    )
    with Server(config) as url:
        until(lambda: "2 of" not in _status(url, capsys) and _status(url, capsys).count(" ready ") == 2, "engines run")
        shown = _status(url, capsys)
        assert "0 jobs wait, 0 run" in shown
        assert shown.rstrip().endswith("ready")
        import httpx

        assert httpx.get(f"{url}/readyz").json()["status"] == "ready"
        metrics = httpx.get(f"{url}/metrics").text
        assert metrics.count("whisper_api_engine_ready{") == 2
        assert 'node="' in metrics


def _status(url: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["cluster", "status", "--url", url]) == 0
    return capsys.readouterr().out
