"""``whisper-api cluster``: shows the engines of a server's cluster, and empties machines."""

from __future__ import annotations

import argparse
import sys

import msgspec

from whisper_api.cli.flags import subcommand_adder
from whisper_api.cli.outputs import print_table
from whisper_api.cli.server_arguments import add_server_arguments
from whisper_api.cli.server_arguments import run as call_server
from whisper_api.client import Client
from whisper_api.config import Loaded
from whisper_api.errors import ConfigError, WhisperApiError
from whisper_api.jobs.executor import EngineFacts

COLUMNS = ("engine", "machine", "state", "device", "jobs", "queued audio", "speed", "models", "version")
WAIT_SECONDS = 3600.0


class _Queue(msgspec.Struct):
    queued_jobs: int
    processing_jobs: int


class _Server(msgspec.Struct):
    state: str
    reason: str = ""


class _Status(msgspec.Struct):
    server: _Server
    queue_state: _Queue
    engines: tuple[EngineFacts, ...] = ()


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add = subcommand_adder(parser, common)
    status = add("status", "show the engines, their models and jobs; needs the key of an administrator", _status)
    add_server_arguments(status)
    drain = add("drain", "let the jobs of a machine end, give it no others, and take it from the cluster", _drain)
    drain.add_argument("node", metavar="NODE", help="host name, address or id, as the status shows it")
    drain.add_argument("--address", metavar="HOST:PORT", help="the cluster's head; else RAY_ADDRESS")
    drain.add_argument(
        "--wait", type=float, default=WAIT_SECONDS, metavar="SECONDS", help="how long to wait for its jobs; an hour"
    )


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the subcommand.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 1 when the server cannot be used or jobs still run, 2 when the cluster or the machine cannot be
        found.
    """
    return _drain(args, loaded) if args.action == _drain else call_server(args, loaded)


def _status(args: argparse.Namespace, client: Client) -> None:
    status = msgspec.convert(client.server_status(), _Status)
    rows = [
        (
            each.name,
            each.node,
            each.state,
            each.device or "-",
            str(each.running_jobs),
            f"{each.queued_audio_seconds:.0f} s",
            f"{each.audio_seconds_per_second:.1f}x",
            " ".join(each.resident_models) or "-",
            each.version or "-",
        )
        for each in status.engines
    ]
    print_table([COLUMNS, *rows])
    for each in status.engines:
        if each.reason:
            print(f"{each.name}: {each.reason}")
    speed = sum(each.audio_seconds_per_second for each in status.engines)
    queue = status.queue_state
    print(
        f"{queue.queued_jobs} jobs wait, {queue.processing_jobs} run, {speed:.1f} s of audio per second; "
        f"{status.server.state}{f': {status.server.reason}' if status.server.reason else ''}"
    )


def _drain(args: argparse.Namespace, loaded: Loaded) -> int:
    from whisper_api.cluster.draining import drain
    from whisper_api.cluster.security import check_address

    address = args.address or loaded.config.ray_address
    if address is None:
        raise ConfigError("name the cluster's head with --address HOST:PORT or RAY_ADDRESS")
    check_address(address)
    if not drain(address, args.node, args.wait, lambda text: print(text, file=sys.stderr)):
        raise WhisperApiError(f"{args.node} still works after {args.wait:g} s; it goes on")
    return 0
