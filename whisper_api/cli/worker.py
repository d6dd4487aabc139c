"""``whisper-api worker``: makes this machine a part of a Ray cluster, on which a server runs its jobs."""

from __future__ import annotations

import argparse
import os
import sys

from whisper_api.cli.flags import add_setting_flags
from whisper_api.config import Loaded
from whisper_api.errors import ConfigError, WhisperApiError

DESCRIPTION = """\
Checks what `whisper-api doctor` checks, then runs `ray start` with the right flags until it is stopped or the cluster
is lost; let a supervisor start it again. The first SIGTERM lets running jobs end for a while. The server makes an
engine here by itself. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) on every machine.
"""
START = "from whisper_api.cluster.ray_start import main; main()"


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: parser of the command.
        common: flags of every command; they are in the parser already.
    """
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--address", metavar="HOST:PORT", help="the cluster's head; else RAY_ADDRESS")
    place.add_argument("--head", action="store_true", help="start the head of a cluster, which has no engines")
    parser.add_argument("--port", type=int, default=6379, metavar="N", help="port of the head")
    parser.add_argument("--node-address", metavar="IP", help="address under which the others reach this machine")
    parser.add_argument("--cpus", type=int, metavar="N", help="processors for engines; all by default")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs for engines; all by default")
    parser.add_argument(
        "--offers", metavar="RESOURCES", help="own resources of this machine: name=amount, with commas between"
    )
    parser.add_argument("--no-check", action="store_true", help="start without the checks of `whisper-api doctor`")
    parser.add_argument("--check", action="store_true", help="only check, and print the command that would run")
    settings = parser.add_argument_group("settings of this machine")
    add_setting_flags(settings, "--models-dir", "--tmp-dir", "--model", "--device")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Check this machine, and become ``ray start``.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 after ``--check``, 1 when no engine can run here, 2 when the cluster may not be used. Otherwise this process
        becomes another program.
    """
    from whisper_api.cluster import ray_start
    from whisper_api.cluster.placement import parse_resources
    from whisper_api.cluster.security import check_address, check_nodes

    address = None if args.head else args.address or loaded.config.ray_address
    if address is None and not args.head:
        raise ConfigError("name the cluster's head with --address HOST:PORT or RAY_ADDRESS, or say --head")
    check_address(address)
    check_nodes([args.node_address or "0.0.0.0"] if args.head else [each for each in (args.node_address,) if each])
    try:
        resources = parse_resources(args.offers)
    except ValueError as error:
        raise ConfigError(f"--offers: {error}") from None
    given = ray_start.arguments(
        address=address,
        port=args.port,
        node_address=args.node_address,
        cpus=args.cpus,
        gpus=args.gpus,
        resources=resources,
    )
    if not (args.no_check or args.head):
        _check_stages(loaded)
    if args.check:
        print("ray", *given)
        return 0
    os.execve(sys.executable, [sys.executable, "-c", START, *given], ray_start.environment(loaded.config, loaded.path))


def _check_stages(loaded: Loaded) -> None:
    """Refuse a machine on which engines cannot run. A model that is missing is fetched when a job needs it."""
    from whisper_api.cli.doctor.checks import examine
    from whisper_api.cli.doctor.command import as_text

    report = examine(loaded)
    failed = [check for check in (*report.devices, *report.stages) if check.state == "failed"]
    if failed or not report.can_transcribe:
        print(as_text(report), file=sys.stderr)
    if failed:
        raise WhisperApiError("this machine cannot run every stage; see FAILED above, or say --no-check")
