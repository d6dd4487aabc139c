"""Whether a cluster may be used: who reaches Ray's ports runs code on its machines, so a token is demanded."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from whisper_api.errors import ConfigError

RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
INLINE = "RAY_max_direct_call_object_size"
HEALTH_PERIOD, HEALTH_TIMEOUT = "RAY_health_check_period_ms", "RAY_health_check_timeout_ms"
MODE, TOKEN = "RAY_AUTH_MODE", "token"
DEMAND = (
    "whoever reaches Ray's ports runs code on its machines: set RAY_AUTH_MODE=token on every machine, with the same "
    "token (docs/cluster.md, Security)"
)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from its own machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(address: str | None, env: Mapping[str, str] | None = None) -> None:
    """Refuse to use a cluster without Ray, with an address of another form, or that others reach without a token.

    Args:
        address: host and port of the head; None for a Ray on this machine's loopback alone.
        env: environment variables; None for the process's variables.

    Raises:
        ConfigError: says what to set or to install.
    """
    env = os.environ if env is None else env
    if find_spec("ray") is None:
        raise ConfigError("WHISPER_EXECUTOR is ray, and Ray is not installed: `pip install 'whisper-api[cluster]'`")
    if address is None:
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()) or "/" in host:
        raise ConfigError(f"RAY_ADDRESS {address!r}: expected host:port of the cluster's head, as in 10.0.0.1:6379")
    if not is_loopback(host) and env.get(MODE, "").lower() != TOKEN:
        raise ConfigError(f"RAY_ADDRESS {address}: {DEMAND}")


def check_nodes(addresses: Iterable[str], env: Mapping[str, str] | None = None) -> None:
    """Refuse a cluster without a token when one of its machines has an address that others reach.

    Args:
        addresses: the addresses of the machines.
        env: environment variables; None for the process's variables.

    Raises:
        ConfigError: names the address.
    """
    env = os.environ if env is None else env
    reachable = [address for address in addresses if not is_loopback(address)]
    if reachable and env.get(MODE, "").lower() != TOKEN:
        raise ConfigError(f"the cluster has a machine at {reachable[0]}: {DEMAND}")


def ray_environment(address: str | None) -> dict[str, str]:
    """Variables for a process that uses Ray.

    Args:
        address: host and port of the head; None for a Ray on this machine's loopback alone.
    """
    found = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would make an environment of its own for a program that `uv run` started.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Uploads and transcripts below this size pass without the object store, at half the front's processor time.
        INLINE: os.environ.get(INLINE, str(1 << 20)),
        # A machine needs one process for each engine, not one for each processor.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # A machine that is gone is missed after five failures in a row, as Ray itself counts, but checked more often.
        HEALTH_PERIOD: os.environ.get(HEALTH_PERIOD, "1000"),
        HEALTH_TIMEOUT: os.environ.get(HEALTH_TIMEOUT, "5000"),
        # A process of Ray ends when it has not reached the head for this time; the driver is then started anew.
        RECONNECT: os.environ.get(RECONNECT, "15"),
        # The level of Ray's own lines; an actor's lines have the level of the configuration.
        "RAY_BACKEND_LOG_LEVEL": os.environ.get("RAY_BACKEND_LOG_LEVEL", "warning"),
    }
    if address is None or is_loopback(address.rpartition(":")[0]):
        # Otherwise Ray takes the machine's own address for 127.0.0.1, where a head on loopback does not listen.
        found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return found
