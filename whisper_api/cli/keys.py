"""``whisper-api keys``: creates, lists and revokes API keys, also while a server runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from whisper_api.cli.flags import add_setting_flags
from whisper_api.config import Loaded
from whisper_api.errors import InvalidOption

if TYPE_CHECKING:
    from whisper_api.access.keys import Key, KeyRing

__all__ = ["add_arguments", "run"]

SHOWN_COLUMNS = ("id", "name", "role", "created", "revoked")


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, help: str, action: Callable[[argparse.Namespace, KeyRing], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=[common])
        add_setting_flags(command, {"--data-dir": "WHISPER_DATA_DIR"})
        command.set_defaults(action=action)
        return command

    create = add("create", "make a key and print it; it cannot be shown again", _create)
    create.add_argument("name", metavar="NAME", help="what to call it")
    create.add_argument(
        "--role", choices=["user", "admin"], default="user", help="a user sees its own jobs, an admin all"
    )
    add("list", "show the keys, without their secrets", _list)
    revoke = add("revoke", "refuse a key from now on", _revoke)
    revoke.add_argument("key", metavar="NAME_OR_ID", help="as the list shows it")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the subcommand.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 on success, 2 when the key does not exist or the name cannot be used.
    """
    from whisper_api.access.keys import KeyRing
    from whisper_api.store.jobs import DATABASE_NAME, JobStore

    store = JobStore(loaded.config.data_dir / DATABASE_NAME)
    try:
        args.action(args, KeyRing(store))
    except InvalidOption as error:
        print(f"whisper-api keys: error: {error}", file=sys.stderr)
        return 2
    finally:
        store.close()
    return 0


def _create(args: argparse.Namespace, ring: KeyRing) -> None:
    key, token = ring.create(args.name, args.role)
    # Standard output has the key only, so that a script can read it.
    print(token, flush=True)
    print(
        f"key {key.name!r} (id {key.key_id}, role {key.role}) was made. It cannot be shown again. "
        "Send it with every request: Authorization: Bearer <key>",
        file=sys.stderr,
    )


def _list(args: argparse.Namespace, ring: KeyRing) -> None:
    rows = [SHOWN_COLUMNS, *map(_as_row, ring.list())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _revoke(args: argparse.Namespace, ring: KeyRing) -> None:
    key = ring.revoke(args.key)
    print(f"key {key.name!r} (id {key.key_id}) is revoked", file=sys.stderr)


def _as_row(key: Key) -> tuple[str, ...]:
    return (
        key.key_id,
        key.name,
        key.role,
        _when(key.created_at),
        "no" if not key.revoked_at else _when(key.revoked_at),
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
