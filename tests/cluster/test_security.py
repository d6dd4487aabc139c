"""A cluster that others reach needs a token; a machine with other versions is refused; nothing secret is logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisper_api.cluster.directories import own_directory
from whisper_api.cluster.security import check_address, check_nodes, is_loopback, ray_environment
from whisper_api.errors import ConfigError

TOKEN = {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.cluster
def test_a_cluster_that_others_reach_is_refused_without_a_token() -> None:
    check_address(None, {})
    check_address("127.0.0.1:6379", {})
    check_address("10.0.0.1:6379", TOKEN)
    for env in ({}, {"RAY_AUTH_MODE": "disabled"}):
        with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token"):
            check_address("10.0.0.1:6379", env)
        with pytest.raises(ConfigError, match=r"10\.0\.0\.2.*RAY_AUTH_MODE=token"):
            check_nodes(["127.0.0.1", "10.0.0.2"], env)
    check_nodes(["10.0.0.2"], TOKEN)


@pytest.mark.cluster
@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "auto", ":6379"])
def test_other_addresses_are_refused_with_an_example(address: str) -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379"):
        check_address(address, TOKEN)


def test_ray_takes_loopback_for_loopback_and_calls_nobody_home() -> None:
    assert ray_environment("127.0.0.1:6379")["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in ray_environment("10.0.0.1:6379")
    assert ray_environment(None)["RAY_USAGE_STATS_ENABLED"] == "0"


def test_an_engine_removes_what_ended_processes_left_and_nothing_else(tmp_path: Path) -> None:
    old = tmp_path / "engine-1"
    old.mkdir()
    (old / "audio").write_text("x")
    mine = own_directory(tmp_path, "engine-2")
    (mine / "audio").write_text("y")
    assert not old.exists()
    other = own_directory(tmp_path, "engine-3")
    assert (mine / "audio").exists()
    assert other.is_dir()
