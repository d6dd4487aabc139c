"""Starts Ray's part of a machine: ``ray start``, with the flags and the environment that engines need."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.cluster.security import is_loopback, ray_environment

if TYPE_CHECKING:
    from whisper_api.config import Config

# Audio passes in pieces, so little room is enough.
STORE_BYTES = 512 << 20
DEFAULT_PORT = 6379
LOOK_SECONDS, PATIENCE_SECONDS = 0.5, 2.0


def arguments(
    *,
    address: str | None,
    port: int = DEFAULT_PORT,
    node_address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> list[str]:
    """The arguments of ``ray start``.

    Args:
        address: host and port of the head; None starts the head, which has no engines.
        port: port of the head, when it is started.
        node_address: address under which the others reach this machine; None lets Ray find it.
        cpus: number of processors that the machine offers; None for all that it has.
        gpus: the same for GPUs.
        resources: its own resources.
    """
    if address is not None and node_address is None and is_loopback(address.rpartition(":")[0]):
        node_address = "127.0.0.1"
    if address is None:
        cpus, gpus = 0 if cpus is None else cpus, 0 if gpus is None else gpus
    given = {
        "--address": address,
        "--port": None if address is not None else port,
        "--include-dashboard": None if address is not None else "false",
        "--node-ip-address": node_address,
        "--num-cpus": cpus,
        "--num-gpus": gpus,
        "--resources": json.dumps(dict(resources)) if resources else None,
        "--object-store-memory": STORE_BYTES,
    }
    flags = [f"{flag}={value}" for flag, value in given.items() if value is not None]
    return ["start", "--block", *(["--head"] if address is None else []), *flags]


def environment(config: Config, path: Path | None) -> dict[str, str]:
    """The variables that Ray hands to the engines, so that they find this machine's configuration.

    Args:
        config: the configuration of this machine.
        path: its file, if any.
    """
    found = {
        "WHISPER_MODELS_DIR": str(config.models_dir.absolute()),
        "WHISPER_TMP_FILES": str(config.tmp_dir.absolute()),
    }
    if path is not None:
        found["WHISPER_API_CONFIG"] = str(path.absolute())
    # Only a driver on loopback may take Ray for a Ray of a single machine; `ray start` would refuse.
    return {**os.environ, **found, **ray_environment("0.0.0.0:0")}


def main() -> None:
    """Run ``ray`` with the arguments of this process, for which 127.0.0.1 is an address like any other."""
    from ray._private import services
    from ray.scripts.scripts import main as ray_main

    # Ray puts the machine's own address in the place of a loopback address, where a head on loopback does not listen.
    services.resolve_ip_for_localhost = lambda host: host
    sys.argv[0] = "ray"
    threading.Thread(target=_end_with_ray, name="end", daemon=True).start()
    ray_main()


def _end_with_ray() -> None:
    """End the process once Ray's part of a drained machine has ended, which ``ray start --block`` does not notice."""
    import psutil

    ours = psutil.Process()
    seen = False
    while True:
        time.sleep(LOOK_SECONDS)
        with contextlib.suppress(psutil.Error):
            raylets = [each for each in ours.children() if each.name() == "raylet"]
            running = [each for each in raylets if each.status() != psutil.STATUS_ZOMBIE]
            if seen and not running:
                # A death that was not asked for is told by `ray start` itself meanwhile.
                time.sleep(PATIENCE_SECONDS)
                os._exit(0)
            seen = seen or bool(running)
