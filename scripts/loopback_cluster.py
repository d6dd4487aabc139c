"""Ray clusters on loopback, whose machines are made of logical resources and can be killed."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from free_ports import free_port

ROOT = Path(__file__).parents[1]
SECRET = "RAY_AUTH_TOKEN"
_SECRET = secrets.token_hex(32)
STORE_BYTES = 80 << 20
START_SECONDS = 180.0
LOOPBACK: dict[str, Any] = {
    "node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
    "object_store_memory": STORE_BYTES,
}


def environment(**more: str) -> dict[str, str]:
    """Variables of a machine: what its Python processes import, the token, and the settings of tests."""
    sys.path.insert(0, str(ROOT))
    from whisper_api.cluster.security import MODE, TOKEN, ray_environment

    folders = (ROOT / "tests/cluster", ROOT / "tests", ROOT / "scripts", ROOT)
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return {
        # As `whisper-api worker` has it, which does not set what only a driver may.
        **ray_environment("0.0.0.0:0"),
        MODE: TOKEN,
        SECRET: os.environ.get(SECRET, _SECRET),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        # Other programs of a full machine are no reason to end an engine.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_agent_register_timeout_ms": "180000",
        # A machine that was killed is missed sooner than on a network, as is the head.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "4",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        **more,
    }


class Loopback:
    """A cluster whose head has no engines.

    Args:
        directory: holds the uploads of the engines.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self._cluster: Any = None
        self.nodes: list[Any] = []
        self._count = 0
        self._disks: dict[Any, Path] = {}
        self._killed: list[Path] = []
        self.start_head()

    @property
    def address(self) -> str:
        """Address of the head."""
        return f"127.0.0.1:{self._port}"

    @property
    def session(self) -> Path:
        """Where Ray keeps its logs."""
        return Path(self._cluster.head_node.get_session_dir_path())

    def start_head(self) -> None:
        """Start the head, also after it was killed: at the same address."""
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        with _patience():
            self._cluster = Cluster(
                initialize_head=True,
                shutdown_at_exit=True,
                head_node_args={
                    "num_cpus": 0,
                    "gcs_server_port": self._port,
                    "env_vars": environment(),
                    **agent_ports(),
                    **LOOPBACK,
                },
            )

    def add(
        self,
        *,
        cpus: int = 1,
        resources: dict[str, float] | None = None,
        first_path: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> Any:
        """Add a machine: the last one that was killed comes back with its disk, else a new one.

        Args:
            cpus: number of its CPUs.
            resources: its further resources.
            first_path: where its Python programs look for modules first.
            variables: its further environment variables.
        """
        if not self._killed:
            self._count += 1
            self._killed.append(self._directory / f"machine-{self._count}")
        uploads = self._killed.pop()
        given = environment(WHISPER_TMP_FILES=str(uploads), **(variables or {}))
        if first_path is not None:
            given["PYTHONPATH"] = os.pathsep.join([str(first_path), given["PYTHONPATH"]])
        with _patience():
            node = self._cluster.add_node(
                num_cpus=cpus,
                resources=resources or {},
                env_vars=given,
                **agent_ports(),
                **LOOPBACK,
            )
        self.nodes.append(node)
        self._disks[node] = uploads
        return node

    def kill(self, node: Any) -> None:
        """Kill a machine at once."""
        self.nodes.remove(node)
        self._killed.append(self._disks.pop(node))
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        """Kill the head at once, and with it the cluster: its machines belong to no other."""
        for node in list(self.nodes):
            self.kill(node)
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(Exception):
            self.kill_head()

    def ended(self) -> list[str]:
        """The processes of the head and of machines that have ended though nobody killed the machine."""
        nodes = [self._cluster.head_node, *self.nodes]
        return [f"{kind} of machine {number}" for number, node in enumerate(nodes) for kind, _ in node.dead_processes()]

    def left_over(self) -> list[str]:
        """The files of uploads that are on the machines."""
        return [
            str(path)
            for path in self._directory.rglob("*")
            if path.is_file() and path.suffix != ".lock" and path.name != ".lock"
        ]


def agent_ports() -> dict[str, int]:
    """Ports for a machine's agents. Ray ends where an agent that chooses its own is not there after 15 seconds."""
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    return {name: free_port() for name in names}


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Let Ray wait longer than its 30 seconds for a machine to start, without its warnings.

    The agents of a machine serve no dashboard, as where Ray is installed without one: that saves time at each start.
    """
    from ray._private import services, utils

    ask = services.get_node

    def get_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                return ask(*arguments)
            time.sleep(0.1)
        return ask(*arguments)

    without = mock.patch.object(utils, "get_dashboard_dependency_error", return_value=ImportError("not wanted"))
    with warnings.catch_warnings(), mock.patch.object(services, "get_node", get_node), without:
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def cluster(directory: Path, machines: int = 2) -> Iterator[Loopback]:
    """A cluster while open.

    Args:
        directory: holds the uploads of the engines.
        machines: number of machines with a CPU.
    """
    loopback = Loopback(directory)
    try:
        for _ in range(machines):
            loopback.add()
        yield loopback
    finally:
        loopback.close()
